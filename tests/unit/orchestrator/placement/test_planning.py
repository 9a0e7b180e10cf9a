"""A plan is asked for and arrives later: what happens meanwhile, and which plans are still used."""

from __future__ import annotations

import pickle

import pytest

from broker.protocol.messages import DeviceState, Heartbeat, HeldModule
from broker.protocol.specs import TaskSpec
from broker.transport.port import LinkDown, LinkUp
from orchestrator.decide import decide, next_deadline_s
from orchestrator.events import (
    Action,
    DeviceStateReceived,
    EndPlanning,
    Event,
    ForgetReceived,
    HeartbeatReceived,
    Note,
    PlanFound,
    PublishAssignment,
    PublishRoute,
    PublishState,
    RequestPlan,
    RequestReceived,
    RetainedRouteReceived,
    TaskDeployed,
    TaskUndeployed,
    Tick,
)
from orchestrator.placement.planning import AGAIN_S, PLAN_LOST_S
from orchestrator.planner.plans import DrainProblem, MovesProblem, PlacementProblem, Problem, SparesProblem
from orchestrator.planner.solve import solve
from orchestrator.state import Pace, State, initial
from tests.builders import all_of, chain, module, obedient, online, profile

VISION, HEAD, TEXT = module("vision", 60, 30e9), module("head", 10), module("text", 40, 10e9)
CLASSIFY, CAPTION = chain("classify", VISION, HEAD), chain("caption", TEXT)
REPLY_TO = "s2m3/v1/clients/cam/results/1"


class Site:
    """An orchestrator whose planner answers when a test says so, and devices that obey."""

    def __init__(self, *, spares: bool = True, **memory_bytes: int) -> None:
        self.state: State = initial(epoch=1, heartbeat_interval_s=1.0, settle_s=1.5, pace=Pace(spares=spares))
        self.now_s, self.seq = 0.0, 0
        self.asked: list[RequestPlan] = []
        self.feed(LinkUp(1))
        for device, size in memory_bytes.items():
            self.join(device, size)

    def feed(self, event: Event) -> list[Action]:
        self.state, actions = decide(self.state, event, self.now_s)
        self.asked += all_of(actions, RequestPlan)
        return [action for action in actions if not isinstance(action, Note | PublishState)]

    def join(self, device: str, memory_bytes: int = 100) -> list[Action]:
        birth = self.feed(DeviceStateReceived(device, online(1, profile(memory_bytes))))
        return [*birth, *self.heartbeat(device)]

    def heartbeat(self, device: str) -> list[Action]:
        self.seq += 1
        return self.feed(HeartbeatReceived(device, obedient(self.state.assignments.get(device), self.seq)))

    def gone(self, device: str) -> list[Action]:
        return self.feed(DeviceStateReceived(device, DeviceState(status="offline", session=1)))

    def pass_time(self, seconds: float) -> list[Action]:
        self.now_s += seconds
        return self.feed(Tick())

    def answer(self) -> list[Action]:
        """The planner answers the newest problem."""
        asked = self.asked[-1]
        return self.feed(PlanFound(asked.ticket, solve(asked.problem)))

    def answer_all(self) -> None:
        """The planner answers until nothing is asked any more."""
        answered = 0
        while len(self.asked) > answered:
            answered = len(self.asked)
            self.answer()

    def live(self, seconds: int) -> None:
        """Time passes, the devices obey and send heartbeats, and the planner answers."""
        for _ in range(seconds):
            self.answer_all()
            for device in sorted(self.state.cluster.devices):
                self.heartbeat(device)
            self.pass_time(1.0)
        self.answer_all()

    def where(self) -> dict[str, str]:
        return {self.state.placement.modules[key][0]: home for key, home in self.state.placement.where.items()}


def settled(*tasks: TaskSpec, spares: bool = True, **memory_bytes: int) -> Site:
    """A site that has just settled, whose first plan hasn't come."""
    site = Site(spares=spares, **memory_bytes)
    for spec in tasks:
        site.feed(TaskDeployed(spec))
    site.pass_time(1.5)
    return site


def serving(*tasks: TaskSpec, spares: bool = True, **memory_bytes: int) -> Site:
    """A site whose tasks are placed, with spares where there is room."""
    site = settled(*tasks, spares=spares, **memory_bytes)
    site.live(5)
    return site


def without_state(actions: list[Action]) -> list[Action]:
    """The actions without the announcement of the orders' change number."""
    return [action for action in actions if not isinstance(action, PublishState)]


def test_an_event_that_calls_for_a_placement_asks_for_a_plan_and_says_nothing_until_it_comes() -> None:
    site = settled(CLASSIFY, a=100)
    assert [type(action.problem) for action in site.asked] == [PlacementProblem]
    assert (site.state.routes, site.state.assignments) == ({}, {})
    assert [type(action) for action in site.answer()] == [PublishRoute, PublishAssignment]
    assert site.where() == {"vision": "a", "head": "a"}


def test_a_problem_and_its_plan_can_be_pickled() -> None:
    kinds: set[type[Problem]] = set()
    site = serving(CLASSIFY, CAPTION, a=100, b=100, c=100)
    site.live(40)
    emptied = serving(CLASSIFY, spares=False, a=100, b=100)
    home = emptied.where()["vision"]
    emptied.feed(DeviceStateReceived(home, DeviceState(status="draining", session=1, profile=profile(100))))
    emptied.answer_all()
    for asked in site.asked + emptied.asked:
        assert pickle.loads(pickle.dumps(asked)) == asked  # noqa: S301 - our own
        plan = solve(asked.problem)
        assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301 - our own
        kinds.add(type(asked.problem))
    assert kinds == {PlacementProblem, MovesProblem, SparesProblem, DrainProblem}


def test_a_plan_that_comes_twice_or_for_another_problem_changes_nothing() -> None:
    site = settled(CLASSIFY, a=100)
    plan = solve(site.asked[0].problem)
    state = site.state
    for ticket in ((1, 7), (0, 1), (2, 1)):
        assert site.feed(PlanFound(ticket, plan)) == []
        assert site.state == state
    assert site.answer()
    state = site.state
    assert site.feed(PlanFound(site.asked[0].ticket, plan)) == []
    assert site.state == state


def test_a_failure_of_the_planner_that_is_told_twice_changes_nothing_the_second_time() -> None:
    site = settled(CLASSIFY, a=100)
    failed = PlanFound(site.asked[0].ticket, None)
    assert site.feed(failed) == []
    state = site.state
    assert site.feed(failed) == []
    assert site.state == state


def test_a_newer_problem_ends_the_running_one_and_is_asked_after_its_answer() -> None:
    site = settled(CLASSIFY, a=100, b=100)
    assert without_state(site.feed(TaskDeployed(CAPTION))) == [EndPlanning((1, 1))]
    assert site.join("c") == []
    site.answer()
    assert len(site.asked) == 2
    assert site.where() == {"vision": "a", "head": "a"}  # the first plan still stands
    site.answer()
    assert site.where() == {"vision": "a", "head": "a", "text": "b"}


def test_modules_are_placed_before_any_search_goes_on() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    while not isinstance(site.asked[-1].problem, MovesProblem):
        site.answer()
        site.pass_time(1.0)
        site.heartbeat("a")
        site.heartbeat("b")
    ticket = site.asked[-1].ticket
    assert site.feed(TaskDeployed(CAPTION)) == [EndPlanning(ticket)]
    assert site.heartbeat("a") == []
    site.answer()
    assert isinstance(site.asked[-1].problem, PlacementProblem)
    site.answer()
    assert "text" in site.where()


def test_a_plan_that_uses_a_device_which_has_died_is_not_used() -> None:
    site = settled(CLASSIFY, a=100, b=60)
    site.gone("a")
    assert site.answer() == [site.asked[-1]]
    assert site.where() == {}
    site.answer()
    assert "vision" not in site.where()


def test_a_plan_for_a_task_that_was_undeployed_or_changed_is_not_used() -> None:
    for event in (TaskUndeployed("classify"), TaskDeployed(chain("classify", VISION))):
        site = settled(CLASSIFY, a=100)
        site.feed(event)
        site.answer()
        assert site.where() == {}
        site.answer()
        assert site.where() == ({"vision": "a"} if isinstance(event, TaskDeployed) else {})


def test_a_plan_that_a_device_has_no_memory_for_any_more_is_not_used() -> None:
    site = settled(CLASSIFY, a=100)
    site.feed(DeviceStateReceived("a", online(2, profile(50))))
    site.answer()
    assert site.where() == {}


def test_an_outdated_plan_moves_nothing_that_could_stay() -> None:
    """The device is back before the plan for its death comes."""
    site = serving(CLASSIFY, spares=False, a=70, b=70)
    home = site.where()["vision"]
    before = len(site.asked)
    site.gone(home)
    assert len(site.asked) == before + 1
    site.feed(DeviceStateReceived(home, online(2, profile(70))))
    site.seq += 1
    held = {spec.key: HeldModule(module="m", state="ready") for spec in (VISION, HEAD)}
    site.feed(HeartbeatReceived(home, Heartbeat(session=2, seq=1, epoch=0, generation=0, modules=held)))
    site.feed(TaskDeployed(CAPTION))
    first = site.asked[before]
    site.feed(PlanFound(first.ticket, solve(first.problem)))
    assert site.where() == {"vision": home, "head": home}


def test_a_standby_takes_over_at_once_and_stays_when_an_earlier_plan_comes() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    home = site.where()["vision"]
    other = "b" if home == "a" else "a"
    site.feed(TaskDeployed(CAPTION))
    actions = site.gone(home)
    assert set(site.where().values()) == {other}
    routes = all_of(actions, PublishRoute)
    assert [route.route.complete for route in routes if route.route.task == "classify"] == [True]
    site.answer()
    assert {site.where()["vision"], site.where()["head"]} == {other}


def test_a_dead_device_leaves_the_routes_before_the_plan_comes() -> None:
    site = serving(CLASSIFY, spares=False, a=70, b=60)
    (route,) = [action.route for action in site.gone(site.where()["vision"]) if isinstance(action, PublishRoute)]
    assert (route.unavailable, route.front_door) == (None, ())


def test_a_lost_plan_is_asked_for_again() -> None:
    site = settled(CLASSIFY, a=100)
    site.now_s += PLAN_LOST_S - 0.5
    site.heartbeat("a")
    assert len(site.asked) == 1
    assert next_deadline_s(site.state) is not None
    site.now_s += 0.5
    site.heartbeat("a")
    assert [action.ticket for action in site.asked] == [(1, 1), (1, 2)]
    site.answer()
    assert site.where() == {"vision": "a", "head": "a"}


def test_a_problem_at_which_the_planner_fails_is_asked_again_soon() -> None:
    site = settled(CLASSIFY, a=100)
    site.feed(PlanFound(site.asked[0].ticket, None))
    site.now_s += AGAIN_S - 0.5
    site.heartbeat("a")
    assert len(site.asked) == 1
    site.now_s += 0.5
    site.heartbeat("a")
    assert [action.ticket for action in site.asked] == [(1, 1), (1, 2)]


def test_a_lost_search_for_moves_is_not_waited_for_and_wakes_nobody() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    before = len(site.asked)
    for _ in range(60):
        site.pass_time(1.0)
        site.heartbeat("a")
        site.heartbeat("b")
    assert len(site.asked) > before
    deadline_s = next_deadline_s(site.state)
    assert deadline_s is not None
    assert deadline_s > site.now_s


def test_no_plan_is_used_that_was_asked_for_before_the_links_end() -> None:
    site = settled(CLASSIFY, a=100)
    site.feed(LinkDown("lost"))
    assert site.answer() == []
    assert site.where() == {}


def test_until_the_first_plan_of_a_term_the_routes_and_assignments_of_an_earlier_one_stand() -> None:
    site = Site(a=100)
    site.feed(TaskDeployed(CLASSIFY))
    site.feed(RetainedRouteReceived("classify", available=True, front_door=True, serving={VISION.key: ("a",)}))
    assert without_state(site.pass_time(1.5)) == [*site.asked]
    assert site.feed(RequestReceived("classify", REPLY_TO, None, b"")) == []
    assert site.heartbeat("a") == []
    assert "classify" in site.state.retained_routes
    site.answer()
    assert site.state.retained_routes == {}


def test_a_request_for_a_task_that_is_being_planned_is_told_so() -> None:
    site = settled(CLASSIFY, a=100)
    (refusal,) = site.feed(RequestReceived("classify", REPLY_TO, None, b""))
    assert "its placement is being planned; try again" in str(refusal)


@pytest.mark.parametrize("outdated", [False, True])
def test_a_takeover_since_the_plan_was_asked_for_stays(outdated: bool) -> None:  # noqa: FBT001 - a case
    """An active copy is gone from its device, which lives on; nothing else has changed."""
    site = serving(CLASSIFY, a=100, b=100)
    home = site.where()["vision"]
    other = "b" if home == "a" else "a"
    site.feed(TaskDeployed(CAPTION))
    asked = site.asked[-1]
    site.seq += 1
    site.feed(HeartbeatReceived(home, Heartbeat(session=1, seq=site.seq, epoch=1, generation=1)))
    assert set(site.where().values()) == {other}
    if outdated:
        site.join("c")
    site.feed(PlanFound(asked.ticket, solve(asked.problem)))
    assert {site.where()["vision"], site.where()["head"]} == {other}


def test_a_copy_that_reports_more_than_is_planned_for_it_lets_the_plan_stand() -> None:
    """Else each plan would be like the one before it, and none would be used."""
    site = Site(spares=False, a=100)
    larger = HeldModule(
        module="vision", state="ready", memory_bytes=95
    )  # from before this term: nobody assigned it yet
    site.feed(HeartbeatReceived("a", Heartbeat(session=1, seq=99, epoch=0, generation=0, modules={VISION.key: larger})))
    site.feed(TaskDeployed(CLASSIFY))
    site.pass_time(1.5)
    for _ in range(3):
        site.answer()
    assert len(set(site.where().values())) == 1
    assert len(site.asked) <= 2


def test_no_spares_are_chosen_while_most_devices_have_just_said_goodbye_even_if_they_are_forgotten() -> None:
    site = settled(CLASSIFY, a=100, b=70, c=70, d=70, e=70, f=70)
    while not isinstance(site.asked[-1].problem, SparesProblem):
        site.answer()
        for device in "abcdef":
            site.heartbeat(device)
        site.pass_time(0.5)
    for device in "bcdef":
        site.gone(device)
    for device in "bcdef":
        site.feed(ForgetReceived(device))
    assert site.state.cluster.mass_departure is not None
    assert site.answer() == []
    assert site.state.planning is None
    assert site.where() == {"vision": "a", "head": "a"}
