"""Any order of births, deaths, late and repeated messages, deployments and restarts: what the reconciler never does.

The model is a fleet whose agents obey, a broker that remembers retained messages, and a bag of messages that may come
again at any time. Agents measure: modules are larger and slower than their specs say, on each device differently. The
planner answers at once, or after any other events, or twice, or never. After each event the invariants hold; after
calm, every task that fits is served, and nothing changes any more.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.cost_model import may_run
from broker.leader_watch import READ_RETAINED_S
from broker.protocol.errors import NoDeviceFits
from broker.protocol.messages import (
    SUSPECTED_FOR_S,
    Assignment,
    DeviceState,
    Heartbeat,
    HeldModule,
    OrchestratorState,
    Route,
)
from broker.protocol.specs import Availability, DeviceSpec, TaskSpec
from broker.protocol.topics import OF_A_DEVICE, TASK_ROUTE
from broker.transport.port import LinkDown, LinkUp
from orchestrator.decide import decide
from orchestrator.events import (
    Action,
    Clear,
    DeviceStateReceived,
    DrainReceived,
    EndPlanning,
    Event,
    ForgetReceived,
    HeartbeatReceived,
    MessagesRefused,
    Note,
    Overslept,
    PlanFound,
    PublishAssignment,
    PublishDrain,
    PublishRoute,
    PublishSpec,
    PublishState,
    RequestPlan,
    RequestRebirth,
    RetainedRouteReceived,
    RevisionReceived,
    TaskDeployed,
    TaskRejected,
    TaskUndeployed,
    Tick,
)
from orchestrator.leadership.orders import NO_ORDERS, confirm
from orchestrator.membership.doubts import OWN_CHECK
from orchestrator.membership.failure_detector import on_event
from orchestrator.placement.deployability import MAX_REFUSALS, upcoming_name
from orchestrator.placement.planner_input import facts_of, with_measured_footprints
from orchestrator.placement.planning import AGAIN_S
from orchestrator.placement.revisions import allow_upcoming, served_spec, why_refused
from orchestrator.planner.budget import never
from orchestrator.planner.copies import original_key
from orchestrator.planner.placement import place
from orchestrator.planner.solve import solve
from orchestrator.state import Pace, State, initial
from tests.builders import joined, module, offline, online, part_of, profile

DEVICES = ("a", "b", "c", "d")
INTERVAL_S = 1.0
PACE = Pace(calm_s=1.0, review_s=4.0, round_s=9.0)


VISION, TEXT, AUDIO = module("vision", 60, 30e9), module("text", 40, 10e9), module("audio", 50, 20e9)
HEAD, HUGE = module("head", 10, 1e9), module("huge", 300, 90e9)
MODULES = {part_of(spec): spec for spec in (VISION, TEXT, AUDIO, HEAD, HUGE)}
SIZES = {spec.key: spec.memory_bytes for spec in MODULES.values()}
TASKS = {
    spec.task: spec
    for spec in (
        joined("classify", [VISION], HEAD),
        joined("caption", [VISION, TEXT], HEAD, weight=2.0),
        joined("listen", [AUDIO], TEXT, redundancy=2),
        joined("dream", [], HUGE),
        joined("private", [VISION], TEXT, devices=("a", "b")),
        joined("remote", [VISION], AUDIO, devices=("c", "d"), weight=0.5),
    )
}
REVISIONS = {  # of the same tasks
    spec.task: spec
    for spec in (
        joined("classify", [AUDIO], HEAD),
        joined("caption", [TEXT], HEAD, weight=2.0),
        joined("listen", [AUDIO], HEAD, redundancy=2),
        joined("dream", [VISION], TEXT),
        joined("private", [VISION], TEXT, devices=("c", "d")),
        joined("remote", [VISION], AUDIO, devices=("c", "d"), weight=3.0),
    )
}
limits = st.sampled_from([None, None, None, ("classify", "private", "listen"), ("caption", "remote")])
availabilities: st.SearchStrategy[Availability] = st.sampled_from(["always", "always", "sometimes"])
RUNS_ALL: dict[str, Any] = {}
RUNS_SOME: list[dict[str, Any]] = [  # an export of a module is as large as the module
    {"engines": ("onnx", "ctranslate2"), "exports": {spec.key: spec.memory_bytes for spec in exported}}
    for exported in ([], [VISION, TEXT, HEAD], [*MODULES.values()])
]
forms = st.sampled_from([RUNS_ALL, RUNS_ALL, RUNS_ALL, *RUNS_SOME])
devices = st.sampled_from(DEVICES)
memory_sizes = st.sampled_from([30, 70, 100, 200, 400])
parts = st.sampled_from(sorted(MODULES))
task_names = st.sampled_from(sorted(TASKS))


@dataclass
class Agent:
    """The truth about one device; the orchestrator only hears of it."""

    up: bool = False
    session: int = 0
    seq: int = 0
    memory_bytes: int = 100
    draining: bool = False
    suspects: dict[str, float] = field(default_factory=dict)
    ready: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)  # modules that this session can't load
    compute_s: dict[str, float] = field(default_factory=dict)  # as measured by this session
    footprints: dict[str, int] = field(default_factory=dict)
    form: dict[str, Any] = field(default_factory=dict)  # its engines and exports
    birth: DeviceState | None = None  # its last word about itself, which the broker may have forgotten


class Reconciler(RuleBasedStateMachine):
    """See the file's head."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.agents = {name: Agent() for name in DEVICES}
        self.sessions = 0
        self.is_removal_unheard = False  # no orchestrator heard an undeployment yet; see docs/architecture.md
        self.old: list[Event] = []  # delivered once, or wills that are on their way
        self.announced_dead: set[str] = set()  # devices whose current session's will was delivered
        self.routes: dict[str, Route] = {}  # what the broker remembers
        self.assignments: dict[str, Assignment] = {}
        self.births: dict[str, DeviceStateReceived] = {}
        self.specs: dict[str, TaskDeployed | TaskRejected] = {}
        self.valid: dict[str, TaskSpec] = {}  # the last valid one of each task
        self.drained: dict[str, DrainReceived] = {}  # by an operator, as the broker remembers it
        self.restored: set[str] = set()  # specs given back to a broker without memory
        self.drained_anew: set[str] = set()  # and drains
        self.saved: tuple[Any, Any, Any, Any] | None = None  # an old memory of the broker: leader, orders, revisions
        self.epoch = 0
        self.leader: OrchestratorState | None = None  # what the broker remembers of us
        self.will: OrchestratorState | None = None  # of our link: it doesn't know later changes
        self.done: list[Action] = []
        self.is_prompt = True  # whether a plan arrives at once
        self.asked: RequestPlan | None = None  # the problem that the planner has
        self.is_ended = False  # whether it must come to an end with it
        self.plans: list[PlanFound] = []  # delivered once
        self.state: State
        self.restart_orchestrator()

    # --- delivering ---

    def feed(self, event: Event) -> None:
        before = self.state
        self.state, actions = decide(self.state, event, self.now_s)
        self.done += actions
        self.is_removal_unheard &= not self.state.settled
        assert self.state.generation in {before.generation, before.generation + 1}
        whole = decide(replace(before, due_s=-math.inf), event, self.now_s)  # all rules look at everything
        assert whole == (self.state, actions)
        self._deliver(actions)
        if not isinstance(event, LinkUp | MessagesRefused | OrchestratorState | RetainedRouteReceived):
            again, more = decide(replace(self.state, due_s=-math.inf), event, self.now_s)
            nothing = [action for action in more if not self._is_of_forgotten(action)]
            assert nothing == [], nothing
            assert again == self.state
        if self.is_prompt:
            self.the_plan_arrives()
        for action in actions:
            if isinstance(action, RequestRebirth):
                self._is_born_again(action.device)

    def _is_born_again(self, device: str) -> None:
        """A device that was forgotten while it was silent lives on, and is asked for its birth."""
        agent = self.agents[device]
        if agent.up and agent.birth is not None:
            self.births[device] = DeviceStateReceived(device, agent.birth)
            self.say(self.births[device])

    def _is_of_forgotten(self, action: Action) -> bool:
        """Whether an action clears what the broker may have of a forgotten device again: it may have come since."""
        is_clear = isinstance(action, Clear) and action.topic in OF_A_DEVICE and action.name in self.state.forgotten
        return is_clear or (isinstance(action, Note) and action.event in {"device_forgotten", "forget_refused"})

    def _deliver(self, actions: list[Action]) -> None:
        """Let the broker remember what was published, and the planner begin."""
        assignments_began = False
        for action in actions:
            if isinstance(action, PublishRoute):
                assert not assignments_began, "routes come before assignments"
                self._newer(self.routes.get(action.route.task), action.route)
                self.routes[action.route.task] = action.route
            elif isinstance(action, PublishAssignment):
                assignments_began = True
                self._newer(self.assignments.get(action.device), action.assignment)
                self.assignments[action.device] = action.assignment
            elif isinstance(action, Clear) and action.topic is TASK_ROUTE:
                self.routes.pop(action.name, None)
            elif isinstance(action, PublishSpec):
                self.restored.add(action.spec.task)
            elif isinstance(action, PublishDrain):
                self.drained_anew.add(action.device)
            elif isinstance(action, PublishState):
                assert action.message.epoch == self.epoch
                self.leader = action.message
            else:
                self._give_to_planner(action)
        if self.state.link and self.state.reconciled and any(isinstance(action, PublishState) for action in actions):
            orders = self.state.orders
            confirmed = confirm(orders, self.state.link.session, orders.change)  # our announcement came back
            self.state = replace(self.state, orders=confirmed)

    def _give_to_planner(self, action: Action) -> None:
        if isinstance(action, RequestPlan):
            assert self.asked is None or action.ticket > self.asked.ticket
            self.asked, self.is_ended = action, False
        elif isinstance(action, EndPlanning):
            assert self.asked is None or action.ticket == self.asked.ticket
            self.is_ended = True

    @property
    def is_planned(self) -> bool:
        """Whether the placement follows from all that is known.

        Until the planner has answered a changed fact, three things may be behind, because only a plan says where a
        module goes instead: a device that came back with less memory, or measured more bytes, keeps what it has; a new
        task has no route, for whether it fits isn't known; and a new term leaves the retained routes of the last one.
        """
        return self.state.settled and facts_of(self.state) == self.state.placement.facts

    def _newer(self, known: Route | Assignment | None, said: Route | Assignment) -> None:
        assert known is None or (said.epoch, said.generation) >= (known.epoch, known.generation)

    def say(self, event: Event) -> None:
        """Deliver it now; it may come again later."""
        self.old.append(event)
        self.feed(event)

    @initialize(memory_bytes=st.lists(memory_sizes, min_size=2, max_size=len(DEVICES)), names=st.sets(task_names))
    def a_site_is_set_up(self, memory_bytes: list[int], names: set[str]) -> None:
        """Most of what can go wrong needs one that works."""
        for device, size in zip(DEVICES, memory_bytes, strict=False):
            self.connect(device, size, None, "always", RUNS_ALL)
        for name in sorted(names):
            self.deploy(name)
        self.all_send_heartbeats()
        self.wait(1.5)
        self.work()

    # --- the planner ---

    @rule(prompt=st.booleans())
    def the_planner_takes_its_time(self, *, prompt: bool) -> None:
        """Or none."""
        self.is_prompt = prompt
        if prompt:
            self.the_plan_arrives()

    @rule()
    def the_plan_arrives(self) -> None:
        while self.asked is not None:
            asked, ended, self.asked = self.asked, self.is_ended, None
            found = PlanFound(asked.ticket, solve(asked.problem, (lambda: True) if ended else never))
            self.plans = [*self.plans[-9:], found]
            self.feed(found)
            if not self.is_prompt:
                return

    @precondition(lambda self: self.plans)
    @rule(data=st.data())
    def an_old_plan_arrives(self, data: st.DataObject) -> None:
        self.feed(data.draw(st.sampled_from(self.plans)))

    @precondition(lambda self: self.asked)
    @rule()
    def the_planner_fails(self) -> None:
        """The orchestrator asks again after a while."""
        assert self.asked is not None
        failed, self.asked = PlanFound(self.asked.ticket, None), None
        self.feed(failed)

    # --- devices ---

    @rule(device=devices, memory_bytes=memory_sizes, tasks=limits, availability=availabilities, form=forms)
    def connect(
        self,
        device: str,
        memory_bytes: int,
        tasks: tuple[str, ...] | None,
        availability: Availability,
        form: dict[str, Any],
    ) -> None:
        """A device starts, or comes back with a new session before its will was heard."""
        agent = self.agents[device]
        if not agent.up or agent.form != form:
            agent.ready.clear()
        agent.form = form
        self.sessions += 1
        agent.up, agent.session, agent.memory_bytes = True, self.sessions, memory_bytes
        agent.draining = device in self.drained  # what it said itself ends with its session
        agent.failing.clear()
        agent.suspects.clear()
        agent.compute_s.clear()
        agent.footprints.clear()
        known = profile(memory_bytes, compute_flops_per_s=100e9, **form)
        said = online(agent.session, known).model_copy(update={"tasks": tasks, "availability": availability})
        agent.birth, birth = said, DeviceStateReceived(device, said)
        self.births[device] = birth
        self.announced_dead.discard(device)
        self.say(birth)

    @rule(device=devices, heard=st.sampled_from(["now", "later", "never"]))
    def die(self, device: str, heard: str) -> None:
        agent = self.agents[device]
        if agent.up:
            agent.up = False
            will = DeviceStateReceived(device, offline(agent.session))
            if heard == "now":
                self.births[device] = will  # retained
                self.announced_dead.add(device)
                self.say(will)
            elif heard == "later":
                self.old.append(will)

    @rule(device=devices)
    def drain(self, device: str) -> None:
        """The device says itself that it goes."""
        agent = self.agents[device]
        if agent.up and agent.birth and not agent.draining:
            agent.draining = True
            agent.birth = agent.birth.model_copy(update={"status": "draining"})
            self.births[device] = DeviceStateReceived(device, agent.birth)
            self.say(self.births[device])

    @rule(device=devices)
    def drain_by_an_operator(self, device: str) -> None:
        self.drained[device] = DrainReceived(device, drain=True)
        self.agents[device].draining = True
        self.feed(self.drained[device])

    @precondition(lambda self: self.drained.keys() & self.agents.keys())
    @rule(data=st.data())
    def put_back_in_service(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(sorted(self.drained.keys() & self.agents.keys())))
        del self.drained[device]
        birth = self.births.get(device)
        self.agents[device].draining = birth is not None and birth.message.status == "draining"
        self.feed(DrainReceived(device, drain=False))

    @precondition(lambda self: self.state.link is not None)
    @rule(device=devices)
    def forget(self, device: str) -> None:
        """An operator has a device forgotten: it goes if it is gone, and stays if it is there."""
        known = self.state.cluster.devices.get(device)
        self.feed(ForgetReceived(device))
        if known is not None and known.watched:
            assert device in self.state.cluster.devices
            return
        assert device not in self.state.cluster.devices
        assert device not in self.state.cluster.drained
        self.births.pop(device, None)
        self.assignments.pop(device, None)
        if self.drained.pop(device, None):
            self.agents[device].draining = False
            self.feed(DrainReceived(device, drain=False))  # the leader's own clearing comes back

    @rule(device=devices, other=devices, since_s=st.sampled_from([0.0, 0.3, 2.0]))
    def suspect(self, device: str, other: str, since_s: float) -> None:
        """A call to another device timed out."""
        self.agents[device].suspects[other] = self.now_s - since_s
        self.heartbeat(device)

    @rule(device=devices)
    def trust_again(self, device: str) -> None:
        self.agents[device].suspects.clear()

    @rule()
    def oversleep(self) -> None:
        self.now_s += 30.0
        self.feed(Overslept())

    @rule(device=devices)
    def heartbeat(self, device: str) -> None:
        agent = self.agents[device]
        if not agent.up:
            return
        agent.seq += 1
        held = {
            key: HeldModule(
                module="m",
                state="ready",
                memory_bytes=agent.footprints.get(key, SIZES[key]),
                compute_s=agent.compute_s.get(key),
            )
            for key in sorted(agent.ready)
        }
        held |= {key: HeldModule(module="m", state="failed", error="no") for key in sorted(agent.failing)}
        suspects = {other: self.now_s - at_s for other, at_s in agent.suspects.items()}
        heartbeat = Heartbeat(
            session=agent.session, seq=agent.seq, epoch=0, generation=0, modules=held, suspects=suspects
        )
        self.say(HeartbeatReceived(device, heartbeat))

    @rule(device=devices, part=parts, compute_s=st.sampled_from([0.01, 1.0, 60.0]))
    def measure_seconds(self, device: str, part: str, compute_s: float) -> None:
        self.agents[device].compute_s[MODULES[part].key] = compute_s

    @rule(device=devices, part=parts, more=st.sampled_from([1, 5, 30]))
    def measure_bytes(self, device: str, part: str, more: int) -> None:
        """The module is larger than its spec says; a device that can't hold it then refuses it, as an agent does."""
        agent, key = self.agents[device], MODULES[part].key
        agent.footprints[key] = SIZES[key] + more
        if sum(agent.footprints.get(held, SIZES[held]) for held in agent.ready | {key}) > agent.memory_bytes:
            agent.footprints[key] = SIZES[key]

    @rule(device=devices)
    def obey(self, device: str) -> None:
        """Load what is assigned, unload what is not."""
        agent = self.agents[device]
        if agent.up and device in self.assignments:
            wanted = {assigned.spec.key for assigned in self.assignments[device].modules}
            agent.ready = wanted - agent.failing

    @rule(device=devices, part=parts)
    def fail(self, device: str, part: str) -> None:
        agent = self.agents[device]
        if agent.up:
            agent.failing.add(MODULES[part].key)
            agent.ready.discard(MODULES[part].key)

    @rule()
    def all_send_heartbeats(self) -> None:
        for device in DEVICES:
            self.heartbeat(device)

    @rule()
    def work(self, *, lazy: bool = False) -> None:
        """All devices obey and send heartbeats until spares are chosen and a better placement is searched for."""
        self.the_planner_takes_its_time(prompt=True)
        for _ in range(int(2 * (PACE.review_s + AGAIN_S * (self.state.planning is not None)) / INTERVAL_S)):
            for device in DEVICES:
                if not lazy:
                    self.obey(device)
                self.heartbeat(device)
            self.our_own_word_comes_back()
            self.now_s += INTERVAL_S / 2
            self.feed(Tick())

    @precondition(lambda self: self.state.link is not None)
    @rule()
    def our_own_word_comes_back(self) -> None:
        """From then on time passes only as long as the next one isn't late."""
        if self.state.link is not None:
            session = self.state.link.session
            self.feed(OrchestratorState(epoch=self.epoch, online=True, session=session))

    @rule()
    def everything_loads_for_long(self) -> None:
        """No device loads its new modules; so moves are planned, and not made."""
        self.work(lazy=True)

    # --- people, time, the broker, the orchestrator ---

    @rule(name=task_names)
    def deploy(self, name: str) -> None:
        self._deployed(TASKS[name])
        self.say(self.specs[name])

    @rule(name=task_names)
    def deploy_another_revision(self, name: str) -> None:
        self._deployed(REVISIONS[name])
        self.say(self.specs[name])

    @rule(name=task_names)
    def replace_the_revision(self, name: str) -> None:
        self._deployed(REVISIONS[name].model_copy(update={"replace": True}))
        self.say(self.specs[name])

    def _deployed(self, spec: TaskSpec) -> None:
        self.specs[spec.task], self.valid[spec.task] = TaskDeployed(spec), spec

    @property
    def has_only_valid_specs(self) -> bool:
        return all(isinstance(event, TaskDeployed) for event in self.specs.values())

    def _undeployed(self, name: str) -> None:
        self.specs.pop(name, None)
        self.valid.pop(name, None)

    @precondition(lambda self: not self.is_removal_unheard)
    @rule(name=task_names)
    def deploy_nonsense(self, name: str) -> None:
        """Over an undeployment that nobody heard it would stand beside the last valid one, which lives on."""
        self.specs[name] = TaskRejected(name, "its spec is wrong")
        self.feed(self.specs[name])

    @rule(name=task_names)
    def undeploy(self, name: str) -> None:
        self._undeployed(name)
        self.old = [event for event in self.old if not (isinstance(event, TaskDeployed) and event.spec.task == name)]
        self.feed(TaskUndeployed(name))

    @rule(seconds=st.sampled_from([0.1, 0.9, 1.5, 2.1, 3.3]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.feed(Tick())

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def an_old_message_comes(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.old))
        if isinstance(event, TaskDeployed) and self.specs.get(event.spec.task) != event:
            return  # specs come in order: an older one can't overtake
        if isinstance(event, DeviceStateReceived) and event.message.status == "offline":
            agent = self.agents[event.device]
            if agent.session == event.message.session:
                self.announced_dead.add(event.device)
        self.feed(event)

    @rule(other=st.sampled_from([True, False]))
    def the_leaders_topic_says_something_old(self, other: bool) -> None:  # noqa: FBT001 - hypothesis passes names
        epoch = self.epoch - 1 if other and self.epoch else self.epoch
        self.feed(OrchestratorState(epoch=epoch, online=False, session=0))

    @rule(seconds=st.sampled_from([0.5, 10.0]))
    def lose_the_link(self, seconds: float) -> None:
        self.feed(LinkDown("lost"))
        self.now_s += seconds
        self.feed(Tick())
        self.link()

    @precondition(lambda self: self.state.settled)
    @rule(heard=st.integers(0, len(DEVICES)), remembers=st.booleans(), silence_s=st.sampled_from([0.6, 4.0]))
    def the_broker_is_stopped_and_started(self, heard: int, silence_s: float, *, remembers: bool) -> None:
        """It publishes all wills when it ends, of which some arrive; all devices come back, and nothing moves."""
        up = [device for device in DEVICES if self.agents[device].up]
        wills = [
            DeviceStateReceived(device, DeviceState(status="offline", session=self.agents[device].session))
            for device in up
        ]
        self.work()
        where = self.state.placement.where
        for will in wills[:heard]:
            self.feed(will)
            self.now_s += 0.001
        self.feed(LinkDown("lost"))
        births, self.births = self.births, {}
        if remembers:
            self.births = {**births, **{will.device: will for will in wills}}
        self.link()
        self.births = births
        self.now_s += silence_s
        self.feed(Tick())
        for device in up:
            agent = self.agents[device]
            self.sessions += 1
            agent.session = self.sessions
            assert agent.birth is not None
            agent.birth = agent.birth.model_copy(update={"session": agent.session})
            self.births[device] = DeviceStateReceived(device, agent.birth)
            self.feed(self.births[device])
            self.heartbeat(device)
        assert self.state.placement.where == where

    @rule(name=task_names)
    def undeploy_while_the_link_is_down(self, name: str) -> None:
        """The broker lives on, and only we don't hear it. A task that came before we settled has no number there."""
        orders = self.state.orders
        if not self.state.reconciled and name in orders.tasks and orders.tasks[name].change > orders.confirmed:
            return
        self.feed(LinkDown("lost"))
        self._undeployed(name)
        self.old = [event for event in self.old if not (isinstance(event, TaskDeployed) and event.spec.task == name)]
        self.now_s += 5.0
        self.is_removal_unheard = True
        self.link()

    @precondition(lambda self: self.state.link is not None)
    @rule(lost=st.sampled_from(["undeploy", "deploy", "drain", "undrain", "nothing"]), name=task_names, device=devices)
    def messages_are_refused_and_read_again(self, lost: str, name: str, device: str) -> None:
        """Too many waited. The broker sends again what it retains, and the orchestrator knows what it lost."""
        match lost:
            case "undeploy":
                self._undeployed(name)
                self.old = [
                    event for event in self.old if not (isinstance(event, TaskDeployed) and event.spec.task == name)
                ]
            case "deploy" if self.valid.get(name) in (None, TASKS[name]):  # going back to an earlier one may be undone
                self._deployed(TASKS[name])
            case "drain":
                self.drained[device] = DrainReceived(device, drain=True)
                self.agents[device].draining = True
            case "undrain" if self.drained.pop(device, None):
                birth = self.births.get(device)
                self.agents[device].draining = birth is not None and birth.message.status == "draining"
        self.is_removal_unheard = True
        self.feed(MessagesRefused())
        for birth in self.births.values():
            self.feed(birth)
        self._hear_orders_and_routes()
        if self.leader is not None:
            self.feed(self.leader)
        self.now_s += 1.5
        self.feed(Tick())
        if self.state.settled:
            assert self.state.tasks == self.valid
            assert self.state.cluster.drained == self.drained.keys()

    @precondition(lambda self: not self.is_removal_unheard)
    @rule()
    def the_broker_loses_its_memory(self) -> None:
        """It gets everything back from the orchestrator, but for invalid specs."""
        self.feed(LinkDown("lost"))
        self.specs = {name: TaskDeployed(spec) for name, spec in self.valid.items()}
        self.routes.clear()
        self.assignments.clear()
        self.leader = None
        self._link_up()
        self.restored.clear()
        self.drained_anew.clear()
        for seconds in (READ_RETAINED_S, 1.5 - READ_RETAINED_S):
            self.now_s += seconds
            self.feed(Tick())
        assert self.restored == self.specs.keys()
        assert self.drained_anew == self.drained.keys()

    @precondition(lambda self: not self.is_removal_unheard)
    @rule()
    def broker_and_orchestrator_restart_without_the_brokers_memory(self) -> None:
        """The orchestrator stored the orders, and no more."""
        self.specs = {name: TaskDeployed(spec) for name, spec in self.valid.items()}
        for lost in (self.routes, self.assignments):
            lost.clear()
        self.leader = None
        self.restart_orchestrator(remembered=False)
        self.restored.clear()
        self.drained_anew.clear()
        self.now_s += 1.5
        self.feed(Tick())
        assert self.restored == self.specs.keys()
        assert self.drained_anew == self.drained.keys()

    @precondition(lambda self: self.state.settled and self.leader is not None and self.has_only_valid_specs)
    @rule()
    def the_broker_saves_its_memory(self) -> None:
        kept = {name: event for name, event in self.specs.items() if isinstance(event, TaskDeployed)}
        revisions = [
            RevisionReceived(task, spec.revision, spec)
            for task, specs in self.state.orders.revisions.items()
            for spec in specs
        ]
        self.saved = (self.leader, kept, dict(self.drained), revisions)

    @precondition(lambda self: self.state.settled and self.saved is not None)
    @rule(restarts=st.booleans())
    def the_broker_returns_with_what_it_saved(self, *, restarts: bool) -> None:
        """It has specs and drains of some time ago; all that changed since is restored, in both directions."""
        assert self.saved is not None
        self.leader, specs, drained, revisions = self.saved
        self.specs = {name: TaskDeployed(spec) for name, spec in self.valid.items()}
        self.routes.clear()
        self.assignments.clear()
        self.feed(LinkDown("lost"))
        if restarts:
            self.restart_orchestrator(remembered=False)
        else:
            self._link_up()
        retained = [replace(event, retained=True) for event in (*specs.values(), *drained.values())]
        for event in [*retained, *revisions]:
            self.feed(event)
        for seconds in (READ_RETAINED_S, 1.5 - READ_RETAINED_S):
            self.now_s += seconds
            self.feed(Tick())
        self.saved = None
        assert self.state.tasks == self.valid
        assert self.state.cluster.drained == self.drained.keys()

    @rule()
    def restart_orchestrator(self, *, remembered: bool = True) -> None:
        self.epoch += 1
        stored = self.state.orders if hasattr(self, "state") else NO_ORDERS
        self.state = initial(epoch=self.epoch, heartbeat_interval_s=INTERVAL_S, settle_s=1.5, pace=PACE, orders=stored)
        if remembered:
            self.link()
            return
        self._link_up()

    def _link_up(self) -> None:
        """Connect, and hear the last link's will and the births."""
        self.sessions += 1
        retained = self.leader  # a new term is announced at once
        self.feed(LinkUp(self.sessions))
        self.will = OrchestratorState(epoch=self.epoch, online=False, session=self.sessions)
        if retained is not None:
            self.feed(retained)
        for birth in self.births.values():
            self.feed(birth)

    def link(self) -> None:
        """Connect; the broker sends what it remembers."""
        self.leader = self.will
        self._link_up()
        self._hear_orders_and_routes()

    def _hear_orders_and_routes(self) -> None:
        for order in (*self.drained.values(), *self.specs.values()):
            self.feed(order if isinstance(order, TaskRejected) else replace(order, retained=True))
        for name, route in sorted(self.routes.items()):
            serving = {node.key: tuple(able.device for able in node.devices) for node in route.nodes.values()}
            self.feed(RetainedRouteReceived(name, route.unavailable is None, bool(route.front_door), serving))

    # --- what always holds ---

    @invariant()
    def no_device_is_asked_to_hold_more_than_its_memory(self) -> None:
        for device, said in self.state.assignments.items():
            if device not in self.state.cluster.devices:
                assert not self.state.settled, "what a forgotten device was assigned goes with the next rules"
                continue
            limits = [self.state.cluster.devices[device].profile.memory_bytes]
            if not self.is_planned:  # the memory that it had when it was last planned for
                limits += [
                    known.memory_bytes for name, known in self.state.placement.facts.candidates if name == device
                ]
            assert sum(held.spec.memory_bytes for held in said.modules) <= max(limits)
            keys = [held.spec.key for held in said.modules]
            assert len(keys) == len(set(keys))

    @invariant()
    def every_module_has_its_active_copy_and_spares_are_elsewhere(self) -> None:
        if self.state.settled:
            standing = self.state.placement
            told = [
                (held.spec.key, device, held.role)
                for device, said in self.state.assignments.items()
                for held in said.modules
            ]
            active = [
                (original_key(key), device, "active") for key, chosen in standing.actives.items() for device in chosen
            ]
            waiting = [
                (original_key(key), device, "standby")
                for key, chosen in standing.spares.standby.items()
                for device in chosen
            ]
            known = self.state.cluster.devices  # a forgotten one is in the placement until the next plan
            assert sorted(told) == sorted(copy for copy in active + waiting if copy[1] in known)
            assert standing.where.keys() >= standing.spares.standby.keys() | standing.spares.replicas.keys()

    @invariant()
    def no_standby_is_in_a_route(self) -> None:
        if self.state.settled:
            for route in self.state.routes.values():
                for node in route.nodes.values():
                    able = {able.device for able in node.devices}
                    assert able <= set(self.state.placement.actives_of(route.task)[node.key])

    @invariant()
    def no_task_uses_a_device_where_it_may_not_run(self) -> None:
        if self.state.settled:
            for name, route in self.routes.items():
                if route.unavailable or route.epoch < self.epoch:
                    continue  # one of an earlier term stands until the first plan, whatever its devices say since
                used = {able.device for node in route.nodes.values() for able in node.devices}
                spec = next(each[name] for each in (TASKS, REVISIONS) if each[name].revision == route.revision)
                for device in used.union(route.front_door, route.second_door):
                    assert may_run(spec, self.state.cluster.devices[device].spec)

    @invariant()
    def no_device_holds_more_than_it_can_by_what_was_measured(self) -> None:
        if self.is_planned:
            for device, keys in self.state.placement.roles.items():
                known = self.state.cluster.devices[device]
                if not known.alive:
                    continue  # most devices have just gone, and nothing is placed again yet
                elsewhere = {} if known.profile.exports else self.state.footprints  # an export is this device's alone
                need = sum(
                    max(SIZES[key], known.modules[key].memory_bytes)
                    if known.ready(key)
                    else max(SIZES[key], elsewhere.get(key, 0))
                    for key in keys
                )
                assert need <= known.profile.memory_bytes

    @invariant()
    def no_module_is_planned_where_no_engine_can_run_it(self) -> None:
        if self.is_planned:
            for device, keys in self.state.placement.roles.items():
                known = self.state.cluster.devices[device]
                for key in keys if known.alive else ():
                    assert known.profile.engines[0] == "torch" or key in known.profile.exports

    @invariant()
    def nothing_is_routed_to_the_dead(self) -> None:
        if self.state.settled:
            for route in self.state.routes.values():
                named = {device.device for node in route.nodes.values() for device in node.devices}
                assert not named & self.announced_dead - self.state.cluster.awaiting_first_heartbeat.keys()
                assert not set(route.second_door) & set(route.front_door)
                for device in named.union(route.front_door, route.second_door):
                    assert self.state.cluster.devices[device].alive

    @invariant()
    def the_broker_remembers_what_the_orchestrator_believes_it_said(self) -> None:
        if self.state.settled:
            assert {name: self.routes[name] for name in self.state.routes} == dict(self.state.routes)
            assert self.routes.keys() <= self.specs.keys()
            assert all(self.assignments[device] == said for device, said in self.state.assignments.items())
        if self.is_planned:
            assert self.routes == dict(self.state.routes)
            assert self.state.routes.keys() == self.specs.keys()

    @invariant()
    def no_route_is_older_than_the_assignment_of_a_device_that_it_names(self) -> None:
        """That device would refuse the plans of its requests; see ``edge_agent/requests/execute.py``."""
        for route in self.routes.values() if self.state.settled else ():
            named = {able.device for node in route.nodes.values() for able in node.devices}
            for assignment in (self.assignments[device] for device in named & self.assignments.keys()):
                assert (route.epoch, route.generation) >= (assignment.epoch, assignment.generation)
        for route in self.state.routes.values():
            assert route.epoch == self.epoch
            assert route.generation <= self.state.generation

    @invariant()
    def the_cluster_counts_its_devices_and_examines_them_in_time(self) -> None:
        cluster = self.state.cluster
        alive = [device for device in cluster.devices.values() if device.alive and device.always_on]
        trusted = [device for device in alive if not device.flaps.heartbeats_owed]
        silent = [device for device in trusted if device.health == "suspect"]
        assert (cluster.living, cluster.trusted, cluster.silent) == (len(alive), len(trusted), len(silent))
        for name, device in cluster.devices.items():
            assert all(name in cluster.accused[by] for by in device.timeout_reports.keys() - {OWN_CHECK})
        examined = on_event(replace(cluster, examine_at_s=-math.inf), Tick(), self.now_s)
        assert on_event(cluster, Tick(), self.now_s) == examined
        assert not cluster.listening or cluster.examine_at_s <= examined.examine_at_s

    # --- and after calm ---

    def work_until_no_suspicion_counts(self) -> None:
        """A call that timed out counts for a while; when it doesn't any more, modules may move back."""
        until_s = self.now_s + SUSPECTED_FOR_S
        while self.now_s < until_s:
            self.work()

    @rule()
    def calm(self) -> None:
        """All devices obey for a while: then all that can be served is served, and nothing changes any more."""
        self.work_until_no_suspicion_counts()
        for _ in range(5):
            self.done.clear()
            self.work()
        assert [action for action in self.done if not isinstance(action, PublishAssignment | Note | RequestPlan)] == []
        for device, agent in self.agents.items():
            known = self.state.cluster.devices.get(device)
            assert (known is not None and known.alive) == agent.up
        wanted = {name: served_spec(self.state, name) for name in self.valid}
        served = [spec for name, spec in wanted.items() if self.routes[name].unavailable is None]
        assert all(self.routes[spec.task].complete for spec in served)
        fleet = [
            self.state.cluster.devices[device].spec
            for device, agent in self.agents.items()
            if agent.up and not agent.draining
        ]
        barred = {
            spec.key: {device: "failed" for device, agent in self.agents.items() if spec.key in agent.failing}
            for spec in MODULES.values()
        }
        footprints = {key: size for key, size in self.state.footprints.items() if size > SIZES[key]}
        for name, spec in wanted.items():
            if spec not in served:
                assert self.routes[name].unavailable
                if any(len(barred[module.key]) >= MAX_REFUSALS for module in spec.modules.values()):
                    continue
                for keep in ({}, self.state.placement.where):
                    with pytest.raises(NoDeviceFits):
                        place(fleet, with_measured_footprints([*served, spec], footprints), keep=keep, barred=barred)
        self.check_what_is_not_served_yet(fleet, with_measured_footprints(served, footprints), barred)
        for device in sorted(self.drained.keys() & self.agents.keys()):
            if self.agents[device].up and (told := self.assignments.get(device)):
                assert not told.modules or told.stays
        for name in self.specs.keys() - wanted.keys():
            assert self.routes[name].unavailable == "its spec is wrong"
        self.check_what_is_only_on_devices_that_are_on_sometimes(with_measured_footprints(served, footprints), barred)

    def check_what_is_not_served_yet(
        self, fleet: list[DeviceSpec], served: list[TaskSpec], barred: dict[str, dict[str, str]]
    ) -> None:
        """A revision that isn't served beside an older one finds no room, or was refused too often."""
        for name in self.state.served:
            assert why_refused(self.state, name), "a revision that can be loaded takes over"
            spec = self.valid[name]
            if all(len(barred[module.key]) < MAX_REFUSALS for module in spec.modules.values()):
                tasks = [*served, spec.model_copy(update={"task": upcoming_name(spec)})]
                with pytest.raises(NoDeviceFits):
                    place(allow_upcoming(fleet, tasks), tasks, keep=self.state.placement.where, barred=barred)

    def check_what_is_only_on_devices_that_are_on_sometimes(
        self, served: list[TaskSpec], barred: dict[str, dict[str, str]]
    ) -> None:
        """No module is only there, and no task has its only front door there, if other devices can do that."""
        known = {name: self.state.cluster.devices[name] for name, agent in self.agents.items() if agent.up}
        always = [device.spec for device in known.values() if device.always_on and device.doubt is None]
        sometimes = {name for name, device in known.items() if not device.always_on}
        with contextlib.suppress(NoDeviceFits):
            place(always, served, barred=barred)
            assert sometimes.isdisjoint(self.state.placement.where.values())
        for task in served:
            route = self.routes[task.task]
            able = [device.id for device in always if may_run(task, device)]
            assert not able or sometimes.isdisjoint(route.front_door)
            assert not set(able).difference(route.front_door) or sometimes.isdisjoint(route.second_door)


class LongReconciler(Reconciler):
    """The same machine, for a run that takes a quarter of an hour."""


TestReconciler = Reconciler.TestCase
# The ordinary run plays the same examples each time, so that it judges a change and not its luck. It proves little:
# drawn examples have found defects that these don't, more than once. The long run draws; run it after changed rules.
SETTINGS = settings(
    deadline=None, max_examples=15, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]
)
LONG = settings(SETTINGS, max_examples=1000, stateful_step_count=50, derandomize=False)
TestReconciler.settings = SETTINGS
TestLongReconciler = pytest.mark.long(pytest.mark.timeout(7200)(LongReconciler.TestCase))
TestLongReconciler.settings = LONG
