"""Rights follow from the topic table: nobody writes in another's name, and no topic is forgotten."""

from __future__ import annotations

from functools import reduce

import pytest
from paho.mqtt.client import topic_matches_sub

from broker.protocol.errors import BadFile
from broker.protocol.topics import (
    RESULTS,
    SOURCE_ANSWER,
    SOURCES_RUNNING,
    SOURCES_SPARE,
    SOURCES_STATE,
    TOPICS,
    Topic,
    prefix_of,
    requests_filter,
    share_group_filter,
)
from broker.servers.access import DROPPED, WORDS, Account, Role, crossing, require_outside, rights_of
from edge_agent import wire
from edge_agent.device import broker_drops
from orchestrator.wire import control_filters, standby_filters

P = prefix_of()
OF_THE_PROCESS = (SOURCES_STATE, SOURCES_RUNNING, SOURCES_SPARE)
SENSOR = Account(Role.SENSOR, "cam-1", ("classify", "vqa"))
DEVICE = Account(Role.DEVICE, "gw-a")


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.template)
def test_each_direction_of_the_table_is_a_word_of_a_role(topic: Topic) -> None:
    words = reduce(frozenset.union, WORDS.values(), frozenset({"all"}))
    for side in (topic.writer, topic.reader):
        assert set(side.split(", ")) <= words, "give the new word to a role in broker/servers/access.py"
    for side in ("publish", "receive"):
        roles = [role for role in Role if _has(Account(role, role.value), side, topic)]
        assert roles, f"no role may {side} {topic.template}"


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.template)
@pytest.mark.parametrize("role", [Role.SENSOR, Role.DEVICE, Role.SOURCES, Role.HTTP])
def test_what_these_roles_write_has_their_own_name_in_it(role: Role, topic: Topic) -> None:
    written = [each for each in rights_of(Account(role, "own-name"), P).publish if each in _forms(topic, "own-name")]
    for each in written:
        is_answer = role is Role.DEVICE and topic is RESULTS
        is_of_all_sources = role is Role.SOURCES and topic in {SOURCE_ANSWER, *OF_THE_PROCESS}
        assert "own-name" in each.split("/") or is_answer or is_of_all_sources


def test_a_sensor_asks_its_tasks_in_its_own_name_and_reads_its_answers_and_their_routes() -> None:
    rights = rights_of(SENSOR, P)
    assert rights.publish == (f"{P}/tasks/classify/requests/cam-1/+", f"{P}/tasks/vqa/requests/cam-1/+")
    routes = (f"{P}/tasks/classify/route", f"{P}/tasks/vqa/route")
    assert rights.subscribe == (f"{P}/orchestrator/state", *routes, f"{P}/clients/cam-1/results/#")
    assert rights.receive == rights.subscribe


def test_a_device_reads_requests_in_a_share_group_only_and_of_its_tasks_only() -> None:
    rights = rights_of(Account(Role.DEVICE, "gw-b", ("classify",)), P)
    assert [each for each in rights.subscribe if "requests" in each] == [f"$share/+/{P}/tasks/classify/requests/#"]
    assert [each for each in rights.receive if "requests" in each] == [f"{P}/tasks/classify/requests/#"]


@pytest.mark.parametrize("site", [None, "plant-4"])
def test_an_agent_may_subscribe_to_all_that_it_reads(site: str | None) -> None:
    prefix = prefix_of(site)
    allowed = rights_of(DEVICE, prefix).subscribe
    wanted = [*wire.control_filters(prefix, "gw-a"), *wire.data_filters(prefix, "gw-a"), broker_drops.TOPIC]
    assert set(wanted) <= set(allowed)
    assert share_group_filter(prefix, "classify", 3, 1).split("/", 2)[2] in {
        each.split("/", 2)[2] for each in allowed if each.startswith("$share/+/") and "+/requests" not in each
    } | {f"{prefix}/tasks/classify/requests/#"}
    assert f"$share/+/{prefix}/tasks/+/requests/#" in allowed
    assert broker_drops.TOPIC == DROPPED


def test_an_orchestrator_may_subscribe_to_all_that_it_reads() -> None:
    allowed = rights_of(Account(Role.ORCHESTRATOR, "orchestrator"), P).subscribe
    assert {*control_filters(P), *standby_filters(P), requests_filter(P)} <= set(allowed)


@pytest.mark.parametrize(
    ("account", "logins"),
    [
        (DEVICE, {"gw-a": "s2m3.plant-4.devices.gw-a.control", "gw-a-data": "s2m3.plant-4.devices.gw-a.data"}),
        (SENSOR, {"cam-1": "cam-1"}),
        (Account(Role.OBSERVER, "grafana"), {"grafana": "grafana"}),
        (Account(Role.OPERATOR, "operator"), {"operator": None}),
        (Account(Role.ORCHESTRATOR, "orchestrator"), {"orchestrator": None}),
    ],
)
def test_each_login_is_bound_to_one_client_id_but_those_of_the_trusted(
    account: Account, logins: dict[str, str | None]
) -> None:
    assert account.logins("plant-4") == logins


@pytest.mark.parametrize(
    ("role", "name", "more", "says"),
    [
        ("sensor", "Cam", {}, "is not a valid id"),
        ("sensor", "cam/1", {}, "is not a valid id"),
        ("sensor", "cam-1\n", {}, "is not a valid id"),
        ("sensor", "", {}, "is not a valid id"),
        ("sensor", "cam", {"tasks": ("+",)}, "its task is not a valid id"),
        ("device", "orchestrator", {}, "has the name of the orchestrator"),
        ("bridge", "all", {}, "means no single site"),
        ("observer", "o", {"tasks": ("classify",)}, "has no tasks"),
        ("sensor", "cam", {"reads": ("x",)}, "can't have topics of its own"),
    ],
)
def test_an_account_that_cant_be_is_refused(role: str, name: str, more: dict[str, tuple[str, ...]], says: str) -> None:
    with pytest.raises(BadFile, match=says):
        Account(Role(role), name, **more)


def test_sources_read_their_specs_and_what_home_assistant_is_told_of_and_no_pictures_of_others() -> None:
    rights = rights_of(Account(Role.SOURCES, "sources", reads=("frigate/#",), writes=("home/#",)), P)
    own = tuple(f"{P}/sources/{each}" for each in ("state", "running", "spare", "+/answer"))
    assert rights.publish == (f"{P}/tasks/+/requests/sources/+", *own, "home/#")
    of_devices = (f"{P}/devices/+/standing", f"{P}/devices/+/summary")
    of_tasks = (f"{P}/orchestrator/state", f"{P}/tasks/+/route")
    of_sources = tuple(f"{P}/sources/{each}" for each in ("state", "spare", "+/spec", "+/answer"))
    assert set(rights.receive) == {*of_devices, *of_tasks, f"{P}/clients/sources/results/#", *of_sources, "frigate/#"}
    assert rights.subscribe == rights.receive


def test_a_dashboard_sees_asks_and_drains_and_deploys_nothing() -> None:
    rights = rights_of(Account(Role.DASHBOARD, "screen"), P)
    assert rights.publish == (f"{P}/devices/+/drain", f"{P}/tasks/+/requests/screen/+")
    seen = rights_of(Account(Role.OBSERVER, "screen"), P).receive
    assert set(rights.receive) - set(seen) == {f"{P}/clients/screen/results/#"}
    assert Account(Role.DASHBOARD, "screen").logins(None) == {"screen": "screen"}


def test_an_observer_may_have_topics_outside_the_site_such_as_those_of_home_assistant() -> None:
    account = Account(Role.OBSERVER, "homeassistant", reads=("homeassistant/#",), writes=("homeassistant/#",))
    rights = rights_of(account, P)
    assert rights.publish == ("homeassistant/#",)
    assert {f"{P}/sources/+/answer", f"{P}/devices/+/summary", "homeassistant/#"} <= set(rights.subscribe)


def test_a_bridge_writes_what_crosses_below_its_own_name_and_reads_what_the_core_deploys() -> None:
    account = Account(Role.BRIDGE, "north")
    rights, own = rights_of(account, prefix_of("hq")), "sites/north/s2m3/v1"
    assert set(rights.publish) == {f"{own}/bridge/state", *crossing(own, "up")}
    assert rights.subscribe == rights.receive == ("sites/all/s2m3/v1/tasks/+/spec", f"{own}/tasks/+/spec")
    assert (account.logins("hq"), account.site("hq")) == ({"north": "north"}, "sites/north")


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.template)
def test_only_orders_go_down_and_only_reports_go_up_a_bridge(topic: Topic) -> None:
    """A topic without a JSON message is a request, tensors, or none of a core's business."""
    assert topic.crosses == "" or topic.message is not None
    assert topic.crosses != "up" or {"observer", "all"} & set(topic.reader.split(", "))
    assert topic.crosses != "up" or topic.qos == 1  # a bridge keeps nothing else while its link is away
    assert topic.crosses != "down" or "operator" in topic.writer


def test_only_an_operator_deploys_to_bridged_sites_and_an_observer_sees_what_they_tell() -> None:
    bridged = prefix_of("sites/+")
    operator, observer = (rights_of(Account(role, "x"), P) for role in (Role.OPERATOR, Role.OBSERVER))
    assert [each for each in operator.publish if each.startswith("sites/")] == [f"{bridged}/tasks/+/spec"]
    assert not [each for each in observer.publish if each.startswith("sites/")]
    for rights in (operator, observer):
        assert {f"{bridged}/bridge/state", *crossing(bridged, "up"), f"{bridged}/tasks/+/spec"} <= set(rights.receive)
    others = set(Role) - {Role.OPERATOR, Role.OBSERVER, Role.DASHBOARD, Role.BRIDGE}
    assert not [r for r in others for side in rights_of(Account(r, r), P).__dict__.values() if "sites/" in str(side)]


@pytest.mark.parametrize("filter_", ["frigate/#", "+/x", "home", "s2m3x/#", "/s2m3/v1/x", "s2m3/v2/#"])
def test_sources_may_read_and_write_outside_the_site(filter_: str) -> None:
    require_outside((filter_,), P)


@pytest.mark.parametrize(
    "filter_",
    [
        "sites/#",
        "sites/all/s2m3/v1/tasks/+/spec",
        "+/+/s2m3/v1/devices/x/state",
        "#",
        "+/#",
        "s2m3/#",
        "s2m3/+/tasks/+/requests/+/+",
        "+/v1/x",
        "s2m3/v1/tasks/x",
        "$SYS/#",
        "$share/g/frigate/#",
    ],
)
def test_sources_may_not_name_topics_of_the_site_or_of_the_broker(filter_: str) -> None:
    with pytest.raises(BadFile, match="can match topics of this site"):
        require_outside((filter_,), P)


@pytest.mark.parametrize("filter_", ["", "a/#/b", "a+", "a/b#", "x\0y", "x" * 2000])
def test_what_is_no_filter_is_refused(filter_: str) -> None:
    with pytest.raises(BadFile, match="isn't an MQTT topic filter"):
        require_outside((filter_,), P)


def _forms(topic: Topic, name: str) -> set[str]:
    """The filters that a role can have of a topic."""
    return {topic.filter(P, **dict.fromkeys(fields, name)) for fields in ((), ("client",), ("device",), ("sender",))}


def _has(account: Account, side: str, topic: Topic) -> bool:
    example = topic.template.format(**dict.fromkeys(topic.fields, account.name))
    return any(
        topic_matches_sub(each, f"{prefix_of(account.site(None))}/{example}")
        for each in getattr(rights_of(account, P), side)
    )
