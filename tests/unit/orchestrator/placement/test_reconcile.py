"""Standbys, replicas, take-overs, planned moves, refusals and measured values: the reconciler over time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from broker.protocol.messages import Heartbeat, HeldModule
from broker.protocol.specs import TaskSpec
from broker.transport.port import SHARED, LinkUp
from orchestrator.decide import next_deadline_s
from orchestrator.events import (
    Action,
    DrainReceived,
    HeartbeatReceived,
    PublishAssignment,
    PublishRoute,
    RetainedRouteReceived,
    TaskDeployed,
    TaskUndeployed,
    Tick,
)
from orchestrator.membership.failure_detector import MASS_SILENCE_INTERVALS
from orchestrator.placement.drain import waits_for
from orchestrator.placement.planner_input import MOST_BEYOND_BYTES
from orchestrator.planner.moves import GAIN_S, GAIN_SHARE, LARGE_SHARE, LEAST_GAIN_S
from tests.builders import all_of, chain, joined, module
from tests.planned import decide_and_plan
from tests.simulated_site import PACE, Agent, Site

VISION = module("vision", 60, 2e9)
TEXT = module("text", 40, 1e9)
HEAD = module("head", 10, 1e7)
task = partial(chain, image_bytes=1000)
CLASSIFY = task("classify", VISION, HEAD)
CAPTION = task("caption", VISION, TEXT)


def calm(*tasks: TaskSpec, **memory_bytes: int) -> Site:
    """A site that serves, with its spares chosen and loaded; not yet due for a review."""
    site = Site(*tasks, **memory_bytes)
    site.go_on(6)
    return site


# --- standbys and replicas ---


def test_one_of_two_replicas_is_the_front_door_at_a_broker_without_shared_subscriptions() -> None:
    busy = CLASSIFY.model_copy(update={"weight": 20.0})
    assert set(calm(busy, a=100, b=100).route("classify").front_door) == {"a", "b"}
    site = Site(a=100, b=100)
    site.feed(LinkUp(2, lacks=frozenset({SHARED})))
    site.feed(TaskDeployed(busy))
    site.go_on(8)
    assert len(site.able("classify", "vision")) == 2
    (door,) = site.route("classify").front_door
    site.agents[door].up = False
    site.go_on(8)
    assert {door, *site.route("classify").front_door} == {"a", "b"}
    assert site.route("classify").complete


def test_leftover_memory_holds_a_standby_of_each_module_and_no_route_names_it() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    assert site.roles() == {
        "active": {"vision": ["a"], "head": ["a"]},
        "standby": {"vision": ["b"], "head": ["b"]},
    }
    assert site.able("classify", "vision") == ["a"]
    assert site.agents["b"].loaded == {VISION.key, HEAD.key}


def test_spares_wait_for_some_calm() -> None:
    site = Site(CLASSIFY, a=100, b=100)
    site.go_on(3)
    assert site.route("classify").complete
    assert site.roles()["standby"] == {}
    site.go_on(1)
    assert site.roles()["standby"] == {"vision": ["b"], "head": ["b"]}


def test_spares_wait_until_every_active_copy_serves() -> None:
    site = Site(CLASSIFY, a=100, b=100)
    site.agents["a"].slow = True
    site.go_on(20)
    assert site.roles()["standby"] == {}
    site.agents["a"].slow = False
    site.go_on(1)
    assert site.roles()["standby"] == {"vision": ["b"], "head": ["b"]}


def test_a_standby_that_comes_changes_no_route_and_no_generation() -> None:
    site = Site(CLASSIFY, a=100, b=100)
    site.go_on(3)
    before = site.route("classify"), site.state.generation
    site.go_on(6)
    assert site.roles()["standby"]
    assert (site.route("classify"), site.state.generation) == before


def test_spares_settle() -> None:
    site = calm(CLASSIFY, CAPTION, a=100, b=150, c=80)
    assert all_of(site.go_on(60), PublishAssignment) == []


def test_a_rate_beyond_one_copy_makes_the_standby_a_replica_that_serves() -> None:
    busy = task("classify", VISION, HEAD, weight=10.0)  # vision takes 0.2 s: twice what one copy can do
    site = calm(busy, a=100, b=100, c=100, d=100)
    assert len(site.able("classify", "vision")) == 3, "0.2 s x 10/s is 2 copies' time, and 0.7 of a copy's may be used"
    assert site.route("classify").front_door == tuple(site.able("classify", "vision"))
    assert "vision" not in site.roles()["standby"]
    assert site.roles()["standby"]["head"]


def test_a_measured_second_is_what_decides_about_replicas() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    assert site.able("classify", "vision") == ["a"]
    for agent in site.agents.values():
        agent.compute_s[VISION.key] = 0.9
    site.go_on(PACE.review_s)
    assert site.able("classify", "vision") == ["a", "b"]


def test_a_new_task_takes_the_memory_of_spares_and_is_served() -> None:
    site = calm(CLASSIFY, a=100, b=70)
    assert site.roles()["standby"] == {"vision": ["b"], "head": ["b"]}
    site.feed(TaskDeployed(task("read", TEXT, HEAD)))
    site.go_on(1)
    assert site.route("read").complete
    assert sum(told.spec.memory_bytes for told in site.state.assignments["b"].modules) <= 70


def test_a_standby_that_is_refused_goes_elsewhere_and_nothing_else_happens() -> None:
    site = Site(CLASSIFY, a=100, b=100, c=100)
    site.agents["b"].refuses[VISION.key] = "the weights are damaged"
    before = site.go_on(3)
    after = site.go_on(20)
    assert before
    assert site.roles()["standby"]["vision"] == ["c"]
    assert all_of(after, PublishRoute) == []


# --- take-overs ---


def test_when_the_active_copys_device_dies_its_standby_serves_at_once_without_a_load() -> None:
    site = calm(CLASSIFY, a=100, b=100, c=100)
    loads = {device: agent.loads for device, agent in site.agents.items()}
    (home,) = site.able("classify", "vision")
    (heir,) = site.roles()["standby"]["vision"]
    actions = site.kill(home)
    (route,) = all_of(actions, PublishRoute)
    assert route.route.complete, "in the very answer to the will"
    assert site.able("classify", "vision") == [heir]
    assert site.agents[heir].loads == loads[heir]
    site.go_on(5)
    (spare,) = {"a", "b", "c"} - {home, heir}
    assert site.roles()["standby"]["vision"] == [spare], "then a new standby is chosen"


def test_a_device_that_reconnects_before_it_was_missed_keeps_its_modules() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    before = site.roles()
    agent = site.agents["a"]
    actions = site.join("a", 100, 10e9, agent=replace(agent, session=agent.session + 1, seq=0))
    assert not all_of(actions, PublishRoute)
    site.go_on(6)
    assert site.roles() == before


def test_a_device_that_restarts_before_it_was_missed_gives_way_to_the_standby() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    site.join("a", 100, 10e9, agent=Agent(session=2, slow=True))
    assert site.able("classify", "vision") == ["b"], "with its first heartbeat, which lists what it must load again"
    site.agents["a"].slow = False
    site.go_on(6)
    assert site.roles() == {"active": {"vision": ["b"], "head": ["b"]}, "standby": {"vision": ["a"], "head": ["a"]}}


def test_a_replica_takes_over_before_a_standby_does_and_the_others_go_on() -> None:
    busy = task("classify", VISION, HEAD, weight=10.0)
    site = calm(busy, a=100, b=100, c=100)
    serving = site.able("classify", "vision")
    site.kill(serving[0])
    assert site.able("classify", "vision") == serving[1:]
    assert site.route("classify").complete


def test_after_a_restart_of_the_orchestrator_active_copies_and_standbys_stay_what_they_were() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    site.kill("a")
    site.join("a", 100, 10e9)
    site.go_on(12)  # its probation, and calm
    roles, route = site.roles(), site.route("classify")
    assert roles["active"]["vision"] == ["b"]
    again = Site(CLASSIFY, a=100, b=100)
    serving = {node.key: tuple(able.device for able in node.devices) for node in route.nodes.values()}
    again.feed(RetainedRouteReceived("classify", available=True, front_door=True, serving=serving))
    for device, agent in site.agents.items():
        held = {key: HeldModule(module="m", state="ready", memory_bytes=10) for key in sorted(agent.loaded)}
        heartbeat = Heartbeat(session=1, seq=50, epoch=1, generation=0, modules=held)
        again.feed(HeartbeatReceived(device, heartbeat))
        again.agents[device].loaded, again.agents[device].seq = set(agent.loaded), 50
    again.now_s += 1.5
    again.feed(Tick())
    assert again.roles() == roles
    again.go_on(5)
    assert again.roles() == roles
    assert [agent.loads for agent in again.agents.values()] == [0, 0]


# --- planned moves ---


def moving() -> Site:
    """A much faster device joined, and the review is about to begin."""
    site = calm(CLASSIFY, a=100)
    site.agents["a"].compute_s |= {VISION.key: 0.2, HEAD.key: 0.001}
    site.join("fast", 100, 100e9)
    site.agents["fast"].slow = True
    site.go_on(PACE.review_s)
    return site


def test_a_much_better_device_gets_the_modules_after_they_are_loaded_there() -> None:
    site = moving()
    assert site.able("classify", "vision") == ["a"], "the old copy serves"
    assert site.roles()["standby"]["vision"] == ["fast"]
    assert len(site.told("moves_planned")) == 1
    site.agents["fast"].slow = False
    actions = site.go_on(1)
    assert site.able("classify", "vision") == ["fast"]
    assert all(action.route.complete for action in all_of(actions, PublishRoute)), "make before break"
    routes_then_assignments = [
        type(action) for action in actions if isinstance(action, PublishRoute | PublishAssignment)
    ]
    assert routes_then_assignments[0] is PublishRoute
    site.go_on(60)
    assert site.roles()["active"]["vision"] == ["fast"]
    assert len(site.told("moves_planned")) == 1


def test_a_move_whose_device_turns_out_slow_is_not_made_and_not_planned_again() -> None:
    site = moving()
    site.agents["fast"].compute_s[VISION.key] = 0.3
    site.agents["fast"].slow = False
    site.go_on(60)
    assert site.able("classify", "vision") == ["a"]
    (given_up,) = site.told("moves_given_up")
    assert "must gain" in str(given_up.fields["why"])
    assert len(site.told("moves_planned")) == 1


def test_a_move_whose_target_dies_is_given_up_and_leaves_nothing_behind() -> None:
    site = moving()
    site.kill("fast")
    assert site.state.placement.moves is None
    assert site.roles() == {"active": {"vision": ["a"], "head": ["a"]}, "standby": {}}
    site.go_on(20)
    assert site.able("classify", "vision") == ["a"]


def test_nothing_moves_to_a_standby_on_a_device_to_which_calls_time_out() -> None:
    site = calm(CLASSIFY, a=100, b=100, c=1)
    assert site.roles()["standby"]["vision"] == ["b"]
    site.agents["a"].suspects = site.agents["c"].suspects = {"b": 0.0}
    site.agents["a"].compute_s |= {VISION.key: 0.2, HEAD.key: 0.001}
    site.agents["b"].compute_s |= {VISION.key: 0.001, HEAD.key: 0.001}
    site.go_on(3 * PACE.review_s)
    assert site.told("moves_planned") == site.told("took_over") == []
    assert site.able("classify", "vision") == ["a"]


def test_a_move_whose_target_takes_no_calls_any_more_is_given_up() -> None:
    site = moving()
    site.join("c", 1, 1e9)
    site.agents["a"].suspects = site.agents["c"].suspects = {"fast": 0.0}
    site.go_on(1)
    site.agents["fast"].slow = False
    site.go_on(2)
    (given_up,) = site.told("moves_given_up")
    assert given_up.fields["why"] == "fast can't take vision any more"
    assert site.told("moves_made") == site.told("took_over") == []


def test_a_move_that_is_never_ready_is_given_up_after_its_time() -> None:
    site = moving()
    started_s = site.now_s
    while site.state.placement.moves is not None and site.now_s < started_s + 2 * PACE.round_s:
        site.go_on(1)
    (given_up,) = site.told("moves_given_up")
    assert "weren't ready after 60 s" in str(given_up.fields["why"])
    assert site.now_s - started_s <= PACE.round_s


def test_a_source_that_dies_while_its_module_moves_is_replaced_by_the_copy_under_way() -> None:
    site = moving()
    site.kill("a")
    assert site.roles()["active"]["vision"] == ["fast"]
    site.agents["fast"].slow = False
    site.go_on(1)
    assert site.route("classify").complete
    assert site.agents["fast"].loads == 2


def test_nothing_moves_for_gains_below_the_thresholds() -> None:
    # Of a long task, of one of less than 80 ms, and of one of a few milliseconds: too little.
    short_s = GAIN_S / LARGE_SHARE
    for share, seconds in ((GAIN_SHARE * 0.8, 1.0), (LARGE_SHARE * 0.9, short_s), (0.9, LEAST_GAIN_S * 0.9)):
        site = calm(task("classify", VISION, HEAD, weight=0.5), a=100)
        site.agents["a"].compute_s |= {VISION.key: seconds, HEAD.key: 1e-6}
        site.join("b", 100, 2e9 / (seconds * (1 - share)))
        site.go_on(5 * PACE.review_s)
        assert site.roles()["active"]["vision"] == ["a"]
        assert site.told("moves_planned") == []


def test_a_second_device_of_equal_speed_gets_one_of_two_encoders_that_take_milliseconds() -> None:
    encoders = [module("twelve", flops=1.2e8), module("twenty", flops=2e8)]
    site = calm(joined("match", encoders, module("last", flops=1e5), image_bytes=1000), a=100)
    site.join("b", 100, 10e9)
    site.go_on(3 * PACE.review_s)
    homes = site.roles()["active"]
    assert homes["twelve"] != homes["twenty"]
    assert len(site.told("moves_made")) == 1
    site.agents["a"].compute_s |= {encoder.key: 1.2 * encoder.flops / 10e9 for encoder in encoders}
    site.go_on(10 * PACE.review_s)
    assert len(site.told("moves_made")) == 1, "it stays, though one of them is busier for a while"


def test_there_is_a_pause_between_rounds_of_moves() -> None:
    site = moving()
    site.agents["fast"].slow = False
    site.go_on(1)
    made_s = site.now_s
    site.agents["fast"].compute_s |= {VISION.key: 0.5, HEAD.key: 0.001}  # and now it is slow after all
    while site.able("classify", "vision") == ["fast"]:
        site.go_on(1)
    assert PACE.review_s <= site.now_s - made_s <= PACE.review_s + 2


# --- measured values ---


def test_a_task_goes_to_the_device_that_measured_its_module_as_fast_even_if_it_only_has_it_on_its_disk() -> None:
    site = Site(a=100, b=100)
    site.agents["b"].cached = {VISION.key: 0.01}
    site.go_on(3)
    site.feed(TaskDeployed(CLASSIFY))
    assert site.state.placement.where[VISION.key] == "b"


def test_the_largest_measured_footprint_counts_everywhere() -> None:
    site = calm(CLASSIFY, a=200)
    site.agents["a"].memory_bytes[VISION.key] = 95
    site.go_on(1)
    site.join("b", 94, 100e9)
    site.join("c", 105, 10e9)
    site.kill("a")
    assert site.state.placement.where == {VISION.key: "c", HEAD.key: "c"}, "95 and 10 fit there, 95 not on b"
    site.kill("c")
    assert "no device fits" in (site.route("classify").unavailable or "")


def test_a_larger_measurement_of_another_device_displaces_no_module() -> None:
    site = calm(CLASSIFY, a=70, b=200)
    (home,) = site.able("classify", "vision")
    assert home == "a"
    site.agents["b"].memory_bytes[VISION.key] = 75
    site.go_on(30)
    assert site.state.footprints[VISION.key] == 75
    assert site.roles()["active"] == {"vision": ["a"], "head": ["a"]}
    assert site.agents["a"].loads == 2


def test_one_devices_measurement_counts_elsewhere_only_up_to_a_bound() -> None:
    """Else a device that lies would make the task too large for every other one."""
    site = calm(CLASSIFY, a=200)
    site.agents["a"].memory_bytes[VISION.key] = 2**50
    site.go_on(1)
    site.join("b", 200 * 2**20, 1e9)
    site.kill("a")
    assert site.state.placement.where == {VISION.key: "b", HEAD.key: "b"}
    assert site.state.footprints[VISION.key] == 2 * VISION.memory_bytes + MOST_BEYOND_BYTES


# --- refusals ---


def test_at_most_three_devices_are_tried_then_the_task_is_unavailable_with_the_reasons_and_later_tried_again() -> None:
    site = Site(CLASSIFY, a=100, b=100, c=100, d=100, e=100)
    for agent in site.agents.values():
        agent.refuses[VISION.key] = "needs 80 bytes, 70 are free"
    site.go_on(5)
    why = site.route("classify").unavailable or ""
    assert "3 devices refused vision, and no other is tried now" in why
    assert "a, b, c: it failed there: needs 80 bytes, 70 are free" in why
    for agent in site.agents.values():
        agent.refuses.clear()
    site.go_on(20)
    assert site.route("classify").unavailable
    site.go_on(15)
    assert site.route("classify").complete


def test_refused_standbys_never_take_a_task_away_that_is_served() -> None:
    site = Site(CLASSIFY, a=100)
    site.go_on(3)
    for device in ("b", "c", "d", "e"):
        site.join(device, 100, 10e9)
        site.agents[device].refuses[VISION.key] = "damaged"
    site.go_on(28)
    assert sum(VISION.key in known.barred for known in site.state.cluster.devices.values()) == 3
    assert site.route("classify").complete


def test_when_nothing_is_due_no_deadline_is_near() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    due_s = next_deadline_s(site.state)
    assert due_s is not None
    assert due_s > site.now_s


# --- drain ---


def served_without_a_gap(site: Site, seconds: int, *names: str) -> None:
    """Time passes, and at each moment every task can be served."""
    for _ in range(seconds):
        site.go_on(1)
        for name in names:
            assert site.route(name).complete, (site.now_s, site.route(name))


def test_a_drained_device_with_standbys_elsewhere_is_left_at_once() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    site.feed(DrainReceived("a", drain=True))
    assert site.able("classify", "vision") == ["b"]
    assert site.state.assignments["a"].modules == ()
    assert site.agents["b"].loads == 2, "nothing was loaded for it"


def test_a_drained_device_serves_until_the_new_copies_are_ready() -> None:
    site = Site(CLASSIFY, a=100, b=100)
    site.go_on(2)
    site.agents["b"].slow = True
    site.feed(DrainReceived("a", drain=True))
    served_without_a_gap(site, 3, "classify")
    assert site.able("classify", "vision") == ["a"]
    site.agents["b"].slow = False
    served_without_a_gap(site, 2, "classify")
    assert site.able("classify", "vision") == ["b"]
    assert site.state.assignments["a"].modules == ()


def test_a_device_whose_modules_fit_nowhere_else_serves_on_says_why_and_is_left_when_another_comes() -> None:
    site = calm(CLASSIFY, a=100, b=30)
    site.feed(DrainReceived("a", drain=True))
    served_without_a_gap(site, 40, "classify")
    stays = site.state.assignments["a"].stays
    assert stays is not None
    assert "vision stays" in stays
    assert site.able("classify", "vision") == ["a"]
    site.join("c", 100, 10e9)
    served_without_a_gap(site, 5, "classify")
    assert site.able("classify", "vision") == ["c"]
    assert site.state.assignments["a"].modules == ()
    assert site.state.assignments["a"].stays is None


def test_a_drained_device_gets_nothing_new_and_a_task_that_fits_nowhere_else_is_refused() -> None:
    site = Site(a=100, b=30)
    site.feed(DrainReceived("a", drain=True))
    site.feed(TaskDeployed(CLASSIFY))
    site.go_on(5)
    why = site.route("classify").unavailable
    assert why is not None
    site.feed(DrainReceived("a", drain=False))
    site.go_on(2)
    assert site.route("classify").complete


def test_after_a_restart_of_the_orchestrator_a_drained_device_still_serves_until_it_is_replaced() -> None:
    site = Site(CLASSIFY, a=100, b=100)
    site.feed(DrainReceived("a", drain=True))
    site.agents["a"].loaded, site.agents["b"].slow = {VISION.key, HEAD.key}, True
    held = {key: HeldModule(module="m", state="ready", memory_bytes=10) for key in (VISION.key, HEAD.key)}
    site.feed(HeartbeatReceived("a", Heartbeat(session=1, seq=50, epoch=1, generation=0, modules=held)))
    site.agents["a"].seq = 50
    site.now_s += 1.5
    site.feed(Tick())
    assert site.able("classify", "vision") == ["a"]
    served_without_a_gap(site, 3, "classify")


def test_a_drain_whose_copies_never_get_ready_starts_again_in_the_same_turn_and_serves_meanwhile() -> None:
    site = Site(CLASSIFY, a=100, b=100)
    site.go_on(2)
    site.agents["b"].slow = True
    site.feed(DrainReceived("a", drain=True))
    served_without_a_gap(site, int(PACE.round_s) + 2, "classify")
    (given_up,) = site.told("moves_given_up")
    assert "weren't ready" in str(given_up.fields["why"])
    assert len(site.told("drain_moves")) == 2
    again, nothing = decide_and_plan(site.state, Tick(), site.now_s)
    assert (again, nothing) == (site.state, [])
    site.agents["b"].slow = False
    served_without_a_gap(site, 2, "classify")
    assert site.able("classify", "vision") == ["b"]


def test_a_drained_device_moves_to_one_on_probation_where_nothing_else_is_there() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    site.kill("b")
    site.join("b", 100, 10e9)
    site.agents["b"].slow = True
    assert site.state.cluster.devices["b"].flaps.heartbeats_owed
    site.feed(DrainReceived("a", drain=True))
    served_without_a_gap(site, 1, "classify")
    assert waits_for(site.state, "a") == "b, which is on probation, loads vision, head"
    site.agents["b"].slow = False
    served_without_a_gap(site, 1, "classify")
    assert site.state.cluster.devices["b"].flaps.heartbeats_owed, "it didn't wait for the end of it"
    assert site.able("classify", "vision") == ["b"]
    assert waits_for(site.state, "a") == "it unloads what it holds"
    site.go_on(1)
    assert waits_for(site.state, "a") is None


def test_a_drained_device_prefers_a_fit_device_to_one_on_probation() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    site.kill("b")
    site.join("b", 100, 20e9)
    site.join("c", 100, 1e9)
    site.feed(DrainReceived("a", drain=True))
    served_without_a_gap(site, 2, "classify")
    assert site.able("classify", "vision") == ["c"]


def test_a_drained_device_never_moves_to_one_to_which_calls_time_out() -> None:
    site = calm(CLASSIFY, a=100, b=100, c=5, d=5)
    for accuser in ("c", "d"):
        site.agents[accuser].suspects = {"b": 0.0}
        site.heartbeat(accuser)
    assert site.state.cluster.devices["b"].unresponsive
    site.feed(DrainReceived("a", drain=True))
    served_without_a_gap(site, 3, "classify")
    assert site.able("classify", "vision") == ["a"]
    assert "calls to it time out" in str(site.state.assignments["a"].stays)


@pytest.mark.parametrize("drained", [True, False])
def test_the_end_of_a_drained_device_is_no_failure(drained: bool) -> None:  # noqa: FBT001 - pytest passes names
    site = calm(CLASSIFY, a=100, b=100)
    site.feed(DrainReceived("a", drain=drained))
    site.go_on(2)
    site.kill("a")
    site.go_on(2)
    site.join("a", 100, 10e9)
    site.feed(DrainReceived("a", drain=False))
    assert (site.state.cluster.devices["a"].doubt is None) == drained


def test_two_drains_at_once_end_with_both_empty() -> None:
    site = calm(CLASSIFY, CAPTION, a=120, b=120, c=200)
    for device in ("a", "b"):
        site.feed(DrainReceived(device, drain=True))
    served_without_a_gap(site, 10, "classify", "caption")
    assert site.state.assignments["a"].modules == site.state.assignments["b"].modules == ()


# --- doubtful devices ---


def test_a_hung_device_is_routed_around_when_a_ready_copy_exists_and_not_otherwise() -> None:
    site = calm(CLASSIFY, a=100, b=100, c=100)
    site.agents["b"].suspects = site.agents["c"].suspects = {"a": 0.0}
    site.go_on(1)
    assert site.able("classify", "vision") == ["b"]
    alone = Site(CLASSIFY, a=100, b=30, c=30)
    alone.go_on(6)
    alone.agents["b"].suspects = alone.agents["c"].suspects = {"a": 0.0}
    alone.go_on(1)
    assert alone.able("classify", "vision") == ["a"]
    assert alone.route("classify").complete


def test_one_suspicion_moves_nothing() -> None:
    site = calm(CLASSIFY, a=100, b=100, c=100)
    before = site.route("classify")
    site.agents["b"].suspects = {"a": 0.2}
    site.heartbeat("b")
    assert site.route("classify") == before


def test_a_dead_devices_modules_go_to_no_suspect_while_another_fits() -> None:
    site = Site(CLASSIFY, a=100)
    site.join("b", 100, 9e9)
    site.join("c", 100, 1e9)
    site.go_on(1)
    site.agents["b"].up = False  # silent, not yet dead
    site.go_on(2)
    assert site.able("classify", "vision") == ["a"]
    site.kill("a")
    assert site.roles()["active"] == {"vision": ["c"], "head": ["c"]}


def test_a_device_on_probation_is_used_at_once_when_nothing_else_fits() -> None:
    site = Site(CLASSIFY, a=100, b=30)
    site.go_on(5)
    site.kill("a")
    assert site.route("classify").unavailable
    site.join("a", 100, 10e9)
    site.go_on(1)
    assert site.route("classify").complete
    assert site.told("doubts_waived")


def test_a_device_that_dies_and_returns_every_two_seconds_moves_things_once() -> None:
    site = calm(CLASSIFY, a=100, b=100)
    generation = 0
    for round_ in range(20):
        site.kill("a")
        site.go_on(2)
        site.join("a", 100, 10e9)
        site.go_on(2)
        assert site.able("classify", "vision") == ["b"]
        generation = generation or site.state.generation
        assert site.state.generation == generation, round_
        assert site.state.assignments["a"].modules == ()


def test_when_most_devices_vanish_at_once_standbys_take_over_and_nothing_is_loaded_for_a_while() -> None:
    site = calm(CLASSIFY, CAPTION, a=130, b=130, c=130, d=130)
    loads = site.agents["d"].loads
    for device in ("a", "b", "c"):
        site.kill(device)
    site.go_on(MASS_SILENCE_INTERVALS - 1)
    assert site.agents["d"].loads == loads
    site.go_on(2)
    assert site.agents["d"].loads > loads
    assert all(site.route(name).complete for name in ("classify", "caption"))


# --- where modules may stand ---


def test_two_tasks_that_share_a_module_and_may_use_no_device_in_common_get_a_copy_each() -> None:
    site = Site(a=200, b=200)
    site.feed(TaskDeployed(task("classify", VISION, HEAD, devices=("a",))))
    site.feed(TaskDeployed(task("caption", VISION, TEXT, devices=("b",))))
    site.go_on(6)
    assert (site.able("classify", "vision"), site.able("caption", "vision")) == (["a"], ["b"])
    assert site.route("classify").complete
    assert site.route("caption").complete
    assert site.roles()["active"]["vision"] == ["a", "b"]
    assert site.roles()["standby"] == {}
    assert all_of(site.go_on(60), PublishAssignment) == []


def test_a_module_has_one_copy_where_all_its_tasks_may_run() -> None:
    site = Site(a=200, b=200, c=200)
    site.feed(TaskDeployed(task("classify", VISION, HEAD, devices=("a", "b"))))
    site.feed(TaskDeployed(task("caption", VISION, TEXT, devices=("b", "c"))))
    site.go_on(6)
    assert site.roles()["active"]["vision"] == ["b"]


def test_a_device_serves_only_the_tasks_that_its_birth_names() -> None:
    site = Site(CLASSIFY)
    site.join("a", 200, 10e9, tasks=("caption",))
    site.go_on(3)
    assert "a: it may only serve caption" in (site.route("classify").unavailable or "")
    site.join("b", 200, 1e9, tasks=("classify",))
    site.feed(TaskDeployed(CAPTION))
    site.go_on(6)
    assert (site.able("classify", "vision"), site.able("caption", "vision")) == (["b"], ["a"])


def test_a_birth_that_names_other_tasks_moves_modules() -> None:
    site = calm(CLASSIFY, a=200, b=200)
    assert site.able("classify", "vision") == ["a"]
    site.join("a", 200, 10e9, tasks=("caption",))
    site.go_on(3)
    assert site.able("classify", "vision") == ["b"]
    assert site.roles()["active"] == {"vision": ["b"], "head": ["b"]}
    assert site.roles()["standby"] == {}


def test_a_standby_and_a_backup_coordinator_stand_only_where_the_task_may_run() -> None:
    site = Site(a=200, b=200, c=200)
    site.feed(TaskDeployed(task("classify", VISION, HEAD, devices=("a", "c"), redundancy=2)))
    site.go_on(6)
    assert site.roles()["standby"] == {"vision": ["c"], "head": ["c"]}
    assert site.route("classify").second_door == ("c",)


def test_a_backup_coordinator_whose_birth_names_other_tasks_is_replaced() -> None:
    site = calm(task("classify", VISION, HEAD, redundancy=2), a=200, b=200, c=200)
    (backup,) = site.route("classify").second_door
    site.join(backup, 200, 10e9, tasks=("caption",))
    assert backup not in site.route("classify").second_door, "in the answer to the birth"


def test_each_copy_of_a_shared_module_has_a_standby_that_takes_over() -> None:
    site = Site(a=200, b=200, c=200, d=200)
    site.feed(TaskDeployed(task("classify", VISION, HEAD, devices=("a", "b"))))
    site.feed(TaskDeployed(task("caption", VISION, TEXT, devices=("c", "d"))))
    site.go_on(6)
    assert site.roles()["standby"]["vision"] == ["b", "d"]
    site.kill("c")
    assert site.able("caption", "vision") == ["d"], "at once"
    assert site.able("classify", "vision") == ["a"]


def two_copies_of_vision() -> Site:
    """A site where classify has its copy of vision on a, and caption, which may not use that one, has another on c."""
    site = Site(a=200, c=200)
    site.feed(TaskDeployed(task("classify", VISION, HEAD, devices=("a", "c"))))
    site.go_on(3)
    site.feed(TaskDeployed(task("caption", VISION, TEXT, devices=("c",))))
    site.go_on(3)
    return site


def test_a_new_task_that_may_not_use_a_copy_gets_another_one_and_the_first_stays() -> None:
    site = two_copies_of_vision()
    assert (site.able("classify", "vision"), site.able("caption", "vision")) == (["a"], ["c"])


def test_when_a_copy_is_lost_its_task_takes_another_one_where_it_may_run() -> None:
    site = two_copies_of_vision()
    site.kill("a")
    assert site.able("classify", "vision") == ["c"], "at once, for it is ready there"


def test_a_drained_device_loses_its_copy_to_another_one_where_its_task_may_run() -> None:
    site = two_copies_of_vision()
    site.feed(DrainReceived("a", drain=True))
    site.go_on(6)
    assert site.able("classify", "vision") == ["c"]
    assert site.state.assignments["a"].modules == ()


def test_after_a_restart_every_copy_stays_where_it_is() -> None:
    site = Site(a=200, b=200, c=200)
    specs = [
        task("classify", VISION, HEAD, devices=("a", "b")),
        task("caption", VISION, TEXT, devices=("c",)),
    ]
    for spec in specs:
        site.feed(TaskDeployed(spec))
    site.go_on(6)
    before, agents = site.roles()["active"], site.agents
    again = Site()
    again.agents = {}
    for name in "abc":
        again.join(name, 200, 10e9, agents[name])
        held = {key: HeldModule(module="m", state="ready") for key in agents[name].loaded}
        agents[name].seq += 1
        again.feed(
            HeartbeatReceived(name, Heartbeat(session=1, seq=agents[name].seq, epoch=0, generation=0, modules=held))
        )
    for spec in specs:
        again.feed(TaskDeployed(spec))
    again.go_on(6)
    assert again.roles()["active"] == before


# --- which tasks yield ---


def test_a_task_of_greater_weight_takes_the_place_of_an_older_one_and_gives_it_back() -> None:
    site = calm(CLASSIFY, a=75)
    site.feed(TaskDeployed(task("caption", VISION, TEXT, weight=2.0)))
    assert site.route("classify").unavailable is None, "caption doesn't fit at all"
    site.feed(TaskDeployed(task("listen", module("audio", 70), weight=2.0)))
    site.go_on(2)
    assert site.route("listen").complete
    assert "yields to listen" in (site.route("classify").unavailable or "")
    site.feed(TaskUndeployed("listen"))
    site.go_on(2)
    assert site.route("classify").complete


def test_a_later_task_of_equal_weight_yields_whatever_its_name() -> None:
    site = calm(CLASSIFY, a=75)
    site.feed(TaskDeployed(task("a-first-by-name", module("audio", 70))))
    site.go_on(2)
    assert site.route("classify").complete
    assert "yields to classify" in (site.route("a-first-by-name").unavailable or "")


# --- what is published again ---


def published(actions: list[Action]) -> tuple[list[str], list[str]]:
    """The tasks and the devices of the routes and assignments among some actions, each time that one is published."""
    routes = [action.route.task for action in all_of(actions, PublishRoute)]
    return routes, [action.device for action in all_of(actions, PublishAssignment)]


def test_when_one_of_a_hundred_tasks_moves_only_its_own_route_is_published_again() -> None:
    tasks = [task(f"t-{number}", module(f"m-{number}", 50)) for number in range(100)]
    devices = {f"gw-{number}": 60 for number in range(101)}
    site = Site(*tasks, **devices)
    site.go_on(12)
    (home,) = site.able("t-42", "m-42")
    (spare,) = devices.keys() - {device for name in site.state.routes for device in site.able(name, f"m{name[1:]}")}
    before = dict(site.state.routes)
    routes, assignments = published([*site.kill(home), *site.go_on(3)])
    assert routes == ["t-42", "t-42"], "while the module loads, and when it is ready"
    assert sorted(set(assignments)) == sorted({home, spare})
    assert {name for name, route in site.state.routes.items() if route is not before[name]} == {"t-42"}


def test_the_routes_to_a_device_that_gets_another_module_are_as_new_as_its_assignment() -> None:
    """It would refuse older plans; a route that it isn't in stays."""
    site = Site(task("near", VISION), task("far", TEXT), a=60, b=40)
    site.go_on(3)
    site.join("c", 60, 10e9)
    site.feed(TaskDeployed(task("third", HEAD, devices=("c",))))
    site.go_on(2)
    before = site.route("near")
    assert (site.able("far", "text"), site.able("third", "head")) == (["b"], ["c"])
    routes, _ = published([*site.kill("b"), *site.go_on(3)])
    assert site.able("far", "text") == ["c"]
    assert set(routes) == {"far", "third"}
    assert site.route("third").generation == site.state.assignments["c"].generation == site.state.generation
    assert site.route("near") is before
    assert before.generation < site.state.generation


def test_a_standby_that_comes_after_another_devices_move_changes_no_route_either() -> None:
    site = Site(task("near", VISION, devices=("a",)), task("far", TEXT), speed=1e9, a=100)
    for device in ("b", "c"):
        site.join(device, 40, 100e9)
    site.go_on(2)
    before = site.route("near")
    assert site.able("far", "text") == ["b"]
    site.kill("b")
    site.go_on(1)
    assert site.able("far", "text") == ["c"]
    assert site.route("near") is before
    assert before.generation < site.state.generation
    assert site.roles()["standby"] == {}
    routes, assignments = published(site.go_on(6))
    assert site.roles()["standby"] == {"text": ["a"]}
    assert (routes, assignments) == ([], ["a"])


def test_a_device_with_a_longer_heartbeat_interval_than_the_orchestrators_loads_its_modules_once() -> None:
    site = Site(CLASSIFY)
    site.join("a", 100, 10e9, heartbeat_interval_s=10.0)
    site.agents["a"].up = False  # it sends its heartbeats below
    for _ in range(6):
        site.go_on(10)
        site.heartbeat("a")
    assert site.agents["a"].loads == len(CLASSIFY.modules)
    assert site.route("classify").complete
    (told,) = site.told("heartbeat_interval_differs")
    assert told.fields == {"device": "a", "own_s": 10.0, "expected_s": 1.0, "counts": "own_s"}
