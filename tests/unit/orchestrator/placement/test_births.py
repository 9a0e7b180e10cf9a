"""Births that come fast share one plan, and the cost of each doesn't depend on the number of devices."""

from __future__ import annotations

import sys
from types import FrameType

import pytest

from broker.protocol.messages import HeldModule
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from orchestrator.decide import decide, next_deadline_s
from orchestrator.events import (
    Action,
    DeviceStateReceived,
    Event,
    HeartbeatReceived,
    PlanFound,
    PublishAssignment,
    RequestPlan,
    TaskDeployed,
    Tick,
)
from orchestrator.placement.births import SHARE_S
from orchestrator.planner.plans import MovesProblem, PlacementProblem
from orchestrator.planner.solve import solve
from orchestrator.state import Pace, State, initial
from tests.builders import all_of, chain, heartbeat, module, offline, online, profile

PACE = Pace(calm_s=3.0, review_s=30.0, spares=False)
CLASSIFY = chain("classify", module("vision", 60))


class Site:
    """A site that has settled; plans come at once."""

    def __init__(self, *, deployed: bool = True) -> None:
        self.now_s = 0.0
        self.state: State = initial(epoch=1, settle_s=1.5, pace=PACE)
        self.asked: list[RequestPlan] = []
        self.feed(LinkUp(1))
        if deployed:
            self.feed(TaskDeployed(CLASSIFY))
        self.wait(2.0)

    def feed(self, event: Event) -> list[Action]:
        self.state, actions = decide(self.state, event, self.now_s)
        for request in all_of(actions, RequestPlan):
            self.asked.append(request)
            actions += self.feed(PlanFound(request.ticket, solve(request.problem)))
        return actions

    def wait(self, seconds: float) -> list[Action]:
        """Time passes, and each deadline is met."""
        until_s, actions = self.now_s + seconds, list[Action]()
        while (due_s := next_deadline_s(self.state)) is not None and due_s <= until_s:
            self.now_s = max(self.now_s, due_s)
            actions += self.feed(Tick())
        self.now_s = until_s
        return actions

    def born(self, name: str) -> list[Action]:
        return [
            *self.feed(DeviceStateReceived(name, online(1, profile(100)))),
            *self.feed(HeartbeatReceived(name, heartbeat(1))),
        ]

    def plans(self, kind: type) -> int:
        return sum(isinstance(request.problem, kind) for request in self.asked)


def test_the_first_birth_has_a_plan_at_once_and_those_that_follow_fast_share_the_next() -> None:
    site = Site()
    before = site.plans(PlacementProblem)
    site.born("a")
    assert site.plans(PlacementProblem) == before + 1
    assert site.state.placement.where
    for number in range(50):
        site.now_s += SHARE_S / 60
        site.born(f"b-{number}")
    assert site.plans(PlacementProblem) == before + 1
    assigned = all_of(site.wait(SHARE_S), PublishAssignment)
    assert site.plans(PlacementProblem) == before + 2
    assert len(assigned) == 50
    assert len(site.state.placement.facts.candidates) == 51


def test_the_death_of_a_device_waits_for_no_birth() -> None:
    site = Site()
    site.born("a")
    site.born("b")
    (home,) = site.state.placement.where.values()
    site.feed(DeviceStateReceived(home, offline(1)))
    (heir,) = site.state.placement.where.values()
    assert {home, heir} == {"a", "b"}


def test_births_that_died_before_their_plan_leave_nothing_to_wait_for() -> None:
    site = Site()
    site.born("a")
    site.born("b")
    site.feed(DeviceStateReceived("b", offline(1)))
    before = len(site.asked)
    site.wait(2 * SHARE_S)
    assert len(site.asked) == before
    assert site.state.outstanding == "nothing"


def test_births_at_a_site_without_tasks_need_no_plan() -> None:
    site = Site(deployed=False)
    assigned: list[Action] = []
    for number in range(20):
        site.now_s += SHARE_S / 5
        assigned += all_of(site.born(f"a-{number}"), PublishAssignment)
    assigned += all_of(site.wait(SHARE_S), PublishAssignment)
    assert len(assigned) == 20
    assert site.asked == []


def test_a_better_place_is_searched_for_soon_after_the_last_birth_and_then_at_the_usual_pace() -> None:
    site = Site()
    site.born("a")
    site.wait(1.0)
    site.feed(HeartbeatReceived("a", heartbeat(2, epoch=1, generation=1, modules=_ready())))
    for number in range(4):
        site.now_s += 1.0
        site.born(f"b-{number}")
        _all_report(site, number)
    assert site.plans(MovesProblem) == 0
    for second in range(4):
        site.now_s += 1.0
        _all_report(site, 10 + second)
    assert site.plans(MovesProblem) == 1
    for second in range(20):
        site.now_s += 1.0
        _all_report(site, 20 + second)
    assert site.plans(MovesProblem) == 1


def test_one_device_that_joins_many_or_comes_and_goes_brings_no_search_forward() -> None:
    """Else a stranger could have the modules of all others moved whenever he likes."""
    site = Site()
    for name in "abc":
        site.born(name)
    site.wait(1.0)
    for second in range(12):
        site.now_s += 1.0
        _all_report(site, second)
    assert site.plans(MovesProblem) == 1
    for second in range(12):
        site.now_s += 1.0
        _all_report(site, 20 + second)
        if second % 4 == 0:
            site.feed(DeviceStateReceived("stranger", online(2 + second, profile(100))))
            site.feed(HeartbeatReceived("stranger", heartbeat(1, session=2 + second)))
        elif second % 4 == 3:
            site.feed(DeviceStateReceived("stranger", offline(second - 1)))
    assert site.plans(MovesProblem) == 1


def test_no_better_place_is_searched_for_while_devices_may_still_come_back_to_a_broker() -> None:
    site = Site()
    site.born("a")
    site.wait(1.0)
    site.feed(HeartbeatReceived("a", heartbeat(2, epoch=1, generation=1, modules=_ready())))
    site.feed(LinkDown("lost"))
    site.now_s += 60.0
    site.feed(LinkUp(2))
    site.feed(TaskDeployed(CLASSIFY))
    for second in range(1, int(RECONNECT_S + PACE.calm_s) + 1):
        assert site.plans(MovesProblem) == 0
        site.now_s += 1.0
        site.feed(Tick())
        _all_report(site, 10 + second)
        if second == 3:
            site.born("b")
    assert site.plans(MovesProblem) == 1


@pytest.mark.parametrize("deployed", [True, False])
def test_a_birth_costs_the_same_for_every_number_of_devices(deployed: bool) -> None:  # noqa: FBT001 - a case
    """In calls, between two plans."""
    costs = set()
    for devices in (10, 300):
        site = Site(deployed=deployed)
        for number in range(devices):
            site.born(f"a-{number}")
        site.wait(2 * SHARE_S)
        site.born("first")  # begins the time in which others wait
        costs.add(_calls_of(site, "another"))
    assert len(costs) == 1, costs
    assert max(costs) < 2_000


def _calls_of(site: Site, name: str) -> int:
    calls = 0

    def count(_frame: FrameType, kind: str, _argument: object) -> None:
        nonlocal calls
        calls += kind in {"call", "c_call"}

    sys.setprofile(count)
    try:
        site.born(name)
        next_deadline_s(site.state)
    finally:
        sys.setprofile(None)
    return calls


def _ready() -> dict[str, HeldModule]:
    (spec,) = CLASSIFY.modules.values()
    return {spec.key: HeldModule(module="vision", state="ready", compute_s=0.1)}


def _all_report(site: Site, seq: int) -> None:
    for name in list(site.state.cluster.devices):
        told = site.state.assignments.get(name)
        held = _ready() if told and told.modules else {}
        epoch, generation = (told.epoch, told.generation) if told else (0, 0)
        report = heartbeat(100 + seq, epoch=epoch, generation=generation, modules=held)
        site.feed(HeartbeatReceived(name, report))
