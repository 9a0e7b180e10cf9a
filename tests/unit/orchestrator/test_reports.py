"""The leader's reports for people: standings, statuses and events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from broker.protocol import topics
from broker.protocol.codec import decode
from broker.protocol.errors import MessageTooLarge
from broker.protocol.messages import DeviceState
from broker.protocol.reports import (
    MAX_UNKNOWN_TASKS,
    UNDELIVERED,
    Standing,
    SystemEvent,
    TaskStatus,
    UnansweredRequests,
)
from broker.protocol.specs import TaskSpec
from broker.transport.port import LinkDown, LinkUp, Outgoing
from orchestrator import reports
from orchestrator.events import (
    DeviceStateReceived,
    DrainReceived,
    Event,
    ForgetReceived,
    HeartbeatReceived,
    RequestReceived,
    RequestUnanswerable,
    RetainedRouteReceived,
    RevisionReceived,
    TaskDeployed,
    TaskRejected,
    TaskUndeployed,
    Tick,
)
from orchestrator.leadership.orders import NO_ORDERS, Orders
from orchestrator.reports import Reports, When
from orchestrator.state import initial
from orchestrator.unsent import Unsent
from tests.builders import PREFIX, chain, module, obedient, offline, online, profile
from tests.planned import decide_and_plan

SINCE_1970_S = 1_000_000.0
VISION = module("vision", memory_bytes=60)
TASK = chain("classify", VISION)
SPECS = [chain("classify", VISION, weight=1.0 + number) for number in range(7)]


class Site:
    """A leader with its reports, and devices that do what they are assigned; time passes only in ``pass_s``."""

    def __init__(
        self, *devices: str, orders: Orders = NO_ORDERS, too_large: Mapping[str, MessageTooLarge] = {}
    ) -> None:
        self.state, self.now_s, self.seq = initial(epoch=1, orders=orders), 0.0, 0
        self.reports = Reports(PREFIX, too_large)
        self.told: list[Outgoing] = []
        self.feed(LinkUp(1))
        for device in devices:
            self.born(device)
        self.pass_s(1.5)

    def unanswered(self) -> dict[str, dict[str, int]]:
        topic = topics.ORCHESTRATOR_UNANSWERED.at(PREFIX)
        last = [each for each in self.told if each.topic == topic][-1]
        return decode(UnansweredRequests, last.payload).unanswerable

    def feed(self, event: Event) -> None:
        before = self.state
        self.state, actions = decide_and_plan(before, event, self.now_s)
        self.told += self.reports.on_event(before, event, self.state, actions, self.when)

    @property
    def when(self) -> When:
        return When(self.now_s, SINCE_1970_S + self.now_s)

    def born(self, device: str, session: int = 1) -> None:
        self.feed(DeviceStateReceived(device, online(session, profile(memory_bytes=100))))
        self.heartbeat(device, session)

    def heartbeat(self, device: str, session: int = 1, **fields: Any) -> None:
        self.seq += 1
        said = self.state.assignments.get(device)
        self.feed(HeartbeatReceived(device, obedient(said, self.seq, session, **fields)))

    def pass_s(self, seconds: float, *living: str) -> None:
        """Time goes, a heartbeat's interval at a time; the living devices send theirs."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(until_s, self.now_s + 1.0)
            for device in living:
                self.heartbeat(device)
            self.feed(Tick())
            self.told += self.reports.sweep(self.state, self.when)

    def deploy(self, spec: TaskSpec = TASK) -> None:
        self.feed(TaskDeployed(spec))

    def standings(self, device: str) -> list[Standing]:
        name = topics.DEVICE_STANDING.at(PREFIX, device=device)
        return [decode(Standing, told.payload) for told in self.told if told.topic == name and told.payload]

    def events(self) -> list[tuple[str, str | None, str | None]]:
        name = topics.ORCHESTRATOR_EVENTS.at(PREFIX)
        found = [decode(SystemEvent, told.payload) for told in self.told if told.topic == name]
        return [(each.type, each.device or each.task, each.why) for each in found]

    def revisions(self) -> dict[str, TaskSpec]:
        """The specs of revisions that the broker retains, by what the leader published."""
        newest = {told.topic.rpartition("/revisions/")[2]: told.payload for told in self.told if "/rev" in told.topic}
        return {name: decode(TaskSpec, payload) for name, payload in newest.items() if payload}

    def status(self) -> TaskStatus:
        name = topics.TASK_STATUS.at(PREFIX, task="classify")
        return [decode(TaskStatus, told.payload) for told in self.told if told.topic == name][-1]


def test_a_device_is_online_after_its_first_heartbeat_and_nothing_is_published_while_that_stays() -> None:
    site = Site()
    site.feed(DeviceStateReceived("a", online()))
    assert not site.standings("a"), "a retained birth may be stale"
    site.heartbeat("a")
    site.pass_s(5, "a")
    (only,) = site.standings("a")
    assert (only.standing, only.since, only.until) == ("online", SINCE_1970_S + 1.5, None)
    assert [event for event in site.events() if event[1] == "a"] == [("device_online", "a", "its heartbeats arrive")]


class Narrow:
    """A connection whose broker takes ``most`` bytes; it has what passed."""

    def __init__(self) -> None:
        self.most, self.passed = 0, list[str]()

    def publish(self, message: Outgoing) -> None:
        if message.packet_bytes > self.most:
            raise MessageTooLarge(topic=message.topic, size_bytes=message.packet_bytes, limit_bytes=self.most)
        self.passed.append(message.topic)


def test_an_assignment_that_the_broker_does_not_take_is_told_until_one_passes() -> None:
    unsent, narrow = Unsent(), Narrow()
    topic = topics.DEVICE_ASSIGNMENT.at(PREFIX, device="a")
    site = Site("a", too_large=unsent.too_large)
    for most, wanted in ((100, f"{UNDELIVERED}: it has "), (10_000, "its heartbeats arrive")):
        narrow.most = most
        unsent.add([Outgoing(topic, bytes(200), retain=True)])
        unsent.hand_over(cast("Any", narrow))
        site.pass_s(2, "a")
        assert site.standings("a")[-1].standing == "online"
        assert site.standings("a")[-1].why.startswith(wanted)
    assert narrow.passed == [topic]
    assert [kind for kind, device, _ in site.events() if device == "a"] == ["device_online"]


def test_a_device_that_is_on_only_sometimes_is_away_and_no_alarm_is_told() -> None:
    site = Site("a")
    birth = online(1, profile(memory_bytes=100)).model_copy(update={"availability": "sometimes"})
    site.feed(DeviceStateReceived("b", birth))
    site.heartbeat("b")
    site.pass_s(6, "a")  # it is silent
    site.feed(DeviceStateReceived("b", birth.model_copy(update={"session": 2})))
    site.heartbeat("b", session=2)
    site.feed(DeviceStateReceived("b", offline(2)))
    site.pass_s(2, "a")
    assert [(each.standing, each.why) for each in site.standings("b")] == [
        ("online", "its heartbeats arrive"),
        ("away", "it is on only sometimes"),
    ] * 2
    assert [kind for kind, name, _ in site.events() if name == "b"] == ["device_online", "device_away"] * 2


def test_a_power_cut_of_such_a_device_alarms_nobody_although_calls_to_it_time_out() -> None:
    site = Site("a", "c")
    birth = online(1, profile(memory_bytes=100)).model_copy(update={"availability": "sometimes"})
    site.feed(DeviceStateReceived("b", birth))
    site.heartbeat("b")
    site.pass_s(1, "a", "c")
    site.now_s += 0.2
    for coordinator in ("a", "c"):
        site.heartbeat(coordinator, suspects={"b": 0.1})
    assert site.state.cluster.devices["b"].unresponsive
    site.told += site.reports.sweep(site.state, site.when)
    site.pass_s(3, "a", "c")
    assert [each.standing for each in site.standings("b")] == ["online", "away"]


def test_a_silent_device_is_suspect_and_then_dead_and_on_probation_when_it_is_back() -> None:
    site = Site("a", "b")
    site.pass_s(6, "b")
    assert [each.standing for each in site.standings("a")] == ["online", "suspect", "dead"]
    assert "no heartbeat came for" in site.standings("a")[-1].why
    site.pass_s(5, "b")
    assert len(site.standings("a")) == 3, "the seconds of its silence grow, and that isn't news"
    site.born("a", session=2)
    back = site.standings("a")[-1]
    assert (back.standing, back.why) == ("probation", "it died once lately, and came back")
    assert back.until is not None
    assert back.until - back.since == pytest.approx(4.0, abs=1.5)
    for _ in range(8):
        site.now_s += 1.0
        site.heartbeat("a", session=2)
    assert [each.standing for each in site.standings("a")[3:]] == ["probation", "online"], "one message each"
    assert [event[0] for event in site.events() if event[1] == "a"] == [
        "device_online",
        "device_suspect",
        "device_dead",
        "device_online",
        "device_online",
    ]


def test_a_will_says_that_the_connection_ended() -> None:
    site = Site("a")
    site.feed(DeviceStateReceived("a", offline()))
    assert site.standings("a")[-1].why == "its connection ended"


def test_calls_that_time_out_make_a_device_unresponsive_and_name_who_says_so() -> None:
    site = Site("a", "b", "c")
    site.heartbeat("b", suspects={"a": 0.1})
    site.heartbeat("c", suspects={"a": 0.1})
    site.told += site.reports.sweep(site.state, site.when)
    last = site.standings("a")[-1]
    assert (last.standing, last.why) == ("unresponsive", "calls to it time out at b, c")
    assert last.until is not None
    assert last.until > SINCE_1970_S + site.now_s + 10


def test_a_drain_is_published_until_the_device_is_empty() -> None:
    site = Site("a", "b")
    site.deploy()
    site.pass_s(2, "a", "b")
    (home,) = site.state.placement.where.values()
    site.feed(DrainReceived(home, drain=True))
    site.pass_s(40, "a", "b")
    assert list(dict.fromkeys(each.standing for each in site.standings(home))) == ["online", "draining", "drained"]
    assert "an operator drains it; it unloads what it holds" in {each.why for each in site.standings(home)}
    assert site.standings(home)[-1].why == "an operator drains it"
    moved = [event for event in site.events() if event[0] in {"moved", "took_over"}]
    assert moved
    assert moved[0][2] == f"took over from {home}, which is drained"


def test_a_module_is_placed_and_moves_with_a_reason_when_its_device_dies() -> None:
    site = Site("a", "b")
    site.deploy()
    site.pass_s(1, "a", "b")
    (home,) = site.state.placement.where.values()
    (other,) = {"a", "b"} - {home}
    site.feed(DeviceStateReceived(home, offline()))
    site.pass_s(1, other)
    told = {kind: (device, why) for kind, device, why in site.events()}
    assert told["placed"][0] == home
    device, why = told["moved"]
    assert device == other
    assert str(why).startswith(f"moved from {home}, which is gone: ")
    (said,) = (m.why for m in site.state.assignments[other].modules if m.module == "vision")
    assert said == why, "the device's assignment says the same"


def test_a_deployed_task_and_one_that_is_unavailable_are_events_with_the_reason() -> None:
    site = Site()
    site.deploy()
    site.pass_s(1)
    told = {kind: (task, why) for kind, task, why in site.events()}
    assert told["task_deployed"][0] == "classify"
    assert "there are no devices" in str(told["task_unavailable"][1])
    assert told["leader_changed"]
    before = len(site.told)
    site.pass_s(5)
    assert len(site.told) == before


def test_a_status_has_the_served_revision_and_the_last_five() -> None:
    site = Site("a")
    for spec in SPECS:
        site.deploy(spec)
        site.pass_s(2, "a")
    status = site.status()
    assert status.revision == SPECS[-1].revision
    assert status.revisions == tuple(spec.revision for spec in reversed(SPECS))[:5]
    later = Site("a", orders=site.state.orders)
    later.pass_s(2, "a")
    assert later.status().revisions == status.revisions, "they outlive the leader"


def test_the_broker_retains_the_specs_of_the_last_five_revisions_and_no_others() -> None:
    site = Site("a")
    for spec in SPECS[:6]:
        site.deploy(spec)
        site.pass_s(2, "a")
    assert site.revisions() == {spec.revision: spec for spec in SPECS[1:6]}
    count = len(site.told)
    site.feed(RevisionReceived("classify", SPECS[5].revision, SPECS[5]))
    site.pass_s(5, "a")
    assert len(site.told) == count, "our own message came back"
    site.feed(TaskUndeployed("classify"))
    site.pass_s(2, "a")
    assert site.revisions() == {}


def test_a_new_link_gets_the_revisions_that_the_broker_lacks_and_loses_those_that_nobody_keeps() -> None:
    site = Site("a")
    for spec in SPECS[:3]:
        site.deploy(spec)
        site.pass_s(2, "a")
    site.feed(LinkDown("gone"))
    site.told.clear()
    site.feed(LinkUp(2))
    site.feed(RevisionReceived("classify", SPECS[0].revision, SPECS[0]))
    site.feed(RevisionReceived("classify", SPECS[1].revision, None))  # unreadable
    site.feed(RevisionReceived("classify", SPECS[6].revision, SPECS[6]))
    site.feed(RevisionReceived("other", "not-a-digest", None))
    site.heartbeat("a")
    site.pass_s(1, "a")
    assert not site.revisions(), "the orders aren't reconciled yet"
    site.pass_s(3, "a")
    assert site.revisions() == {spec.revision: spec for spec in SPECS[1:3]}
    cleared = [told.topic for told in site.told if "/revisions/" in told.topic and not told.payload]
    others = [("classify", SPECS[6].revision), ("other", "not-a-digest")]
    assert cleared == [topics.TASK_REVISION.at(PREFIX, task=task, revision=name) for task, name in others]


def test_a_revision_that_another_client_clears_is_published_again() -> None:
    site = Site("a")
    site.deploy()
    site.pass_s(2, "a")
    site.told.clear()
    site.feed(RevisionReceived("classify", TASK.revision, None, is_empty=True))
    site.pass_s(1, "a")
    assert site.revisions() == {TASK.revision: TASK}


def test_a_changed_description_is_published_under_the_same_revision() -> None:
    site = Site("a")
    site.deploy()
    site.pass_s(2, "a")
    described = TASK.model_copy(update={"description": "what a picture shows"})
    site.deploy(described)
    site.pass_s(2, "a")
    assert described.revision == TASK.revision
    assert site.revisions() == {TASK.revision: described}
    site.feed(RevisionReceived("classify", TASK.revision, TASK))  # another client's, or our own of before
    site.pass_s(2, "a")
    assert site.revisions() == {TASK.revision: described}
    assert site.status().revisions == (TASK.revision,)
    count = len(site.told)
    site.feed(RevisionReceived("classify", TASK.revision, described))
    site.pass_s(5, "a")
    assert len(site.told) == count


def test_a_status_of_an_earlier_term_is_cleared_with_the_route() -> None:
    site = Site()
    site.feed(LinkUp(2))
    site.feed(RetainedRouteReceived("classify", available=True))
    site.pass_s(3)
    assert Outgoing(topics.TASK_STATUS.at(PREFIX, task="classify"), b"", qos=1, retain=True) in site.told


def test_a_task_that_is_not_served_has_no_served_revision() -> None:
    site = Site()
    site.deploy()
    site.pass_s(1)
    assert (site.status().revision, site.status().revisions) == (None, (TASK.revision,))


def test_unanswerable_requests_are_counted_by_reason_and_told_once_a_second() -> None:
    site = Site()
    site.deploy()
    site.pass_s(1)
    before = len(site.told)
    for number in range(100):
        site.feed(RequestReceived("classify", f"{PREFIX}/clients/c/results/{number}", None, b"x"))
        site.feed(RequestReceived("anything", f"{PREFIX}/clients/c/results/{number}", None, b"x"))
    assert len(site.told) == before
    site.pass_s(1)
    assert site.status().unanswerable == {"unavailable": 100}
    assert site.unanswered() == {"anything": {"unknown": 100}}
    assert len(site.told) == before + 2, "no topic of its own for a task that isn't deployed"


def test_requests_without_a_topic_for_their_answer_are_counted_and_warned_about_once() -> None:
    site = Site()
    site.deploy()
    for _ in range(30):
        for task in ("classify", "Classify"):
            for reason in ("no_response_topic", "response_topic_not_allowed"):
                site.feed(RequestUnanswerable(task, reason))
    warned = [
        (task, why) for task in ("classify", "Classify") for why in ("no_response_topic", "response_topic_not_allowed")
    ]
    assert site.reports.take_warnings() == warned
    assert site.reports.take_warnings() == []
    site.pass_s(1)
    counted = {"no_response_topic": 30, "response_topic_not_allowed": 30}
    assert (site.status().unanswerable, site.unanswered()) == (counted, {"Classify": counted})


def test_names_that_anyone_invents_are_bounded() -> None:
    site = Site()
    for number in range(1000):
        site.feed(RequestUnanswerable(f"T{number}", "no_response_topic"))
    site.pass_s(1)
    counted = site.unanswered()
    assert len(counted) == MAX_UNKNOWN_TASKS + 1
    assert counted[""] == {"no_response_topic": 1000 - MAX_UNKNOWN_TASKS}
    assert len(site.reports.take_warnings()) == MAX_UNKNOWN_TASKS + 1


def test_a_task_is_no_unknown_name_while_its_leader_starts_or_once_it_is_deployed() -> None:
    site = Site()
    later = Site(orders=site.state.orders)
    later.feed(LinkDown("gone"))
    later.feed(LinkUp(2))
    later.feed(RequestReceived("classify", f"{PREFIX}/clients/c/results/1", None, b"x"))  # before its spec arrives
    later.feed(RequestUnanswerable("classify", "no_response_topic"))
    later.deploy()
    later.pass_s(8)
    assert all(not each.payload for each in later.told if each.topic.endswith("orchestrator/unanswered"))
    assert later.status().unanswerable == {"no_response_topic": 1}
    site.feed(RequestUnanswerable("classify", "no_response_topic"))
    site.pass_s(1)
    assert site.unanswered() == {"classify": {"no_response_topic": 1}}
    site.deploy()
    site.pass_s(2)
    assert [each.payload for each in site.told if each.topic.endswith("orchestrator/unanswered")][-1] == b""
    assert site.status().unanswerable == {"no_response_topic": 1}


def test_a_new_leader_clears_the_counts_of_the_last_one_and_tells_its_own_over_each_link() -> None:
    site = Site()
    topic = topics.ORCHESTRATOR_UNANSWERED.at(PREFIX)
    assert [each.payload for each in site.told if each.topic == topic] == [b""]
    site.feed(RequestUnanswerable("Classify", "no_response_topic"))
    site.pass_s(2)
    site.feed(LinkDown("gone"))
    site.feed(LinkUp(2))
    site.pass_s(2)
    assert len([each for each in site.told if each.topic == topic and each.payload]) == 2


def test_requests_of_a_task_whose_spec_is_wrong_are_counted_too() -> None:
    site = Site()
    site.feed(TaskRejected("classify", "its spec is wrong"))
    site.pass_s(1)
    site.feed(RequestReceived("classify", f"{PREFIX}/clients/c/results/1", None, b"x"))
    site.pass_s(1)
    assert site.status().unanswerable == {"unavailable": 1}


def test_an_undeployed_task_loses_its_status_with_its_route() -> None:
    site = Site()
    site.deploy()
    site.pass_s(1)
    site.feed(TaskUndeployed("classify"))
    assert site.told[-1] == Outgoing(topics.TASK_STATUS.at(PREFIX, task="classify"), b"", qos=1, retain=True)


def test_no_task_has_a_status_before_the_orders_are_reconciled_with_the_broker() -> None:
    site = Site()
    site.deploy()
    site.feed(LinkDown("gone"))
    site.feed(LinkUp(2))
    del site.told[:]
    site.pass_s(1)
    topic = topics.TASK_STATUS.at(PREFIX, task="classify")
    assert topic not in {each.topic for each in site.told}
    site.pass_s(1)
    assert topic in {each.topic for each in site.told}


def test_a_new_link_gets_all_standings_and_statuses_again_and_no_event_of_them() -> None:
    site = Site("a", "b")
    site.deploy()
    site.pass_s(2, "a", "b")
    site.feed(LinkDown("gone"))
    site.told.clear()
    site.feed(LinkUp(2))
    for device in ("a", "b"):
        site.heartbeat(device)
    site.pass_s(3, "a", "b")
    assert len(site.standings("a")) == len(site.standings("b")) == 1
    assert site.status().revision == TASK.revision
    assert not [event for event in site.events() if event[0].startswith("device_")]


def test_nothing_is_told_while_the_link_is_down() -> None:
    site = Site("a")
    site.feed(LinkDown("gone"))
    site.told.clear()
    site.pass_s(10)
    assert not site.told


def test_a_forgotten_device_loses_its_standing() -> None:
    site = Site("a", "b")
    site.feed(DeviceStateReceived("a", DeviceState(status="offline", session=1)))
    site.now_s += 4000
    site.heartbeat("b")
    site.pass_s(1, "b")
    cleared = [told.topic for told in site.told if not told.payload and "/devices/" in told.topic]
    assert cleared == [topics.DEVICE_STANDING.at(PREFIX, device="a")]


def test_a_heartbeat_that_changes_nothing_looks_at_its_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(*(f"d-{number}" for number in range(50)))
    looked: list[str] = []

    def counting(state: Any, device: Any, now_s: float) -> Any:
        looked.append(device.id)
        return real(state, device, now_s)

    real = reports.opinion_of
    monkeypatch.setattr(reports, "opinion_of", counting)
    site.heartbeat("d-7")
    assert looked == ["d-7"]


def test_a_forgotten_device_is_an_event_and_its_standing_is_cleared_for_good() -> None:
    site = Site("gw-a", "gw-b")
    site.feed(DeviceStateReceived("gw-a", offline(1)))
    site.told.clear()
    site.feed(ForgetReceived("gw-a"))
    assert ("device_forgotten", "gw-a", "an operator had it forgotten") in site.events()
    site.pass_s(3, "gw-b")
    name = topics.DEVICE_STANDING.at(PREFIX, device="gw-a")
    assert {told.payload for told in site.told if told.topic == name} <= {b""}
    assert not site.standings("gw-a")
