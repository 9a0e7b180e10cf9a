"""Rights follow from the topic table: nobody writes in another's name, and no topic is forgotten."""

from __future__ import annotations

from functools import reduce

import pytest
from paho.mqtt.client import topic_matches_sub

from broker.protocol.errors import BadFile
from broker.protocol.topics import RESULTS, TOPICS, Topic, prefix_of, requests_filter, share_group_filter
from broker.servers.access import DROPPED, ORCHESTRATOR_ID, WORDS, Account, Role, require_outside, rights_of
from edge_agent import wire
from edge_agent.device import broker_drops
from orchestrator.membership.doubts import OWN_CHECK
from orchestrator.wire import control_filters, standby_filters

P = prefix_of()
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
        assert "own-name" in each.split("/") or (role is Role.DEVICE and topic is RESULTS)


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
    assert OWN_CHECK == ORCHESTRATOR_ID


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
        ("observer", "o", {"tasks": ("classify",)}, "has no tasks"),
        ("sensor", "cam", {"reads": ("x",)}, "can't have topics of its own"),
    ],
)
def test_an_account_that_cant_be_is_refused(role: str, name: str, more: dict[str, tuple[str, ...]], says: str) -> None:
    with pytest.raises(BadFile, match=says):
        Account(Role(role), name, **more)


@pytest.mark.parametrize("filter_", ["frigate/#", "+/x", "home", "s2m3x/#", "/s2m3/v1/x", "s2m3/v2/#"])
def test_sources_may_read_and_write_outside_the_site(filter_: str) -> None:
    require_outside((filter_,), P)


@pytest.mark.parametrize(
    "filter_",
    ["#", "+/#", "s2m3/#", "s2m3/+/tasks/+/requests/+/+", "+/v1/x", "s2m3/v1/tasks/x", "$SYS/#", "$share/g/frigate/#"],
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
    return any(topic_matches_sub(each, f"{P}/{example}") for each in getattr(rights_of(account, P), side))
