"""The reconciler, sentence by sentence: events in, actions out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.epochs import ACCEPTED_AFTER, LARGEST_REPEATED
from broker.leader_watch import READ_RETAINED_S
from broker.protocol.codec import MAX_MESSAGE_BYTES, encode, request_id
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import (
    MAX_EPOCH_JUMP,
    MAX_FENCE,
    DeviceProfile,
    DeviceState,
    ErrorBody,
    Heartbeat,
    HeldModule,
    OrchestratorState,
    Route,
)
from broker.protocol.specs import TaskSpec
from broker.protocol.topics import DEVICE_ASSIGNMENT, DEVICE_DRAIN, TASK_ROUTE, TASK_SPEC, Topic
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from orchestrator.decide import next_deadline_s
from orchestrator.events import (
    Action,
    AnswerError,
    CheckDevice,
    Clear,
    DeviceStateReceived,
    DrainReceived,
    Event,
    HeartbeatReceived,
    LeaderTopicLost,
    MessagesRefused,
    Note,
    Overslept,
    PublishAssignment,
    PublishDrain,
    PublishRoute,
    PublishSpec,
    PublishState,
    RequestRebirth,
    RequestReceived,
    Resign,
    RetainedRouteReceived,
    RevisionReceived,
    RouteHeard,
    TaskDeployed,
    TaskRejected,
    TaskUndeployed,
    Tick,
)
from orchestrator.leadership.orders import confirm
from orchestrator.placement.restore import LARGEST_GENERATION
from orchestrator.state import State, initial
from tests.builders import all_of, chain, leader, module, obedient
from tests.planned import decide_and_plan

REPLY_TO = "s2m3/v1/clients/cam/results/request-1"


VISION = module("vision", memory_bytes=60, flops=30e9)
TEXT = module("text", memory_bytes=40, flops=10e9)
HEAD = module("head", memory_bytes=10)
CLASSIFY = chain("classify", VISION, HEAD)
CAPTION = chain("caption", VISION, TEXT)


class Site:
    """An orchestrator with a clock, and agents that obey when told to."""

    def __init__(self, *, epoch: int = 1) -> None:
        self.state: State = initial(epoch=epoch, heartbeat_interval_s=1.0, settle_s=1.5)
        self.now_s = 0.0
        self.sessions: dict[str, int] = {}
        self.seq = 0
        self.feed(LinkUp(1))

    def feed(self, event: Event) -> list[Action]:
        self.state, actions = decide_and_plan(self.state, event, self.now_s)
        return actions

    def settle(self) -> list[Action]:
        self.now_s += 1.5
        return self.feed(Tick())

    def born(self, device: str, memory_bytes: int = 1000, speed: float = 10e9) -> list[Action]:
        self.sessions[device] = self.sessions.get(device, 0) + 1
        profile = DeviceProfile(
            memory_bytes=memory_bytes, compute_flops_per_s=speed, bandwidth_bits_per_s=100e6, latency_s=0.001
        )
        birth = DeviceState(status="online", session=self.sessions[device], profile=profile)
        return [*self.feed(DeviceStateReceived(device, birth)), *self.heartbeat(device)]

    def heartbeat(self, device: str, held: dict[str, HeldModule] | None = None) -> list[Action]:
        """A heartbeat; without ``held`` it reports as ready all that was assigned."""
        self.seq += 1
        said = self.state.assignments.get(device)
        fields: dict[str, Any] = {} if held is None else {"modules": held}
        return self.feed(HeartbeatReceived(device, obedient(said, self.seq, self.sessions[device], **fields)))

    def report(self, device: str, epoch: int, generation: int, held: dict[str, HeldModule]) -> list[Action]:
        self.seq += 1
        session = self.sessions[device]
        heartbeat = Heartbeat(session=session, seq=self.seq, epoch=epoch, generation=generation, modules=held)
        return self.feed(HeartbeatReceived(device, heartbeat))

    def heartbeats(self) -> list[Action]:
        return [action for device in sorted(self.sessions) for action in self.heartbeat(device)]

    def calm(self) -> list[Action]:
        """Nothing happens for so long that spares are chosen; they are ready at once."""
        actions: list[Action] = []
        for _ in range(2):
            self.now_s += self.state.pace.calm_s / 2
            actions += [*self.feed(Tick()), *self.heartbeats()]
        return actions

    def gone(self, device: str, session: int | None = None) -> list[Action]:
        ended = self.sessions[device] if session is None else session
        return self.feed(DeviceStateReceived(device, DeviceState(status="offline", session=ended)))

    def where(self) -> dict[str, str]:
        return {self.state.placement.modules[key][0]: home for key, home in self.state.placement.where.items()}

    def route(self, name: str) -> Route:
        return self.state.routes[name]


def said(actions: list[Action]) -> list[Action]:
    return [action for action in actions if not isinstance(action, Note)]


def cleared(actions: list[Action], topic: Topic) -> list[str]:
    return [action.name for action in all_of(actions, Clear) if action.topic is topic]


def events(actions: list[Action]) -> list[str]:
    return [note.event for note in all_of(actions, Note)]


def serving(*tasks: TaskSpec, **memory_bytes: int) -> Site:
    """A site with these devices (a is the fastest, then b, then c), whose modules are ready."""
    site = Site()
    for rank, (device, size) in enumerate(memory_bytes.items()):
        site.born(device, size, speed=10e9 / (rank + 1))
    for spec in tasks:
        site.feed(TaskDeployed(spec))
    site.settle()
    site.heartbeats()
    return site


def test_a_deployed_task_gets_its_modules_placed_and_a_complete_route_once_they_are_ready() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    assert site.where() == {"vision": "a", "head": "a"}
    assert site.route("classify").complete
    assert site.route("classify").front_door == ("a",)


def test_nothing_is_placed_before_the_retained_messages_had_time_to_arrive() -> None:
    site = Site()
    site.born("a")
    assert said(site.feed(TaskDeployed(CLASSIFY))) == []
    site.now_s = READ_RETAINED_S
    assert said(site.feed(Tick())) == [announcement(site, change=0)]
    assert next_deadline_s(site.state) == 1.5
    assert len(all_of(site.settle(), PublishAssignment)) == 1


def test_routes_come_before_assignments_and_carry_the_same_generation() -> None:
    site = Site()
    site.born("a", 100)
    site.born("b", 100)
    site.feed(TaskDeployed(CLASSIFY))
    site.feed(TaskDeployed(CAPTION))
    site.now_s = READ_RETAINED_S
    site.feed(Tick())
    actions = said(site.settle())
    kinds = [type(action) for action in actions]
    assert kinds == [PublishState, PublishRoute, PublishRoute, PublishAssignment, PublishAssignment]
    assert {action.route.generation for action in all_of(actions, PublishRoute)} == {1}
    assert {action.assignment.generation for action in all_of(actions, PublishAssignment)} == {1}


def test_while_modules_load_the_route_is_pending() -> None:
    site = Site()
    site.born("a")
    site.feed(TaskDeployed(CLASSIFY))
    site.settle()
    route = site.route("classify")
    assert (route.unavailable, route.front_door, route.complete) == (None, (), False)


def test_shared_modules_are_placed_once_and_their_memory_is_counted_once() -> None:
    site = serving(CLASSIFY, CAPTION, a=110)
    assert site.where() == {"vision": "a", "text": "a", "head": "a"}
    assert len(site.state.assignments["a"].modules) == 3


def test_the_same_event_twice_changes_nothing_the_second_time() -> None:
    site = serving(CLASSIFY, CAPTION, a=100, b=100)
    birth = DeviceStateReceived(
        "c", DeviceState(status="online", session=9, profile=site.state.cluster.devices["a"].profile)
    )
    failed = {VISION.key: HeldModule(module="vision", state="failed", error="no weights")}
    heartbeat = HeartbeatReceived("a", Heartbeat(session=1, seq=99, epoch=1, generation=1, modules=failed))
    happening: list[Event] = [
        TaskDeployed(CLASSIFY),
        TaskRejected("broken", "because"),
        RetainedRouteReceived("old", available=True),
        birth,
        heartbeat,
        DeviceStateReceived("b", DeviceState(status="draining", session=1)),
        DeviceStateReceived("b", DeviceState(status="offline", session=1)),
        TaskUndeployed("caption"),
        Tick(),
    ]
    for event in happening:
        site.feed(event)
        before = site.state
        assert site.feed(event) == [] or isinstance(event, RetainedRouteReceived)
        assert site.state == before


def test_one_late_heartbeat_moves_nothing() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.now_s += 2.9
    site.heartbeat("b")
    assert said(site.feed(Tick())) == []
    assert site.state.cluster.devices["a"].health == "suspect"
    assert said(site.heartbeat("a")) == []
    assert site.where() == {"vision": "a", "head": "a"}


def test_a_late_will_of_an_older_session_moves_nothing() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.born("a", 100)
    site.heartbeat("a", {spec.key: HeldModule(module="m", state="ready") for spec in (VISION, HEAD)})
    generation = site.state.generation
    assert site.gone("a", session=1) == []
    assert site.route("classify").complete
    assert site.state.generation == generation


def test_a_dead_devices_modules_move_and_the_others_stay() -> None:
    site = serving(CLASSIFY, CAPTION, a=70, b=100, c=200)
    assert site.where() == {"vision": "a", "text": "b", "head": "a"}
    actions = site.gone("a")
    assert site.where() == {"vision": "b", "text": "b", "head": "c"}
    assigned = {action.device: action.assignment for action in all_of(actions, PublishAssignment)}
    assert assigned["a"].modules == ()
    assert {action.route.task for action in all_of(actions, PublishRoute)} == {"classify", "caption"}
    site.sessions.pop("a")
    site.heartbeats()
    assert site.route("classify").complete
    assert site.route("caption").complete


def test_a_silent_device_is_dead_after_three_and_a_quarter_intervals_and_then_its_modules_move() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    for _ in range(3):
        site.now_s += 1.0
        site.heartbeat("b")
        assert site.where() == {"vision": "a", "head": "a"}
    assert next_deadline_s(site.state) == site.now_s + 0.25
    site.now_s += 0.25
    site.feed(Tick())
    assert site.where() == {"vision": "b", "head": "b"}


def test_a_silent_device_is_dead_with_the_event_at_which_our_own_check_of_it_fails() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.now_s += 1.5
    accuses = Heartbeat(session=1, seq=site.seq + 1, epoch=0, generation=0, suspects={"b": 0.0})
    assert all_of(site.feed(HeartbeatReceived("a", accuses)), CheckDevice)
    site.now_s += 1.0
    assert "device_changed" in events(site.feed(Tick()))
    assert site.state.cluster.devices["b"].health == "dead"
    assert site.feed(Tick()) == []


def test_devices_whose_modules_did_not_change_hear_nothing() -> None:
    site = serving(CLASSIFY, CAPTION, a=70, b=100, c=200)
    actions = site.gone("c")
    assert all_of(actions, PublishAssignment) == []
    assert all_of(actions, PublishRoute) == []


def test_a_returning_device_takes_nothing_back() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.gone("a")
    generation = site.state.generation
    assert said(site.born("a", 100)) == []
    assert site.where() == {"vision": "b", "head": "b"}
    assert site.state.generation == generation


def test_a_failed_module_goes_to_the_next_device_and_not_back_while_the_session_lasts() -> None:
    site = serving(CLASSIFY, a=100, b=100, c=100)
    site.heartbeat("a", {VISION.key: HeldModule(module="vision", state="failed", error="no weights")})
    assert site.where()["vision"] == "b"
    site.gone("b")
    site.gone("c")
    route = site.route("classify")
    assert route.unavailable is not None
    assert "a: it failed there: no weights" in route.unavailable
    site.born("a", 100)
    assert site.where()["vision"] == "a"


def test_a_task_that_does_not_fit_is_unavailable_with_the_missing_bytes_and_the_others_go_on() -> None:
    site = serving(CLASSIFY, a=100)
    actions = site.feed(TaskDeployed(CAPTION))
    assert "a lacks 10 bytes" in (site.route("caption").unavailable or "")
    assert site.route("classify").complete
    assert all_of(actions, PublishAssignment) == []
    assert [action.route.task for action in all_of(actions, PublishRoute)] == ["caption"]


def test_when_capacity_returns_the_task_returns() -> None:
    site = serving(CLASSIFY, a=100)
    site.feed(TaskDeployed(CAPTION))
    assert site.route("caption").unavailable
    site.born("b", 40)
    assert site.route("caption").unavailable is None
    site.heartbeats()
    assert site.route("caption").complete
    assert site.where() == {"vision": "a", "head": "a", "text": "b"}


def test_without_devices_every_task_says_so() -> None:
    site = serving(CLASSIFY)
    assert "there are no devices" in (site.route("classify").unavailable or "")


def test_a_birth_without_a_heartbeat_gets_no_modules_for_it_may_be_stale() -> None:
    site = serving(CLASSIFY)
    profile = DeviceProfile(memory_bytes=1000, compute_flops_per_s=1e9, bandwidth_bits_per_s=1e8, latency_s=0.0)
    site.feed(DeviceStateReceived("ghost", DeviceState(status="online", session=4, profile=profile)))
    assert site.route("classify").unavailable


def test_a_draining_devices_modules_move_once_they_are_loaded_elsewhere() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.feed(DeviceStateReceived("a", DeviceState(status="draining", session=1)))
    assert site.where() == {"vision": "a", "head": "a"}
    site.heartbeat("b")
    assert site.where() == {"vision": "b", "head": "b"}
    assert site.state.assignments["a"].modules == ()


def test_a_restart_adopts_what_devices_hold_instead_of_moving_it() -> None:
    site = Site(epoch=2)
    site.born("a", 100)
    site.born("b", 100, speed=1e9)
    site.heartbeat("b", {VISION.key: HeldModule(module="vision", state="ready")})
    site.feed(TaskDeployed(CLASSIFY))
    site.settle()
    assert site.where() == {"vision": "b", "head": "a"}
    assert site.route("classify").nodes["n-vision"].devices[0].device == "b"


def test_of_two_holders_the_one_that_is_ready_is_adopted() -> None:
    site = Site(epoch=2)
    site.born("a", 100)
    site.born("b", 100, speed=1e9)
    site.heartbeat("a", {VISION.key: HeldModule(module="vision", state="loading")})
    site.heartbeat("b", {VISION.key: HeldModule(module="vision", state="ready")})
    site.feed(TaskDeployed(CLASSIFY))
    site.settle()
    assert site.where()["vision"] == "b"


def test_after_a_restart_the_tasks_that_were_served_go_first() -> None:
    site = Site(epoch=2)
    site.born("a", 100)
    site.feed(TaskDeployed(CAPTION, retained=True))
    site.feed(TaskDeployed(CLASSIFY, retained=True))
    site.feed(RetainedRouteReceived("caption", available=False))
    site.feed(RetainedRouteReceived("classify", available=True))
    site.settle()
    assert site.route("caption").unavailable
    assert site.route("classify").unavailable is None


def test_every_live_device_hears_of_this_term_even_if_it_holds_nothing() -> None:
    site = Site(epoch=2)
    site.born("a", 100)
    site.heartbeat("a", {VISION.key: HeldModule(module="vision", state="ready")})
    (action,) = all_of(site.settle(), PublishAssignment)
    assert (action.device, action.assignment.epoch, action.assignment.modules) == ("a", 2, ())


def test_an_undeployed_tasks_route_is_cleared_and_only_its_own_modules_are_unloaded() -> None:
    site = serving(CLASSIFY, CAPTION, a=110)
    actions = site.feed(TaskUndeployed("caption"))
    assert cleared(actions, TASK_ROUTE) == ["caption"]
    assert site.where() == {"vision": "a", "head": "a"}
    assert len(site.state.assignments["a"].modules) == 2


def test_routes_of_earlier_terms_without_a_task_are_cleared_after_settling() -> None:
    site = Site()
    site.feed(TaskDeployed(CLASSIFY))
    assert said(site.feed(RetainedRouteReceived("forgotten", available=True))) == []
    site.feed(RetainedRouteReceived("classify", available=True))
    assert cleared(site.settle(), TASK_ROUTE) == ["forgotten"]


def test_a_task_whose_first_spec_is_invalid_is_unavailable_until_it_is_corrected() -> None:
    site = serving(CAPTION, a=200)
    site.feed(TaskRejected("classify", "its spec is wrong: TaskSpec: nodes: is missing"))
    assert "nodes: is missing" in (site.route("classify").unavailable or "")
    site.feed(TaskDeployed(CLASSIFY))
    site.heartbeats()
    assert site.route("classify").complete


def test_a_task_whose_inputs_cannot_pass_the_broker_is_refused_with_the_sizes() -> None:
    site = Site()
    site.feed(LinkUp(2, max_packet_bytes=1_000_000))
    site.born("a", 1000)
    site.feed(TaskDeployed(chain("huge", VISION, image_bytes=999_900)))
    site.feed(TaskDeployed(chain("just", VISION, image_bytes=1_000_000 - 64 * 1024)))
    site.settle()
    assert "976.5 KiB" in (site.route("huge").unavailable or "")
    assert site.route("just").unavailable is None


def test_our_own_limit_holds_where_the_broker_names_none() -> None:
    site = serving(chain("huge", VISION, image_bytes=MAX_MESSAGE_BYTES), a=1000)
    assert "at most 16 MiB" in (site.route("huge").unavailable or "")


def test_a_route_goes_out_again_when_a_module_becomes_ready_but_not_when_its_seconds_drift() -> None:
    site = serving(CLASSIFY, a=100)
    held = {
        spec.key: HeldModule(module=name, state="ready", compute_s=0.5)
        for name, spec in (("vision", VISION), ("head", HEAD))
    }
    assert said(site.heartbeat("a", held)) == []
    held[VISION.key] = HeldModule(module="vision", state="loading")
    (pending,) = said(site.heartbeat("a", held))
    assert isinstance(pending, PublishRoute)
    assert not pending.route.complete
    held[VISION.key] = HeldModule(module="vision", state="ready", compute_s=0.7)
    (complete,) = said(site.heartbeat("a", held))
    assert isinstance(complete, PublishRoute)
    assert complete.route.nodes["n-vision"].devices[0].compute_s == 0.7


def test_the_group_counts_changes_of_the_front_door_and_never_comes_back() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    first = site.route("classify").group
    site.gone("a")
    site.heartbeat("b")
    second = site.route("classify").group
    assert second > first
    site.feed(TaskUndeployed("classify"))
    site.feed(TaskDeployed(CLASSIFY))
    site.heartbeat("b")
    assert site.route("classify").group >= second


def test_the_generation_grows_by_one_for_each_change_of_the_placement() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    assert site.state.generation == 1
    site.heartbeats()
    assert site.state.generation == 1
    site.gone("a")
    assert site.state.generation == 2
    site.gone("b")
    assert site.state.generation == 3


def test_routes_assignments_and_refusals_name_the_revision_of_their_task() -> None:
    site = serving(CLASSIFY, CAPTION, a=1000)
    assert {name: route.revision for name, route in site.state.routes.items()} == {
        "caption": CAPTION.revision,
        "classify": CLASSIFY.revision,
    }
    held = {module.spec.key: module.revision for module in site.state.assignments["a"].modules}
    assert held == {VISION.key: CAPTION.revision, TEXT.key: CAPTION.revision, HEAD.key: CLASSIFY.revision}
    actions = site.feed(TaskDeployed(chain("classify", VISION, HEAD, description="other words")))
    assert not [*all_of(actions, PublishRoute), *all_of(actions, PublishAssignment)]
    heavier = chain("classify", VISION, HEAD, weight=2.0)
    assert heavier.revision != CLASSIFY.revision
    actions = site.feed(TaskDeployed(heavier))
    assert [action.route.revision for action in all_of(actions, PublishRoute)] == [heavier.revision]
    (changed,) = all_of(actions, PublishAssignment)
    assert {module.spec.key: module.revision for module in changed.assignment.modules}[HEAD.key] == heavier.revision
    too_large = chain("classify", module("large", memory_bytes=10**6), HEAD)
    site.feed(TaskDeployed(too_large.model_copy(update={"replace": True})))
    refused = site.route("classify")
    assert (bool(refused.unavailable), refused.revision) == (True, too_large.revision)
    answer, *_ = all_of(site.feed(RequestReceived("classify", REPLY_TO, None, b"x")), AnswerError)
    assert answer.result.revision == too_large.revision


def test_an_assignment_says_why() -> None:
    site = Site()
    site.born("a", 100)
    site.born("b", 50)
    site.feed(TaskDeployed(CLASSIFY))
    site.settle()
    whys = {m.module: m.why for m in site.state.assignments["a"].modules}
    assert whys["vision"].endswith("b: memory short by 10 bytes")


def test_when_the_link_is_back_all_is_published_again_and_nothing_moves() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.calm()
    routes, assignments = site.state.routes, site.state.assignments
    site.feed(LinkDown("broker restarted"))
    site.now_s += 60
    assert said(site.feed(Tick())) == []
    assert said(site.feed(LinkUp(7))) == [], "a newer orchestrator may lead"
    assert said(site.feed(TaskDeployed(CLASSIFY))) == []
    actions = said(site.feed(OrchestratorState(epoch=1, online=False, session=1)))
    assert actions[0] == PublishState(OrchestratorState(epoch=1, online=True, session=7, change=1024))
    assert actions[1] == PublishRoute(routes["classify"])
    assert actions[2:] == [PublishAssignment(device, assignments[device]) for device in ("a", "b")]
    site.born("a", 100)
    site.born("b", 100, speed=5e9)
    site.heartbeats()
    assert said(site.settle()) == [announcement(site)], "the broker has all orders now"
    assert site.route("classify").complete


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_the_wills_that_a_broker_says_when_it_ends_move_nothing(devices: int) -> None:
    names = ("a", "b", "c")[:devices]
    site = serving(CLASSIFY, **dict.fromkeys(names, 100))
    site.calm()
    before = site.state
    for name in names:
        site.gone(name)
        site.now_s += 0.001
        site.feed(leader(1, 1, online=False))  # ours among them: no sign that the broker lives
    site.feed(LinkDown("broker restarted"))
    site.now_s += 4
    site.feed(LinkUp(7))
    for name in names:
        site.gone(name)  # the broker kept its memory: what it said last
    site.now_s += READ_RETAINED_S
    actions = site.feed(Tick())
    site.now_s += site.state.settle_s
    actions += site.feed(Tick())
    assert not [route for route in all_of(actions, PublishRoute) if not route.route.complete]
    assert (site.state.placement, site.route("classify").nodes) == (before.placement, before.routes["classify"].nodes)
    assert {name: said.modules for name, said in site.state.assignments.items()} == {
        name: said.modules for name, said in before.assignments.items()
    }
    assert site.state.generation >= before.generation
    for name in names:
        site.sessions[name] += 10
        profile = site.state.cluster.devices[name].profile
        birth = DeviceState(status="online", session=site.sessions[name], profile=profile)
        actions = said(site.feed(DeviceStateReceived(name, birth)) + site.heartbeat(name))
        assert actions == []


def test_a_better_placement_is_looked_for_only_a_while_after_an_outage() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.feed(LinkDown("broker restarted"))
    site.now_s += 40
    site.feed(LinkUp(7))
    assert site.state.reviewed_s == site.now_s


def test_a_task_deployed_among_the_wills_is_kept() -> None:
    site = serving(CLASSIFY, a=200, b=200)
    site.gone("a")
    site.feed(TaskDeployed(CAPTION))
    site.feed(LinkDown("broker restarted"))
    site.now_s += 4
    site.feed(LinkUp(7))
    for _ in range(3):
        site.now_s += 1.0
        site.heartbeats()
    assert site.where() == {"vision": "a", "head": "a", "text": "a"}
    assert site.route("caption").complete


def test_an_orchestrator_that_comes_up_with_the_broker_waits_for_the_devices_that_served() -> None:
    site = Site(epoch=2)
    site.state = replace(site.state, linked_s=0.0)
    site.feed(TaskDeployed(CLASSIFY))
    site.feed(
        RetainedRouteReceived(
            "classify", available=True, front_door=True, serving={VISION.key: ("b",), HEAD.key: ("b",)}
        )
    )
    site.born("a", 100)
    assert said(site.settle()) == [announcement(site, change=0)]
    assert site.state.settles_at_s == RECONNECT_S
    site.now_s = 4.0
    site.heartbeat("a")
    late = Site(epoch=2)
    late.state, late.sessions, late.seq, late.now_s = site.state, {"a": 1}, site.seq, RECONNECT_S
    late.heartbeat("a")
    assert late.where() == {"vision": "a", "head": "a"}, "but not for ever"
    held = {spec.key: HeldModule(module="m", state="ready") for spec in (VISION, HEAD)}
    profile = DeviceProfile(memory_bytes=100, compute_flops_per_s=1e9, bandwidth_bits_per_s=1e8, latency_s=0.001)
    site.sessions["b"] = 1
    site.feed(DeviceStateReceived("b", DeviceState(status="online", session=1, profile=profile)))
    site.report("b", 1, 1, held)
    assert site.where() == {"vision": "b", "head": "b"}


def test_a_higher_epoch_makes_it_resign_and_its_own_echo_does_not() -> None:
    site = Site(epoch=3)
    assert all_of(site.feed(OrchestratorState(epoch=4, online=True, session=8)), Resign)
    site.settle()
    assert site.feed(OrchestratorState(epoch=3, online=True, session=1)) == []


def announcement(site: Site, *, change: int | None = None) -> PublishState:
    assert site.state.link is not None
    change, session = site.state.orders.change if change is None else change, site.state.link.session
    return PublishState(OrchestratorState(epoch=site.state.epoch, online=True, session=session, change=change))


def test_of_two_orchestrators_with_one_epoch_the_lower_session_resigns() -> None:
    low, high = Site(epoch=3), Site(epoch=3)
    high.feed(LinkUp(8))
    (resigned,) = all_of(low.feed(leader(3, 8)), Resign)
    assert "same epoch 3" in resigned.why
    assert high.feed(leader(3, 1)) == [PublishState(leader(3, 8))], "a late word of its own earlier link"
    assert high.feed(leader(3, 1)) == []
    assert high.feed(leader(3, 5)) == [PublishState(OrchestratorState(epoch=3, online=True, session=8))]


def test_an_orchestrator_whose_term_nobody_heard_of_resigns_to_any_that_leads_with_its_epoch() -> None:
    unheard, heard = Site(epoch=3), Site(epoch=3)
    heard.now_s += READ_RETAINED_S
    assert heard.feed(Tick()) == [announcement(heard)]
    for site, stays in ((unheard, False), (heard, True)):
        assert bool(all_of(site.feed(leader(3, 0)), Resign)) is not stays


@pytest.mark.parametrize("epoch", [7, MAX_FENCE])
@pytest.mark.parametrize("device", ["a", "stranger"])
def test_a_device_that_obeys_a_later_term_is_told_this_one_again_and_ends_no_term(device: str, epoch: int) -> None:
    site = serving(CLASSIFY, a=100)
    site.sessions[device] = 1
    actions = site.report(device, epoch, 0, {})
    assert not all_of(actions, Resign)
    assert all_of(actions, PublishState) == [announcement(site)]
    assert all_of(actions, Note)[0].fields == {"device": device, "obeys_epoch": epoch, "own_epoch": 1}
    assert not all_of(site.report(device, epoch, 0, {}), PublishState), "at most every five seconds"
    site.now_s += 5
    assert all_of(site.report(device, epoch, 0, {}), PublishState)
    assert site.state.epoch == 1


def test_a_device_that_obeys_a_later_term_gets_its_assignment_again() -> None:
    site = serving(CLASSIFY, a=100)
    actions: list[Action] = []
    for _ in range(6):
        site.now_s += 1.0
        held = {m.spec.key: HeldModule(module=m.module, state="ready") for m in site.state.assignments["a"].modules}
        actions += site.report("a", 7, 0, held)
    assert all_of(actions, PublishAssignment) == [PublishAssignment("a", site.state.assignments["a"])]


@pytest.mark.parametrize("epoch", [MAX_EPOCH_JUMP + 2, MAX_FENCE])
@pytest.mark.parametrize("online", [True, False])
def test_an_epoch_that_is_not_plausible_is_overwritten_and_ends_no_term(epoch: int, *, online: bool) -> None:
    site = serving(CLASSIFY, a=100)
    actions = site.feed(leader(epoch, 8, online=online))
    assert events(actions) == ["epoch_not_plausible"]
    assert said(actions) == [announcement(site)]
    for session in range(9, 14):
        assert said(site.feed(leader(epoch, session, online=online))) == [announcement(site)]


def test_a_leader_that_repeats_an_epoch_far_above_ours_is_real_and_a_number_near_the_end_never_is() -> None:
    site, other = Site(), Site()
    for times in range(ACCEPTED_AFTER):
        actions = site.feed(leader(MAX_EPOCH_JUMP + 2, 8))
        assert bool(all_of(actions, Resign)) == (times == ACCEPTED_AFTER - 1)
        assert not all_of(other.feed(leader(LARGEST_REPEATED + 1, 8)), Resign)


def test_a_cleared_or_unreadable_leaders_topic_is_written_again() -> None:
    site = Site(epoch=3)
    assert said(site.feed(LeaderTopicLost("it was cleared"))) == [PublishState(leader(3, 1))]


def test_a_route_of_a_task_that_does_not_exist_is_cleared_and_one_of_a_later_term_is_overwritten() -> None:
    site = serving(CLASSIFY, a=100)
    assert site.feed(RouteHeard("nonsense", 1)) == [Clear(TASK_ROUTE, "nonsense")]
    assert site.feed(heard(site.route("classify"))) == [], "our own, coming back"
    actions = site.feed(RouteHeard("classify", 2))
    assert said(actions) == [announcement(site), PublishRoute(site.route("classify"))]


def heard(route: Route) -> RouteHeard:
    """The event of a route that was published just now."""
    return RouteHeard(route.task, route.epoch, route.generation, payload=encode(route))


def test_a_route_of_the_same_or_an_older_generation_that_another_client_published_is_overwritten() -> None:
    site = serving(CLASSIFY, a=100)
    ours = site.route("classify")
    assert ours.generation > 0
    for lie in ({"unavailable": "a lie"}, {"group": ours.group + 1}, {"epoch": 0}, {"generation": ours.generation - 1}):
        actions = site.feed(heard(ours.model_copy(update=lie)))
        assert said(actions) == [PublishRoute(ours)], lie
        assert site.feed(heard(ours)) == [], "our own, coming back"
    assert site.route("classify") == ours


def test_own_routes_that_come_back_after_the_next_ones_were_published_are_not_taken_for_another_clients() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    first = site.route("classify")
    site.heartbeat("a", held={})
    second = site.route("classify")
    assert second != first
    assert site.feed(heard(first)) == []
    assert said(site.feed(heard(first))) == [PublishRoute(second)], "it was published once"
    assert [site.feed(heard(second)) for _ in range(3)] == [[], [], []]
    assert not site.state.under_way


def test_a_route_that_another_client_cleared_is_published_again_and_our_own_clearing_stands() -> None:
    site = serving(CLASSIFY, a=100)
    assert said(site.feed(RouteHeard("classify", 0, is_empty=True))) == [PublishRoute(site.route("classify"))]
    assert site.feed(RouteHeard("nonsense", 0, is_empty=True)) == [], "or it would clear it for ever"
    site.feed(TaskUndeployed("classify"))
    assert not said(site.feed(RouteHeard("classify", 0, is_empty=True)))


@pytest.mark.parametrize("foreign", [2, 1_000_000, LARGEST_GENERATION - 3])
def test_a_route_of_a_later_generation_is_overwritten_by_one_beyond_it(foreign: int) -> None:
    site = serving(CLASSIFY, CAPTION, a=1000)
    caption = site.route("caption")
    (route,) = all_of(site.feed(RouteHeard("classify", 1, site.state.generation + foreign)), PublishRoute)
    assert route.route.generation == site.state.generation > foreign
    assert site.route("classify") == route.route
    assert site.route("caption") == caption, "the other tasks have nothing to do with it"
    assert site.feed(heard(route.route)) == [], "our own, coming back"


@pytest.mark.parametrize("foreign", [LARGEST_GENERATION, MAX_FENCE])
def test_where_no_generation_is_left_a_route_ends_the_term_and_a_devices_word_does_not(foreign: int) -> None:
    site = serving(CLASSIFY, a=1000)
    generation, held = site.state.generation, dict(site.state.cluster.devices["a"].modules)
    site.now_s += 10.0
    assert said(site.report("a", 1, foreign, held)) == [PublishAssignment("a", site.state.assignments["a"])]
    assert site.state.generation == generation
    assert [each.epoch for each in all_of(site.feed(RouteHeard("classify", 1, foreign)), Resign)] == [1]


def test_a_device_that_obeys_a_strangers_assignment_gets_ours_again_beyond_it_with_the_routes_that_name_it() -> None:
    site = serving(CLASSIFY, a=100, b=1000)
    for key in ("a", "b"):
        assert said(site.heartbeat(key)) == []
    others = {name: last for name, last in site.state.assignments.items() if name != "a"}
    held = dict(site.state.cluster.devices["a"].modules)
    actions = said(site.report("a", 1, site.state.generation + 5_000, held))
    published = all_of(actions, PublishAssignment)
    assert [each.device for each in published] == ["a"]
    assert published[0].assignment.generation == site.state.generation > 5_000
    assert [each.route.generation for each in all_of(actions, PublishRoute)] == [site.state.generation]
    assert actions.index(published[0]) == len(actions) - 1, "after the routes"
    assert {name: last for name, last in site.state.assignments.items() if name != "a"} == others
    assert said(site.heartbeat("a")) == []


def test_a_device_that_lies_about_what_it_obeys_moves_the_generation_seldom() -> None:
    site, seen = serving(CLASSIFY, a=100, b=1000), []
    for _ in range(20):
        generation = site.state.generation
        site.report("a", 1, generation + 1_000, {})
        seen.append(site.state.generation > generation)
        site.now_s += 1.0
        site.heartbeat("b")
    assert sum(seen) == 4, "once in five seconds"


def confirmed(site: Site) -> Site:
    """The site after its own announcement came back: the broker has all orders."""
    site.state = replace(site.state, orders=confirm(site.state.orders, 1, site.state.orders.change))
    return site


def reconnected(site: Site, *retained: Event, session: int = 2) -> list[Action]:
    """The link goes and comes, and the broker delivers what it retains. What the orchestrator says after that."""
    site.feed(LinkDown("lost"))
    site.now_s += 5
    site.feed(LinkUp(session))
    actions = [action for event in retained for action in said(site.feed(event))]
    site.now_s += READ_RETAINED_S
    actions += said(site.feed(Tick()))
    site.heartbeats()
    return actions + said(site.settle())


WILL = leader(1, 1, online=False)
ROUTED = RetainedRouteReceived("classify", available=True, front_door=True)
RETAINED = TaskDeployed(CLASSIFY, retained=True)
NEWER = CLASSIFY.model_copy(update={"weight": 3.0})


def test_a_task_that_was_undeployed_while_the_link_was_down_is_taken_away() -> None:
    site = confirmed(serving(CLASSIFY, a=100))
    actions = reconnected(site, WILL, ROUTED)
    assert Clear(TASK_ROUTE, "classify") in actions
    assert site.where() == {}
    assert not all_of(actions, PublishSpec)
    assert (site.state.tasks, list(site.state.orders.undeployed)) == ({}, ["classify"])


@pytest.mark.parametrize("retained", [[], [ROUTED], [leader(1, 1)], [leader(1, 0, online=False), ROUTED]])
def test_a_broker_that_lost_its_memory_is_given_the_specs_back_and_the_task_stays(retained: list[Event]) -> None:
    """It has no change number, or a lower one; whatever else it has proves nothing."""
    site = confirmed(serving(CLASSIFY, a=100))
    change, generation = site.state.orders.change, site.state.generation
    actions = reconnected(site, *retained)
    announced = all_of(actions, PublishState)
    assert [each.message.change for each in (announced[0], announced[-1])] == [0, change]
    assert all_of(actions, PublishSpec) == [PublishSpec(CLASSIFY)]
    last = actions.index(announced[-1])
    assert actions.index(PublishSpec(CLASSIFY)) < last, "the broker has all orders up to the number that it gets"
    assert site.route("classify").complete
    assert site.state.generation == generation
    assert said(site.feed(Tick())) == []


def test_an_old_memory_gets_only_what_changed_since() -> None:
    """The broker came back with what it saved before: an old spec, a task that was undeployed since, and a drain."""
    site = serving(CLASSIFY, CAPTION, a=300, b=300)
    site.feed(DrainReceived("b", drain=True))
    saved = leader(1, 1).model_copy(update={"change": site.state.orders.change})
    site.feed(TaskDeployed(NEWER))
    site.feed(TaskUndeployed("caption"))
    site.feed(DrainReceived("b", drain=False))
    site.feed(DrainReceived("a", drain=True))
    retained: list[Event] = [
        saved,
        RETAINED,
        TaskDeployed(CAPTION, retained=True),
        DrainReceived("b", drain=True, retained=True),
    ]
    actions = reconnected(site, *retained)
    assert all_of(actions, PublishSpec) == [PublishSpec(NEWER)]
    assert cleared(actions, TASK_SPEC) == ["caption"]
    assert all_of(actions, PublishDrain) == [PublishDrain("a")]
    assert cleared(actions, DEVICE_DRAIN) == ["b"]
    assert site.state.tasks == {"classify": NEWER}
    assert site.state.cluster.drained == {"a"}


def test_what_an_old_memory_lacks_from_before_its_number_was_undeployed() -> None:
    site = serving(CLASSIFY, CAPTION, a=300)
    saved = leader(1, 1).model_copy(update={"change": site.state.orders.change})
    site.feed(TaskDeployed(NEWER))
    actions = reconnected(site, saved)
    assert all_of(actions, PublishSpec) == [PublishSpec(NEWER)]
    assert site.state.tasks == {"classify": NEWER}


def test_an_order_that_was_given_before_we_were_back_wins() -> None:
    """The broker lost its memory, and an operator deployed, undeployed and drained before the orchestrator was back."""
    other = CAPTION.model_copy(update={"weight": 7.0})
    site = serving(CLASSIFY, CAPTION, a=300, b=300)
    site.feed(DrainReceived("a", drain=True))
    given: list[Event] = [
        TaskDeployed(other, retained=True),
        TaskUndeployed("classify"),
        DrainReceived("a", drain=False),
    ]
    actions = reconnected(site, *given)
    assert not all_of(actions, PublishSpec)
    assert not all_of(actions, PublishDrain)
    assert (site.state.tasks, site.state.cluster.drained) == ({"caption": other}, frozenset())


def test_a_task_that_was_undeployed_after_a_link_that_was_too_short_to_settle_is_taken_away() -> None:
    """The will of that link has no number: the one that was heard over it counts, also after a restart."""
    site = confirmed(serving(CLASSIFY, a=100))
    site.feed(LinkDown("lost"))
    site.feed(LinkUp(2))
    site.feed(WILL)
    stored = site.state.orders
    will = leader(1, 2, online=False)
    assert not all_of(reconnected(site, will, session=3), PublishSpec)
    assert (site.state.tasks, list(site.state.orders.undeployed)) == ({}, ["classify"])
    site.state = replace(initial(epoch=2, orders=stored), link=LinkUp(5), sessions=(5,), settles_at_s=1.5)
    assert not all_of([*site.feed(will), *site.settle()], PublishSpec)
    assert site.state.tasks == {}


def test_orders_that_come_before_it_settled_outlive_the_link_and_the_brokers_memory() -> None:
    site = confirmed(serving(CLASSIFY, a=300, b=100))
    site.feed(LinkDown("lost"))
    for event in (LinkUp(2), WILL, TaskUndeployed("classify"), TaskDeployed(CAPTION), DrainReceived("b", drain=True)):
        site.feed(event)
    actions = reconnected(site, session=3)
    assert all_of(actions, PublishSpec) == [PublishSpec(CAPTION)]
    assert all_of(actions, PublishDrain) == [PublishDrain("b")]
    assert (site.state.tasks, site.state.cluster.drained) == ({"caption": CAPTION}, frozenset({"b"}))


def test_a_task_that_is_deployed_before_it_settled_is_younger_than_those_that_the_broker_retained() -> None:
    site = Site(epoch=2)
    site.born("a", 100)
    for event in (TaskDeployed(CLASSIFY), TaskDeployed(CAPTION, retained=True)):
        site.feed(event)
    site.settle()
    assert list(site.state.tasks) == ["caption", "classify"]


def restarted(*retained: Event) -> tuple[Site, list[Action]]:
    """A new term that begins with stored orders; what it says after it settled."""
    site = Site(epoch=2)
    orders = replace(confirmed(serving(CLASSIFY, a=100)).state.orders, drains={"b": 1024})
    site.state = replace(initial(epoch=2, orders=orders), link=LinkUp(5), sessions=(5,), settles_at_s=1.5)
    for event in retained:
        site.feed(event)
    site.born("a", 100)
    return site, site.settle()


def test_stored_orders_are_given_back_to_a_broker_that_lost_its_memory() -> None:
    site, actions = restarted(ROUTED)
    assert all_of(actions, PublishSpec) == [PublishSpec(CLASSIFY)]
    assert all_of(actions, PublishDrain) == [PublishDrain("b")]
    site.heartbeats()
    assert site.route("classify").complete


def test_a_stored_task_that_was_undeployed_without_a_leader_does_not_come_back() -> None:
    site, actions = restarted(WILL, ROUTED)
    assert not all_of(actions, PublishSpec)
    assert cleared(actions, TASK_ROUTE) == ["classify"]
    assert (site.state.tasks, site.where(), site.state.cluster.drained) == ({}, {}, frozenset())


def test_the_number_of_a_later_term_is_above_those_of_earlier_terms() -> None:
    """A leader without a copy would otherwise count from 0 again, below what a standby knows."""
    site = serving(CLASSIFY, a=100)
    assert site.state.orders.change == 1024
    site.feed(TaskDeployed(CAPTION))
    assert site.state.orders.change == 1025
    later = Site(epoch=2)
    later.feed(TaskDeployed(CLASSIFY, retained=True))
    later.settle()
    assert later.state.orders.change == 2048


def test_an_absurd_change_number_counts_as_none() -> None:
    site = confirmed(serving(CLASSIFY, a=100))
    actions = reconnected(site, leader(1, 9).model_copy(update={"change": MAX_FENCE, "epoch": 0}))
    assert all_of(actions, PublishSpec) == [PublishSpec(CLASSIFY)]
    assert site.state.orders.change == 1024


def test_orders_that_came_from_the_broker_need_no_confirmation() -> None:
    """The leader may end as soon as they are in force: its will says then that the broker has them."""
    site = serving(CLASSIFY, a=100)
    assert (site.state.orders.session, site.state.orders.confirmed) == (1, 1024)
    site.feed(TaskDeployed(CAPTION))
    assert (site.state.orders.session, site.state.orders.confirmed) == (1, 1025)


def test_our_own_announcement_confirms_that_the_broker_has_the_orders_that_we_gave_back() -> None:
    site, actions = restarted(ROUTED)
    assert (site.state.orders.session, site.state.orders.confirmed) == (5, 0)
    site.feed(leader(2, 5))
    assert (site.state.orders.session, site.state.orders.confirmed) == (5, 0), "a heartbeat has no number"
    site.feed(all_of(actions, PublishState)[-1].message)
    assert (site.state.orders.session, site.state.orders.confirmed) == (5, site.state.orders.change)


def test_the_last_five_revisions_of_a_task_are_kept() -> None:
    site = serving(CLASSIFY, a=100)
    specs = [CLASSIFY.model_copy(update={"weight": float(weight)}) for weight in range(2, 9)]
    for spec in specs:
        site.feed(TaskDeployed(spec))
    assert site.state.orders.revisions == {"classify": tuple(specs[:-6:-1])}
    site.feed(TaskDeployed(specs[-3]))
    assert site.state.orders.revisions["classify"][:3] == (specs[-3], specs[-1], specs[-2]), "a revision comes back"
    site.feed(TaskUndeployed("classify"))
    assert site.state.orders.revisions == {}


def test_revisions_outlive_a_spec_that_is_rejected() -> None:
    site = serving(CLASSIFY, a=100)
    site.feed(TaskRejected("classify", "its spec is wrong"))
    assert site.state.orders.revisions == {"classify": (CLASSIFY,)}
    reconnected(site, TaskRejected("classify", "its spec is wrong"))
    assert site.state.orders.revisions == {"classify": (CLASSIFY,)}
    site.feed(TaskDeployed(NEWER))
    assert site.state.orders.revisions == {"classify": (NEWER, CLASSIFY)}
    site.feed(TaskRejected("classify", "its spec is wrong"))
    site.feed(TaskUndeployed("classify"))
    assert site.state.orders.revisions == {}


def test_a_drained_device_stays_empty_when_the_broker_lost_its_memory() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.feed(DrainReceived("a", drain=True))
    site.heartbeats()
    assert PublishDrain("a") in reconnected(site)
    site.heartbeats()
    assert set(site.where().values()) == {"b"}
    assert PublishDrain("a") not in site.feed(Tick())


def test_a_drain_that_was_taken_back_while_the_link_was_down_is_not_given_back() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.feed(DrainReceived("a", drain=True))
    assert not all_of(reconnected(confirmed(site), WILL, RETAINED), PublishDrain)
    assert not site.state.cluster.devices["a"].draining


def test_a_device_that_does_not_report_its_assignment_gets_it_again_at_most_every_five_seconds() -> None:
    site = Site()
    site.born("a", 100)
    site.feed(TaskDeployed(CLASSIFY))
    told = all_of(site.settle(), PublishAssignment)
    repeats_s = []
    for _ in range(12):
        site.now_s += 1.0
        again = all_of(site.report("a", 0, 0, {}), PublishAssignment)
        if again:
            assert again == told
            repeats_s.append(site.now_s - 1.5)
    assert repeats_s == [5.0, 10.0]


def test_a_device_that_lost_one_module_gets_its_assignment_again_unless_it_reports_the_reason() -> None:
    site = serving(CLASSIFY, a=100)
    site.now_s += 5.0
    held = {VISION.key: HeldModule(module="vision", state="ready")}
    assert len(all_of(site.heartbeat("a", held), PublishAssignment)) == 1
    for state in ("loading", "ready"):
        site.now_s += 5.0
        held[HEAD.key] = HeldModule(module="head", state=state)
        assert all_of(site.heartbeat("a", held), PublishAssignment) == []


def test_a_device_that_obeys_an_older_assignment_gets_the_new_one_again() -> None:
    site = serving(CLASSIFY, a=100)
    held = {spec.key: HeldModule(module="m", state="ready") for spec in (VISION, HEAD)}
    site.now_s += 5.0
    assert all_of(site.report("a", 1, 1, held), PublishAssignment) == []
    assert len(all_of(site.report("a", 1, 0, held), PublishAssignment)) == 1


def test_the_assignment_of_a_forgotten_device_is_cleared() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    site.gone("a")
    site.now_s += 3600.0
    assert cleared(site.heartbeat("b"), DEVICE_ASSIGNMENT) == ["a"]
    assert "a" not in site.state.assignments
    assert "a" not in site.state.assigned_s


def test_a_task_whose_route_cannot_be_written_is_unavailable_and_the_others_go_on() -> None:
    endless = module("text", memory_bytes=10).model_copy(update={"source": None, "family": "x." + "y" * 600})
    slow = module("slow", memory_bytes=10).model_copy(update={"flops": 1e300})
    odd = [
        chain("odd", VISION).model_copy(update={"task": name, "modules": {"vision": spec}})
        for name, spec in (("odd", endless), ("slow", slow))
    ]
    site = serving(CLASSIFY, *odd, a=1000)
    assert "its route can't be written" in (site.route("odd").unavailable or "")
    assert endless.key not in site.state.placement.where, "no device could even report it"
    assert "its route can't be written" in (site.route("slow").unavailable or "")
    assert site.route("classify").complete


def test_a_failed_module_is_tried_again_where_it_failed_after_a_while() -> None:
    site = serving(CLASSIFY, a=100)
    site.heartbeat("a", {VISION.key: HeldModule(module="vision", state="failed", error="disk full")})
    assert "disk full" in (site.route("classify").unavailable or "")
    site.now_s += 29.0
    site.heartbeat("a", {})
    assert site.route("classify").unavailable
    site.now_s += 1.0
    assert len(all_of(site.feed(Tick()), PublishAssignment)) == 1
    assert site.where()["vision"] == "a"


def test_a_corrected_spec_is_tried_at_once_where_the_module_failed() -> None:
    site = serving(CLASSIFY, a=100)
    site.heartbeat("a", {VISION.key: HeldModule(module="vision", state="failed", error="unknown family")})
    site.heartbeat("a", {})
    assert site.route("classify").unavailable
    site.feed(TaskDeployed(CLASSIFY))
    assert site.route("classify").unavailable, "nothing was corrected"
    corrected = VISION.model_copy(update={"family": "other.kind"})
    assert corrected.key == VISION.key
    site.feed(TaskDeployed(chain("classify", corrected, HEAD)))
    site.heartbeat("a")
    assert site.route("classify").complete


def test_a_module_that_three_devices_refused_is_not_tried_again_because_one_of_them_reconnects() -> None:
    site = serving(CLASSIFY, a=100, b=100, c=100, d=100)
    refused = {VISION.key: HeldModule(module="vision", state="failed", error="its file is torn")}
    for device in ("a", "b", "c"):
        site.heartbeat(device, refused)
    assert site.where() == {}
    site.sessions["a"] += 1
    birth = DeviceState(status="online", session=site.sessions["a"], profile=site.state.cluster.devices["a"].profile)
    assert said(site.feed(DeviceStateReceived("a", birth))) == []
    assert said(site.heartbeat("a", refused)) == []
    assert site.where() == {}


def test_failures_that_devices_report_of_modules_they_were_not_assigned_take_no_task_away() -> None:
    site = serving(CLASSIFY, a=100, b=10, c=10, d=10, e=100)
    lie = {VISION.key: HeldModule(module="vision", state="failed", error="its file is torn")}
    for device in ("b", "c", "d"):
        site.heartbeat(device, lie)
    site.heartbeat("a")
    assert site.where() == {"vision": "a", "head": "a"}
    site.heartbeat("a", lie)
    assert site.where() == {"vision": "e", "head": "a"}, "one refusal counts, those of b, c and d don't"
    site.heartbeat("a")
    site.heartbeat("e")
    assert site.route("classify").complete


def test_a_task_that_was_taken_away_and_deployed_again_is_tried_at_once() -> None:
    site = serving(CLASSIFY, a=100)
    site.heartbeat("a", {VISION.key: HeldModule(module="vision", state="failed", error="its file is torn")})
    site.heartbeat("a", {})
    site.feed(TaskUndeployed("classify"))
    site.feed(TaskDeployed(CLASSIFY))
    site.heartbeat("a")
    assert site.route("classify").complete


def test_a_device_with_heartbeats_and_no_known_birth_is_asked_for_it_but_not_at_every_heartbeat() -> None:
    site = serving(CLASSIFY, a=100)
    site.sessions["b"] = 4
    assert site.heartbeat("b") == [RequestRebirth("b")]
    site.now_s += 1
    assert site.heartbeat("b") == []
    site.heartbeat("a")
    site.now_s += 1.9
    site.heartbeat("a")
    site.now_s += 1.9
    site.heartbeat("a")
    site.now_s += 1
    assert RequestRebirth("b") in site.heartbeat("b")
    site.born("b", 100)
    assert not all_of(site.heartbeat("b"), RequestRebirth)


def test_a_task_with_redundancy_has_a_backup_coordinator_outside_the_front_door_and_keeps_it() -> None:
    spec = CLASSIFY.model_copy(update={"redundancy": 2})
    site = serving(spec, a=100, b=10, c=10)
    first = site.route("classify")
    assert (first.front_door, first.second_door) == (("a",), ("b",))
    site.gone("b")
    second = site.route("classify")
    assert second.second_door == ("c",)
    assert second.group > first.group, "a new set is a new share group"
    site.born("b", 10)
    assert site.route("classify").second_door == ("c",)
    assert serving(CLASSIFY, a=100, b=10).route("classify").second_door == ()


def test_what_most_tasks_need_is_listed_first_and_standbys_last() -> None:
    site = Site()
    site.born("a", 200)
    for spec in (chain("a-first", HEAD, TEXT), CAPTION):
        site.feed(TaskDeployed(spec))
    site.settle()
    assert site.state.assignments["a"].modules[0].module == "text"
    site.heartbeats()
    site.born("b", 200, speed=1e9)
    site.heartbeats()
    site.calm()
    roles = [told.role for told in site.state.assignments["b"].modules]
    assert roles == sorted(roles)
    assert site.state.assignments["b"].modules[0].module == "text"


def test_a_late_will_of_ours_or_an_older_orchestrator_is_overwritten() -> None:
    site = Site(epoch=3)
    truth = [PublishState(OrchestratorState(epoch=3, online=True, session=1))]
    assert site.feed(OrchestratorState(epoch=3, online=False, session=0)) == truth
    assert site.feed(OrchestratorState(epoch=2, online=True, session=5)) == truth


def ask(site: Site, name: str, correlation: bytes | None = b"request-1") -> list[Action]:
    return site.feed(RequestReceived(name, REPLY_TO, correlation, b"a picture"))


def refusal(actions: list[Action]) -> ErrorBody:
    (answer,) = all_of(actions, AnswerError)
    assert answer.result.error is not None
    return answer.result.error


def test_a_request_for_an_unknown_task_is_answered_at_once_with_what_is_deployed() -> None:
    site = serving(CLASSIFY, CAPTION, a=200)
    (answer,) = ask(site, "clasify")
    assert isinstance(answer, AnswerError)
    assert answer.result.error is not None
    assert answer.result.error.code == ErrorCode.NO_ROUTE
    assert answer.result.error.message == (
        "no task is called clasify; deployed tasks: caption, classify; deploy it with `s2m3 deploy FILE`"
    )
    assert answer.correlation == b"request-1"


def test_a_request_for_an_unavailable_task_is_answered_with_the_reason() -> None:
    site = serving(CAPTION, a=50)
    (answer,) = ask(site, "caption")
    assert isinstance(answer, AnswerError)
    assert answer.result.error is not None
    assert answer.result.error.message == site.route("caption").unavailable


def test_requests_for_tasks_with_a_front_door_are_left_to_the_agents() -> None:
    site = serving(CLASSIFY, a=60, b=10)
    assert ask(site, "classify") == []
    site.heartbeat("b", {})
    assert not site.route("classify").complete
    assert ask(site, "classify") == []


def test_before_the_broker_could_say_what_it_remembers_no_request_is_answered() -> None:
    assert ask(Site(), "classify") == []


def test_while_it_settles_the_answer_says_when_to_try_again_unless_agents_serve_its_task() -> None:
    site = Site()
    site.feed(RetainedRouteReceived("classify", available=True, front_door=True))
    site.feed(RetainedRouteReceived("caption", available=True, front_door=False))
    site.now_s += 0.5
    assert ask(site, "classify") == []
    for name in ("caption", "unknown"):
        error = refusal(ask(site, name))
        assert (error.message, error.retry_after_s) == ("the orchestrator has just started; try again", 1.0)


def test_while_the_front_door_loads_the_answer_names_the_devices_and_modules() -> None:
    site = Site()
    site.born("a", 60)
    site.born("b", 10, speed=1e9)
    site.feed(TaskDeployed(CLASSIFY))
    site.settle()
    error = refusal(ask(site, "classify"))
    assert error.message == "its modules are being loaded: a loads vision, b loads head; try again"
    assert (error.code, error.retry_after_s) == (ErrorCode.NO_ROUTE, 1.0)


def test_the_answer_carries_the_id_by_which_agents_know_the_request() -> None:
    site = serving()
    payloads = [b"one picture", b"another picture"]
    answers = [
        all_of(site.feed(RequestReceived("nothing", REPLY_TO, None, payload)), AnswerError) for payload in payloads
    ]
    ids = [answer.result.request for (answer,) in answers]
    assert ids == [request_id("nothing", REPLY_TO, b"", payload) for payload in payloads]
    assert ids[0] != ids[1]


def test_the_log_tells_of_devices_placements_and_withdrawn_tasks() -> None:
    site = serving(CLASSIFY, a=100, b=100)
    assert events(site.gone("a")) == ["device_changed", "placed"]
    assert events(site.gone("b")) == ["device_changed", "placed", "task_withdrawn"]
    assert events(site.feed(Tick())) == []


def test_a_task_that_describes_a_shared_module_differently_is_refused_and_disturbs_no_other() -> None:
    site = serving(CLASSIFY, a=1000)
    before = site.where()
    for changed in ({"family": "wrong.family"}, {"memory_bytes": 1}):
        wrong = chain("another", VISION.model_copy(update=changed), TEXT)
        site.feed(TaskDeployed(TaskSpec.model_validate(wrong.model_dump())))
        reason = site.route("another").unavailable
        assert reason is not None
        assert next(iter(changed)) in reason
        assert "classify" in reason
        assert site.where() == before
        assert site.route("classify").complete
    site.feed(TaskDeployed(chain("another", VISION, TEXT)))
    assert site.route("another").unavailable is None


def test_our_own_word_that_comes_back_over_this_link_proves_it_and_no_other_does() -> None:
    site = Site(epoch=3)
    site.feed(OrchestratorState(epoch=3, online=True, session=77))
    assert site.state.cluster.echo_s is None
    site.now_s = 4.0
    site.feed(OrchestratorState(epoch=3, online=True, session=1))
    assert site.state.cluster.echo_s == 4.0
    site.feed(LinkDown("cut"))
    site.feed(LinkUp(2))
    assert site.state.cluster.echo_s is None


# --- control messages that found no room ---


def read_again(site: Site, *specs: TaskSpec) -> list[Action]:
    """Messages were refused, and the broker sends again what it retains; the messages that follow from that."""
    assert said(site.feed(MessagesRefused())) == [announcement(site)]
    actions: list[Action] = []
    for spec in specs:
        actions += site.feed(TaskDeployed(spec, retained=True))
    actions += site.settle()
    assert said(actions) == [], "our own announcement comes after all others"
    site.feed(announcement(site).message)
    return said(site.settle())


def test_after_a_refusal_that_lost_nothing_only_the_leader_is_announced() -> None:
    site = serving(CLASSIFY, CAPTION, a=200, b=100)
    site.calm()
    state = site.state
    assert read_again(site, CAPTION, CLASSIFY) == [announcement(site)]
    assert (site.state.routes, site.state.assignments) == (state.routes, state.assignments)
    assert list(site.state.tasks) == ["classify", "caption"], "as they were deployed"


def test_a_refused_deployment_is_found_and_a_refused_undeployment_too() -> None:
    site = serving(CLASSIFY, a=200)
    actions = read_again(site, CAPTION)
    assert cleared(actions, TASK_ROUTE) == ["classify"]
    assert [action.route.task for action in all_of(actions, PublishRoute)] == ["caption"]
    assert site.state.orders.specs.keys() == site.state.tasks.keys() == {"caption"}


def test_a_refused_drain_is_found_and_a_refused_end_of_one_too() -> None:
    site = serving(CLASSIFY, a=200, b=200)
    site.feed(DrainReceived("a", drain=True))
    site.feed(MessagesRefused())
    site.feed(TaskDeployed(CLASSIFY, retained=True))
    site.feed(DrainReceived("b", drain=True, retained=True))
    site.feed(announcement(site).message)
    assert site.state.cluster.drained == {"a", "b"}, "until all had the time to come"
    site.settle()
    assert site.state.cluster.drained == site.state.orders.drained == {"b"}


def test_what_was_refused_while_the_orchestrator_settles_is_not_taken_for_removed() -> None:
    site = serving(CLASSIFY, CAPTION, a=200)
    retained = announcement(site).message
    site.feed(LinkDown("lost"))
    site.feed(LinkUp(2))
    site.feed(retained)
    site.feed(TaskDeployed(CLASSIFY, retained=True))
    site.now_s += 1.4
    assert not all_of(site.feed(MessagesRefused()), PublishState), "another orchestrator may lead"
    site.now_s += 1.4
    assert not site.feed(Tick())
    for spec in (CLASSIFY, CAPTION):  # the broker sends them again
        site.feed(TaskDeployed(spec, retained=True))
    assert cleared(site.settle(), TASK_ROUTE) == []
    assert site.state.tasks.keys() == {"classify", "caption"}


def test_an_order_that_came_over_this_link_was_removed_if_it_does_not_come_again_after_a_refusal() -> None:
    site = serving(CLASSIFY, a=200)
    retained = announcement(site).message
    site.feed(LinkDown("lost"))
    site.feed(LinkUp(2))
    site.feed(retained)
    site.feed(TaskDeployed(CLASSIFY, retained=True))
    site.feed(TaskDeployed(CAPTION))
    site.feed(MessagesRefused())  # with them its undeployment
    site.feed(TaskDeployed(CLASSIFY, retained=True))
    assert not all_of(site.settle(), PublishSpec), "the broker lost nothing"
    assert site.state.tasks.keys() == {"classify"}


def test_an_order_over_this_link_is_newer_than_our_copy_whatever_the_refusal_of_a_later_one_hides() -> None:
    site = serving(CLASSIFY, CAPTION, a=200, b=200)
    site.feed(DrainReceived("a", drain=True))
    site.feed(LinkDown("lost"))
    site.feed(LinkUp(2))
    for order in (TaskDeployed(CLASSIFY), DrainReceived("b", drain=True), TaskUndeployed("caption")):
        site.feed(order)
    site.feed(DrainReceived("a", drain=False))
    site.feed(MessagesRefused())  # with them what undoes each of these; the broker's number never came
    for order in (TaskDeployed(CAPTION, retained=True), DrainReceived("a", drain=True, retained=True)):
        site.feed(order)
    actions = site.settle()
    assert not all_of(actions, PublishSpec), "the broker lost nothing"
    assert cleared(actions, TASK_SPEC) == cleared(actions, DEVICE_DRAIN) == []
    assert site.state.tasks.keys() == site.state.orders.tasks.keys() == {"caption"}
    assert site.state.cluster.drained == site.state.orders.drained == {"a"}


# --- the broker's number, and what it retains ---


def test_a_new_term_is_not_announced_before_the_brokers_number_is_read() -> None:
    site = serving(CLASSIFY, a=200)
    number = site.state.orders.change
    later = Site(epoch=2)
    later.state = initial(epoch=2, settle_s=1.5, orders=site.state.orders)
    assert said(later.feed(LinkUp(2))) == [], "it would overwrite the number, and this leader may end before it settles"
    assert said(later.feed(announcement(site).message)) == [announcement(later, change=number)]


def test_an_orchestrator_that_stood_still_takes_nothing_for_lost_that_waits_to_be_read() -> None:
    before = serving(CLASSIFY, a=200)
    site, newer = Site(epoch=2), CLASSIFY.model_copy(update={"weight": 2.0})
    site.state = initial(epoch=2, settle_s=1.5, orders=before.state.orders)
    site.feed(LinkUp(2))
    site.now_s = 12.0
    assert said(site.feed(Overslept())) == [], "neither our term, without the broker's number, nor an older order"
    site.feed(announcement(before).message)
    site.feed(TaskDeployed(newer, retained=True))
    assert all_of(site.settle(), PublishSpec) == []
    assert site.state.tasks == {"classify": newer}


@pytest.mark.parametrize("had_settled", [True, False])
def test_what_a_later_leader_recorded_counts_though_its_will_has_no_number(had_settled: bool) -> None:  # noqa: FBT001 - pytest passes names
    before = serving(CLASSIFY, CAPTION, a=200)
    site, newer = Site(epoch=7), CLASSIFY.model_copy(update={"weight": 2.0})
    site.state = initial(epoch=7, settle_s=1.5, orders=before.state.orders, copied_epoch=1)
    site.feed(LinkUp(2))
    site.feed(leader(6, 9, online=False))
    site.feed(TaskDeployed(newer, retained=True))  # caption was undeployed while we were away, or is lost
    site.feed(RevisionReceived("classify", newer.revision, newer))
    site.feed(RetainedRouteReceived("classify", available=True, epoch=6 if had_settled else 5))
    restored = all_of(site.settle(), PublishSpec)
    assert restored == ([] if had_settled else [PublishSpec(CLASSIFY), PublishSpec(CAPTION)])
    assert [*site.state.orders.specs.values()] == ([newer] if had_settled else [CLASSIFY, CAPTION])
    assert not had_settled or site.state.orders.change >= 7 * 1024, "the later leader's copy isn't newer"


def test_the_first_term_of_a_site_is_announced_at_once_so_that_no_other_orchestrator_leads_too() -> None:
    site = Site(epoch=1)
    site.state = initial(epoch=1, settle_s=1.5, is_first=True)
    assert said(site.feed(LinkUp(2))) == [announcement(site, change=0)]
    site.feed(LinkDown("lost"))
    assert said(site.feed(LinkUp(3))) == [], "another one may have led meanwhile"


def test_an_older_spec_that_a_leader_recorded_is_no_new_order() -> None:
    site = serving(CLASSIFY, a=200)
    older, saved = CLASSIFY.model_copy(update={"weight": 2.0}), announcement(site).message
    site.feed(TaskUndeployed("classify"))
    site.feed(TaskDeployed(CLASSIFY))
    for recorded in (True, False):
        site.feed(LinkDown("the broker crashed"))
        site.feed(LinkUp(2))
        site.feed(saved)
        site.feed(TaskDeployed(older, retained=True))
        if recorded:
            site.feed(RevisionReceived("classify", older.revision, older))
        restored = all_of(site.settle(), PublishSpec)
        assert restored == ([PublishSpec(CLASSIFY)] if recorded else [])
        assert site.state.tasks["classify"] == (CLASSIFY if recorded else older)


def test_an_earlier_revision_is_one_wherever_it_stands_among_the_last_ones() -> None:
    site = serving(CLASSIFY, a=200)
    older, saved = CLASSIFY.model_copy(update={"weight": 2.0}), announcement(site).message
    site.feed(TaskDeployed(CLASSIFY.model_copy(update={"weight": 3.0})))
    newest = site.state.tasks["classify"]
    mixed = {"classify": (older, newest)}  # as a spare puts them together at a broker with an old memory
    site.state = replace(site.state, orders=replace(site.state.orders, revisions=mixed))
    site.feed(LinkDown("the broker crashed"))
    site.feed(LinkUp(2))
    site.feed(saved)
    site.feed(TaskDeployed(older, retained=True))
    assert all_of(site.settle(), PublishSpec) == [PublishSpec(newest)]
    assert site.state.orders.revisions["classify"] == (newest, older), "the deployed one comes first"
