"""The files that ``s2m3 broker init --bridge-to`` writes, and the ways that can't be a bridge."""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from broker.protocol.topics import TOPICS
from broker.servers import bridge as bridges
from broker.servers import site_setup
from broker.servers.access import Account, Role
from broker.servers.bridge import REPEATED, Bridge, folder_of, read_bridge
from broker.servers.ports import HOST
from broker.servers.site_files import Settings, Setup
from broker.transport.connection import Connection

ACCOUNTS = (Account(Role.OPERATOR, "operator"), Account(Role.BRIDGE, "north"))
PLUGIN = Path("/plugin.so")
CORE = "192.0.2.9"
PORT = 18_883
Make = Callable[..., Setup]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a setup whose broker doesn't run."""

    def made(name: str, bridge: Bridge | None = None, site: str | None = None, host: str = CORE) -> Setup:
        settings = Settings(hosts=(host,), port=PORT, site=site)
        accounts = ACCOUNTS if bridge is None else ()
        user = getpass.getuser()
        return site_setup.init(tmp_path / name, accounts, settings, user=user, plugin=PLUGIN, bridge=bridge)

    return made


def stated(setup: Setup) -> list[str]:
    lines = (folder_of(setup) / "bridge.conf").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def account(core: Setup) -> str:
    return str(core.client_folder("north") / "connection.yaml")


def test_a_bridge_carries_the_marked_topics_and_nothing_else(make: Make) -> None:
    site = make("site", read_bridge(account(make("core"))), site="plant-4", host="192.0.2.1")
    topics = [line.removeprefix("topic ").split(" ") for line in stated(site) if line.startswith("topic ")]
    own, here = "sites/north/s2m3/v1/", "plant-4/s2m3/v1/"
    down, up = ([each for each in topics if each[1] == way] for way in ("in", "out"))
    assert down == [["tasks/+/spec", "in", "1", here, there] for there in ("sites/all/s2m3/v1/", own)]
    patterns = [each.filter("").removeprefix("/") for each in TOPICS if each.crosses == "up"]
    assert up == [
        [pattern, "out", "0" if pattern in {each.filter("")[1:] for each in REPEATED} else "1", here, own]
        for pattern in patterns
    ]
    assert len(topics) == len(down) + len(up)


def test_a_bridge_goes_over_tls_as_the_account_that_the_core_made(make: Make) -> None:
    core = make("core")
    site = make("site", read_bridge(account(core)), host="192.0.2.1")
    said = dict(line.partition(" ")[::2] for line in stated(site) if not line.startswith("topic "))
    folder = core.client_folder("north")
    wanted = {"connection": "north", "address": f"{CORE}:{PORT}", "remote_clientid": "north"}
    wanted |= {"remote_username": "north", "remote_password": (folder / "password").read_text()}
    wanted |= {"bridge_protocol_version": "mqttv311", "cleansession": "false"}
    assert wanted.items() <= said.items()
    for key, source in {"cafile": "ca.crt", "certfile": "client.crt", "keyfile": "client.key"}.items():
        assert Path(said[f"bridge_{key}"]).read_bytes() == (folder / source).read_bytes()
    assert "bridge_insecure" not in said
    assert f"include_dir {folder_of(site)}" in site.configuration.read_text().splitlines()
    for path in folder_of(site).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == os.geteuid()


def test_a_core_without_accounts_or_with_a_public_certificate_can_be_joined_by_its_address(make: Make) -> None:
    plain = stated(make("a", read_bridge(f"mqtt://{CORE}", "north"), host="192.0.2.1"))
    assert f"address {CORE}:1883" in plain
    assert not [line for line in plain if line.startswith(("bridge_ca", "remote_user", "remote_pass"))]
    public = stated(make("b", read_bridge(f"mqtts://n:secret@{CORE}", "north"), host="192.0.2.1"))
    assert {"bridge_capath /etc/ssl/certs", "remote_username n", "remote_password secret"} <= set(public)


def test_a_site_joins_later_and_again_when_its_account_changed(make: Make) -> None:
    core, site = make("core"), make("site", host="192.0.2.1")
    site_setup.join(site, read_bridge(account(core)))
    before = stated(site)
    site_setup.rotate(core, "north")
    site_setup.join(site, read_bridge(account(core)))
    changed = {line.split(" ")[0] for line in set(stated(site)) ^ set(before)}
    assert changed == {"remote_password"}
    assert site.configuration.read_text().count("include_dir") == 1


def test_a_bridge_that_loops_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    core = make("core")
    own = read_bridge(account(core))
    with pytest.raises(BadFile, match=r"is this site's own broker, so the bridge would loop; name the core's address"):
        site_setup.join(core, own)
    monkeypatch.setattr(bridges, "_is_this_machine", lambda _: False)
    elsewhere = Bridge(Connection(host="behind.example", port=443, tls=True, ca=own.core.ca), "north")
    with pytest.raises(BadFile, match="would loop"):  # by another address, but with its own authority
        site_setup.join(core, elsewhere)
    assert not folder_of(core).exists()


@pytest.mark.parametrize("host", ["localhost", HOST])
def test_the_same_port_of_this_machine_is_this_broker(make: Make, host: str) -> None:
    with pytest.raises(BadFile, match="would loop"):
        make("site", read_bridge(f"mqtts://{host}:{PORT}", "north"), host="broker.example")
    make("site", read_bridge(f"mqtts://{host}:{PORT + 1}", "north"), host="broker.example")  # another broker


@pytest.mark.parametrize(
    ("where", "name", "says"),
    [
        (f"mqtts://{CORE}", None, "doesn't say what this site is called at the core; add --bridge-name"),
        (f"mqtts://u:secret@{CORE}", None, f"--bridge-to mqtts://{CORE}:8883: doesn't say"),
        (f"mqtt://{CORE}", "all", "means no single site"),
        (f"mqtt://{CORE}", "North", "is not a valid id"),
        ("mqtt://[::1]", "north", "takes no IPv6 address"),
        ("http://x", "north", "begins with http://"),
        ("nowhere", None, "nowhere: No such file"),
        (f"{CORE}:8883", "north", "or the core as mqtts://HOST:PORT"),
        ("", "north", "--bridge-to: names no core"),
    ],
)
def test_what_cant_be_a_bridge_is_told_in_one_line(where: str, name: str | None, says: str) -> None:
    with pytest.raises(BadFile) as raised:
        read_bridge(where, name)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_another_accounts_file_and_another_name_are_refused(make: Make) -> None:
    core = make("core")
    with pytest.raises(BadFile, match="`s2m3 broker add DIR bridge NAME`"):
        read_bridge(str(core.client_folder("operator")))
    with pytest.raises(BadFile, match="of the name south"):
        read_bridge(account(core), "south")
    assert read_bridge(str(core.client_folder("north"))).name == "north"  # its folder is enough


def test_no_site_has_the_prefix_of_the_sites_at_a_core(make: Make) -> None:
    with pytest.raises(BadFile, match="--site: must not begin with sites/"):
        make("site", site="sites/north")
