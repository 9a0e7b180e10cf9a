"""Two real Mosquittos, set up by ``s2m3 broker init`` and joined by its bridge: what crosses, and what a cut costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from broker.protocol.topics import BRIDGE_STATE, TOPICS, Topic
from broker.servers import site_setup
from broker.servers.access import Account, Role
from broker.servers.bridge import read_bridge
from tests.patience import until
from tests.secured import Peer, SecuredSite

P = "s2m3/v1"
NORTH, ALL = f"sites/north/{P}", f"sites/all/{P}"
ACCOUNTS = (Account(Role.OPERATOR, "operator"), Account(Role.BRIDGE, "north"))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredSite]:
    """The core's broker, and a witness there."""
    with SecuredSite(tmp_path_factory.mktemp("core") / "site", ACCOUNTS) as running:
        running.add_witness()
        yield running


@pytest.fixture(scope="module")
def site(core: SecuredSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredSite]:
    """The broker of the site ``north``, and a witness there."""
    bridge = read_bridge(str(core.folder("north")))
    with SecuredSite(tmp_path_factory.mktemp("north") / "site", ACCOUNTS[:1], bridge=bridge) as running:
        running.add_witness()
        yield running


def joined(core: SecuredSite, state: str = "1") -> None:
    """Wait until the core says so of the bridge."""
    until(lambda: kept(core).get(f"{NORTH}/bridge/state") == state)


def kept(broker: SecuredSite) -> dict[str, str]:
    """The retained messages of a broker."""
    with broker.witness() as looking:
        looking.subscribe("#")
        looking.publish("end/of", "what is kept")  # after what is kept, for one connection's messages are sent in turn
        looking.wait_for("what is kept")
        return {topic: payload.decode() for topic, payload in looking.all() if topic != "end/of"}


def is_joined(core: Peer, site: str) -> bool:
    return f"sites/{site}/{P}/bridge/state" in core.topics()


def example(topic: Topic) -> str:
    return topic.template.format(**dict.fromkeys(topic.fields, "x"))


def test_only_reports_go_up_and_only_orders_come_down(core: SecuredSite, site: SecuredSite) -> None:
    joined(core)
    with core.witness() as above, site.witness() as below:
        for each in (above, below):
            each.subscribe("#")
        for topic in TOPICS:
            below.publish(f"{P}/{example(topic)}", f"up {topic.template}")
            for prefix in (P, ALL, NORTH):
                if topic is not BRIDGE_STATE:
                    above.publish(f"{prefix}/{example(topic)}", f"down {prefix} {topic.template}")
        below.publish(f"{P}/devices/last/events", "the last that goes up")
        above.publish(f"{NORTH}/tasks/last/spec", "the last that comes down")
        above.wait_for("the last that goes up")
        below.wait_for("the last that comes down")
        for topic in TOPICS:
            expected = [f"{NORTH}/{example(topic)}"] * (topic.crosses == "up")
            assert above.heard(f"up {topic.template}") == expected
            for prefix in (ALL, NORTH):
                expected = [f"{P}/{example(topic)}"] * (topic.crosses == "down")
                assert below.heard(f"down {prefix} {topic.template}") == expected
            assert below.heard(f"down {P} {topic.template}") == []  # what a core that is a site deploys for itself


def test_a_cut_loses_no_order_no_end_of_a_state_and_no_event(core: SecuredSite, site: SecuredSite) -> None:
    joined(core)
    with core.witness() as above, site.witness() as below:
        for task in ("stays", "changes", "ends"):
            above.publish(f"{ALL}/tasks/{task}/spec", "1", retain=True)
            below.publish(f"{P}/tasks/{task}/route", "1", retain=True)
        until(lambda: f"{P}/tasks/ends/spec" in kept(site))
    site.stop()
    joined(core, "0")
    with core.witness() as above:
        above.publish(f"{ALL}/tasks/ends/spec", b"", retain=True)
        above.publish(f"{ALL}/tasks/changes/spec", "2", retain=True)
        above.publish(f"{NORTH}/tasks/begins/spec", "1", retain=True)
    site.start()
    wanted = {f"{P}/tasks/{name}/spec": said for name, said in {"stays": "1", "changes": "2", "begins": "1"}.items()}
    until(lambda: {topic: said for topic, said in kept(site).items() if topic.endswith("/spec")} == wanted)
    core.stop()
    with site.witness() as below:
        below.publish(f"{P}/tasks/ends/route", b"", retain=True)
        below.publish(f"{P}/tasks/changes/route", "2", retain=True)
        below.publish(f"{P}/devices/gw-a/summary", "2", retain=True)
        for number in range(50):  # more than may be without an acknowledgement
            below.publish(f"{P}/devices/gw-a/events", f"event {number}")
    core.start()
    with core.witness() as above:
        above.subscribe(f"{NORTH}/devices/gw-a/events")
        above.wait_for("event 49")
        assert [payload for _, payload in above.all()] == [f"event {number}".encode() for number in range(50)]
    found = kept(core)
    routes = {topic: said for topic, said in found.items() if topic.endswith("/route")}
    assert routes == {f"{NORTH}/tasks/stays/route": "1", f"{NORTH}/tasks/changes/route": "2"}
    assert found[f"{NORTH}/devices/gw-a/summary"] == "2"


def test_nothing_goes_round_between_brokers_that_are_each_others_core(tmp_path: Path) -> None:
    with ExitStack() as stack:
        brokers = {}
        for name, other in (("east", "west"), ("west", "east")):
            accounts = (Account(Role.OPERATOR, "operator"), Account(Role.BRIDGE, other))
            brokers[name] = SecuredSite(tmp_path / name, accounts)
        for name, other in (("east", "west"), ("west", "east")):
            site_setup.join(brokers[name].setup, read_bridge(str(brokers[other].folder(name))))
        peers: dict[str, Peer] = {}
        for name, broker in brokers.items():
            stack.enter_context(broker)
            broker.add_witness()
            peers[name] = stack.enter_context(broker.witness())
            peers[name].subscribe("#")
        for other, peer in (("west", peers["east"]), ("east", peers["west"])):
            until(partial(is_joined, peer, other))
        peers["east"].publish(f"{ALL}/tasks/t/spec", "order", retain=True)
        peers["east"].publish(f"{P}/devices/gw-a/state", "report", retain=True)
        peers["west"].wait_for("order")
        peers["west"].wait_for("report")
        for name, other in (("east", "west"), ("west", "east")):  # after all that the first two could cause, both ways
            peers[name].publish(f"{P}/devices/last/events", f"last of {name}")
            peers[other].wait_for(f"last of {name}")
        assert peers["east"].heard("order") == [f"{ALL}/tasks/t/spec"]
        assert peers["west"].heard("order") == [f"{P}/tasks/t/spec"]
        assert peers["east"].heard("report") == [f"{P}/devices/gw-a/state"]
        assert peers["west"].heard("report") == [f"sites/east/{P}/devices/gw-a/state"]
