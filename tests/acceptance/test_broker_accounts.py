"""``s2m3 broker init``, ``add``, ``revoke`` and ``rotate``, and the broker that they change: running or stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client
from broker.protocol.client_ids import client_id
from broker.protocol.errors import BrokerRefused, NotConnected
from broker.servers.access import Account, Role
from broker.servers.ports import HOST, free_port
from broker.transport.connection import connection_file, read_connection
from tests.patience import PATIENCE_S, until
from tests.secured import Peer, SecuredSite

ACCOUNTS = (
    Account(Role.OPERATOR, "operator"),
    Account(Role.DEVICE, "gw-a"),
    Account(Role.SENSOR, "cam-1", ("classify",)),
)
REQUESTS = "s2m3/v1/tasks/classify/requests/#"
REQUEST = "s2m3/v1/tasks/classify/requests/cam-1/1"
CONTROL_ID, DATA_ID = (client_id("devices", "gw-a", name) for name in ("control", "data"))
Cli = Callable[..., str]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SecuredSite]:
    """A secured broker of this test's own."""
    with SecuredSite(tmp_path / "site", ACCOUNTS) as running:
        yield running


@pytest.fixture
def s2m3(exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``s2m3 broker …``; returns what it printed."""

    def run(*arguments: object, expect: int = 0) -> str:
        capsys.readouterr()
        assert exit_code(["broker", *map(str, arguments)]) == expect
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def agent(site: SecuredSite, *, data: bool = False) -> Peer:
    return Peer(site, "gw-a", login=site.login("gw-a", data=data), client_id=DATA_ID if data else CONTROL_ID)


def test_the_python_client_raises_why_the_broker_refuses_it(site: SecuredSite) -> None:
    account = read_connection(connection_file(site.folder("cam-1") / "connection.yaml"))
    without = {"user": None, "password": None, "password_file": None}
    wrong: dict[str, tuple[dict[str, Any], str | None]] = {
        "it doesn't take the user cam-1 with this password": ({"password": "no", "password_file": None}, None),
        "or not with the client id cam-9": ({}, "cam-9"),
        "it wants a login": (without, None),
        "wants a certificate of this client": ({"cert": None, "key": None}, None),
    }
    for sentence, (changed, name) in wrong.items():
        with Client(replace(account, **changed), client_id=name) as client, pytest.raises(NotConnected) as raised:
            client.ask("classify", image=b"\xff\xd8\xff", deadline_s=100 * PATIENCE_S)
        assert sentence in str(raised.value)
    with Client(account) as client, pytest.raises(BrokerRefused, match=r"requests/cam-1/.*Not authorized") as refused:
        client.ask("zero-shot", image=b"\xff\xd8\xff", deadline_s=100 * PATIENCE_S)
    assert "zero-shot" in refused.value.topic


def test_init_writes_a_setup_whose_broker_starts_and_lets_its_clients_in(tmp_path: Path, s2m3: Cli) -> None:
    port = free_port()
    where = ("--host", HOST, "broker.lan", "--bind", HOST, "--port", port)
    folder = tmp_path / "site"
    printed = s2m3(
        "init", folder, "--device", "gw-a", "--device", "gw-b", "--sensor", "cam-1=classify,zero-shot", *where
    )
    for name in ("orchestrator", "operator", "gw-a", "gw-b", "cam-1"):
        assert name in printed
        assert (folder / "clients" / name / "connection.yaml").is_file()
    assert re.search(r"authority's ends on \d{4}-\d\d-\d\d, the broker's on", printed)
    assert "password" not in printed
    assert "isn't an empty folder" in s2m3("init", folder, "--device", "gw-c", expect=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "GW"), "is not a valid id"),
        (("--device", "gw-a", "--sensor", "gw-a-data"), "the user name gw-a-data is taken"),
        (("--sensor", "gw-a-data", "--device", "gw-a"), "the user name gw-a-data is taken"),
        (("--device", "gw-a", "--host", "a b"), "--host"),
        (("--observer", "o=classify"), "has no tasks"),
        (("--plugin", "/nowhere/plugin.so"), "/nowhere/plugin.so"),
        (("--run-as", "nobody-of-this-name"), "nobody-of-this-name: isn't a user of this machine"),
    ],
)
def test_a_wrong_argument_is_told_and_writes_nothing(
    tmp_path: Path, s2m3: Cli, arguments: tuple[str, ...], says: str
) -> None:
    assert says in s2m3("init", tmp_path / "site", *arguments, expect=2)
    assert list(tmp_path.iterdir()) == []


def test_an_account_is_added_to_a_running_broker_and_to_a_stopped_one(site: SecuredSite, s2m3: Cli) -> None:
    printed = s2m3("add", site.setup.folder, "sensor", "cam-2=classify")
    assert "the running broker made the change" in printed
    with Peer(site, "cam-2") as added:
        assert added.refused is None
        assert added.publish(REQUEST.replace("cam-1", "cam-2"), "x") in {"Success", "No matching subscribers"}
        assert added.publish(REQUEST, "x") == "Not authorized"
    assert "the user name cam-2 is taken" in s2m3("add", site.setup.folder, "sensor", "cam-2", expect=2)
    site.stop()
    assert "the broker isn't running" in s2m3(
        "add", site.setup.folder, "sources", "--read", "frigate/#", "--write", "home/#"
    )
    site.start()
    for name in ("sources", "cam-2"):  # what the running broker wrote outlives it, too
        with Peer(site, name) as added:
            assert added.refused is None
    with Peer(site, "sources") as sources:
        assert sources.subscribe("frigate/#") == "Granted QoS 1"
        assert sources.publish("home/door/who", "x") in {"Success", "No matching subscribers"}


def test_a_revoked_accounts_connections_end_at_once_and_it_cant_come_back(
    site: SecuredSite, s2m3: Cli, tmp_path: Path
) -> None:
    stolen = shutil.copytree(site.folder("gw-a"), tmp_path / "stolen")
    with agent(site) as control, agent(site, data=True) as data, Peer(site, "cam-1") as other:
        assert (control.refused, data.refused) == (None, None)
        printed = s2m3("revoke", site.setup.folder, "gw-a")
        assert "gw-a revoked, and its folder removed; the running broker made the change" in printed
        assert control.lost.wait(PATIENCE_S)
        assert data.lost.wait(PATIENCE_S)
        assert other.publish(REQUEST, "x") in {"Success", "No matching subscribers"}
    assert not site.folder("gw-a").exists()
    stolen.rename(site.folder("gw-a"))  # its certificate and its passwords, as its box still has them
    for both in (False, True):
        with agent(site, data=both) as again:
            assert again.refused == "Not authorized"
    with Peer(site, "gw-a", login=site.login("cam-1"), client_id=CONTROL_ID) as borrowed:
        assert borrowed.refused == "Not authorized"  # the certificate gives it no name
    site.stop()
    site.start()
    with agent(site) as again:
        assert again.refused == "Not authorized"
    assert "account 'gw-a': isn't there" in s2m3("revoke", site.setup.folder, "gw-a", expect=2)


@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_the_session_that_a_stolen_box_left_at_a_front_door_takes_no_requests_any_more(
    site: SecuredSite, s2m3: Cli, command: str
) -> None:
    s2m3("add", site.setup.folder, "device", "gw-b")
    own, front_door = client_id("devices", "gw-b", "control"), f"$share/classify-1-1/{REQUESTS}"
    for both in (False, True):
        bound = DATA_ID if both else CONTROL_ID
        stolen = Peer(site, "gw-a", login=site.login("gw-a", data=both), client_id=bound, keeps_session=True)
        with stolen:
            assert stolen.subscribe(front_door) == "Granted QoS 1"
    s2m3(command, site.setup.folder, "gw-a")
    with Peer(site, "gw-b", client_id=own) as honest, Peer(site, "cam-1") as sensor:
        assert honest.subscribe(front_door) == "Granted QoS 1"
        asked = [f"request {number}" for number in range(6)]
        for request in asked:
            assert sensor.publish(REQUEST, request) == "Success"
        for request in asked:
            honest.wait_for(request)


def test_a_name_that_is_given_again_has_nothing_of_its_old_rights(site: SecuredSite, s2m3: Cli) -> None:
    s2m3("revoke", site.setup.folder, "cam-1")
    s2m3("add", site.setup.folder, "observer", "cam-1")
    with Peer(site, "cam-1") as again:
        assert again.refused is None
        assert again.publish(REQUEST, "x") == "Not authorized"
        assert again.subscribe("s2m3/v1/devices/+/heartbeat") == "Granted QoS 1"


def test_new_passwords_end_the_old_ones_at_once(site: SecuredSite, s2m3: Cli) -> None:
    old, old_data = site.login("gw-a"), site.login("gw-a", data=True)
    with agent(site) as control, agent(site, data=True) as data:
        assert "the running broker made the change" in s2m3("rotate", site.setup.folder, "gw-a")
        assert control.lost.wait(PATIENCE_S)
        assert data.lost.wait(PATIENCE_S)
    for login, bound in ((old, CONTROL_ID), (old_data, DATA_ID)):
        with Peer(site, "gw-a", login=login, client_id=bound) as late:
            assert late.refused == "Not authorized"
    for both in (False, True):
        with agent(site, data=both) as again:
            assert again.refused is None
    site.stop()
    assert "the broker isn't running" in s2m3("rotate", site.setup.folder, "gw-a")
    site.start()
    with agent(site) as again:
        assert again.refused is None


def test_a_new_certificate_of_the_broker_is_used_after_sighup(site: SecuredSite, s2m3: Cli) -> None:
    def presented() -> str:
        return ssl.get_server_certificate((HOST, site.port), ca_certs=str(site.setup.folder / "ca.crt"))

    before = presented()
    assert "send SIGHUP to Mosquitto" in s2m3("rotate", site.setup.folder, "--broker-certificate")
    assert presented() == before
    os.kill(site.pid, signal.SIGHUP)
    until(lambda: presented() != before)
    with Peer(site, "cam-1") as client:
        assert client.refused is None


def test_something_else_at_the_brokers_port_is_told_and_changes_nothing(
    site: SecuredSite, s2m3: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.transport.dial.HANDSHAKE_S", 1.0)  # there is no handshake
    site.stop()
    before = site.setup.plugin_file.read_bytes()
    with socket.create_server((HOST, site.port)):
        s2m3("add", site.setup.folder, "sensor", "cam-9", expect=1)
    assert site.setup.plugin_file.read_bytes() == before
    assert not site.folder("cam-9").exists()
    assert "account 'cam-9': isn't there" in s2m3("revoke", site.setup.folder, "cam-9", expect=2)


def test_where_strangers_hold_all_connections_the_command_says_how_an_account_is_revoked(
    tmp_path: Path, s2m3: Cli
) -> None:
    with SecuredSite(tmp_path / "site", ACCOUNTS) as site, contextlib.ExitStack() as strangers:
        site.stop()
        text = site.setup.configuration.read_text()
        site.setup.configuration.write_text(text.replace("max_connections 1000", "max_connections 2"))
        site.start()
        for _ in range(2):
            strangers.enter_context(socket.create_connection((HOST, site.port)))
        said = s2m3("revoke", site.setup.folder, "gw-a", expect=1)
        assert "nothing changed; if it takes no more connections, stop it and repeat this" in said
        site.stop()
        assert "gw-a revoked" in s2m3("revoke", site.setup.folder, "gw-a")


def test_the_broker_refuses_tls_before_1_2_and_connections_without_tls(site: SecuredSite) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(site.setup.folder / "ca.crt")
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((HOST, site.port)) as plain,
        pytest.raises(ssl.SSLError, match="alert protocol version"),
    ):
        context.wrap_socket(plain, server_hostname=HOST)
    with socket.create_connection((HOST, site.port)) as plain, contextlib.suppress(ConnectionResetError):
        plain.settimeout(PATIENCE_S)
        plain.sendall(bytes.fromhex("101000044d5154540502003c000003616263"))  # CONNECT
        assert plain.recv(1) in {b"", b"\x15"}  # the end, or a TLS alert


def test_many_changes_of_accounts_cost_the_broker_nothing(site: SecuredSite, s2m3: Cli) -> None:
    """With `memory_limit`, Mosquitto 2.0.11 disconnects every client after the second change."""
    for number in range(4):
        s2m3("add", site.setup.folder, "sensor", f"new-{number}")
    with Peer(site, "cam-1") as client:
        assert client.refused is None
        assert client.publish(REQUEST, "x") in {"Success", "No matching subscribers"}
    assert "out of memory" not in site.log.read_text()
