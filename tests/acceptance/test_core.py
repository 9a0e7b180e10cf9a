"""The commands at a core: they show each site as its bridge tells of it, and order at one place.

The core is a real Mosquitto as ``s2m3 broker init`` sets it up. Plain clients with the bridges' own accounts play the
sites: what they retain stays when they go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from broker.protocol.codec import encode
from broker.protocol.reports import Standing
from broker.protocol.topics import NOT_BRIDGED
from broker.servers.access import Account, Role
from broker.transport.connection import Connection, command_line, connection_file, read_connection
from s2m3.catalogue import load_task
from s2m3.dashboard.feed import Feed
from s2m3.metrics.service import Exporter
from tests.builders import encoder_route, leader, online
from tests.patience import until
from tests.secured import Peer, SecuredSite

P = "s2m3/v1"
ACCOUNTS = (
    Account(Role.OPERATOR, "operator"),
    Account(Role.BRIDGE, "north"),
    Account(Role.BRIDGE, "south"),
)
SPEC = load_task("pocket/classify")
ROUTE = encoder_route("classify", ("gw-a",), front_door=("gw-a",)).model_copy(update={"revision": SPEC.revision})
STANDING = Standing(device="gw-a", standing="online", since=0, why="it is here")
REPORTS = {
    "orchestrator/state": leader(1),
    "devices/gw-a/state": online(),
    "devices/gw-a/standing": STANDING,
    "tasks/classify/route": ROUTE,
}
Cli = Callable[..., tuple[str, Any]]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredSite]:
    """A core with two sites, of which ``south`` is cut off."""
    with SecuredSite(tmp_path_factory.mktemp("core") / "site", ACCOUNTS) as running:
        for name, state in (("north", "1"), ("south", "0")):
            with Peer(running, name) as bridge:
                for topic, message in REPORTS.items():
                    bridge.publish(f"sites/{name}/{P}/{topic}", encode(message), retain=True)
                bridge.publish(f"sites/{name}/{P}/bridge/state", state, retain=True)
        yield running


@pytest.fixture
def s2m3(core: SecuredSite, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command as the core's operator; returns its errors and its JSON."""

    def run(*arguments: str, expect: int = 0) -> tuple[str, Any]:
        capsys.readouterr()
        where = ["--json", "--connection", str(core.folder("operator") / "connection.yaml")]
        assert exit_code([*arguments, *where]) == expect
        printed = capsys.readouterr()
        return printed.err, json.loads(printed.out) if printed.out else None

    return run


def at_core(core: SecuredSite, site: str) -> Connection:
    place = connection_file(core.folder("operator") / "connection.yaml")
    return read_connection(command_line(site=f"sites/{site}"), place)


@pytest.mark.parametrize(
    ("name", "why"),
    [("north", ""), ("south", "the site's bridge is down: what is shown is from before"), ("nowhere", NOT_BRIDGED)],
)
def test_figures_and_the_page_show_a_site_while_its_bridge_is_up(core: SecuredSite, name: str, why: str) -> None:
    with closing(Exporter(at_core(core, name))) as exporter:
        down = ["the site's bridge to this core is down, or no site of this name is bridged to it"] if why else []
        until(lambda: exporter.health().get("reasons", []) == down)
        metrics = exporter.metrics("")[1].decode()
    assert f"s2m3_bridge_up {float(not why)}" in metrics
    assert ('s2m3_device_up{device="gw-a"} 1.0' in metrics) == (not why)
    with closing(Feed(at_core(core, name))) as feed:
        wanted = {"link": {"up": True, "why": ""}, "bridge": {"up": not why, "why": why}}
        until(lambda: feed.update(None).entries.items() >= wanted.items())
        until(lambda: ("device/gw-a" in feed.update(None).entries) == (name != "nowhere"))


def test_a_task_is_deployed_for_all_sites_or_for_some_and_undeployed(core: SecuredSite, s2m3: Cli) -> None:
    _, told = s2m3("deploy", "pocket/classify", "--site", "sites/all", expect=1)
    assert told["sites"]["north"]["revision"] == SPEC.revision
    assert told["sites"].keys() == {"north", "south"}  # the latter isn't reached: so the command ends with 1
    problem, _ = s2m3("deploy", "pocket/classify", "--site", "sites/north", expect=2)
    assert "is deployed for all sites; undeploy it there first: `s2m3 undeploy classify --site sites/all`" in problem
    with Peer(core, "north") as bridge:
        bridge.publish(f"sites/north/{P}/tasks/classify/route", b"", retain=True)  # the site will have undeployed it
    _, gone = s2m3("undeploy", "classify", "--site", "sites/all", expect=1)
    assert gone["sites"] == {"north": True, "south": False}


def test_a_site_that_has_not_joined_gets_its_tasks_when_it_does(s2m3: Cli) -> None:
    s2m3("deploy", "pocket/classify", "--site", "sites/west", expect=1)
    problem, _ = s2m3("deploy", "pocket/classify", "--site", "sites/all", expect=2)
    assert "is deployed for sites/west alone, too" in problem
    s2m3("undeploy", "classify", "--site", "sites/west")


def test_a_site_is_shown_until_its_account_is_revoked(
    core: SecuredSite, s2m3: Cli, exit_code: Callable[..., int]
) -> None:
    _, seen = s2m3("status", "--site", "sites/all", expect=1)
    assert {name: each["bridge"] for name, each in seen["sites"].items()} == {"north": "up", "south": "down"}
    assert exit_code(["broker", "rotate", str(core.setup.folder), "north"]) == 0
    assert exit_code(["broker", "revoke", str(core.setup.folder), "south"]) == 0
    _, seen = s2m3("status", "--site", "sites/all", expect=1)
    assert {name: each["bridge"] for name, each in seen["sites"].items()} == {"north": "down"}
    assert seen["sites"]["north"]["devices"].keys() == {"gw-a"}


def test_revisions_stay_at_the_site(s2m3: Cli) -> None:
    problem, _ = s2m3("rollback", "classify", "--site", "sites/north", expect=2)
    assert "deploy the earlier task file again" in problem
