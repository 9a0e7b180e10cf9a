"""The orchestrator's knowledge, and what it has published: one frozen value. The rules that change it are elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from broker.epochs import DoubtedLeader
from broker.leader_watch import leader_interval_s
from broker.protocol.messages import Assignment, DeviceProfile, Route
from broker.protocol.messages import Quarantine as QuarantineMessage
from broker.protocol.specs import DeviceId, ModuleKey, ModuleName, ModuleSpec, TaskName, TaskSpec
from broker.transport.port import LinkUp
from orchestrator.events import RetainedRouteReceived
from orchestrator.leadership.orders import NO_ORDERS, NOTHING_DELIVERED, Delivered, Orders
from orchestrator.membership.checks import Checks
from orchestrator.membership.deadly_loads import LoadDeaths
from orchestrator.membership.failure_detector import Cluster
from orchestrator.membership.quarantine import Quarantine
from orchestrator.placement.routes import Fence
from orchestrator.planner.copies import FurtherCopies, copy_key, original_key, with_further_copies
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.plans import Plan
from orchestrator.planner.spares import NO_SPARES, Spares

Role = Literal["active", "standby"]


@dataclass(frozen=True)
class Moment:
    """Now, and what has changed since the rules last ran, so that they need to look at nothing else."""

    now_s: float
    before: State | None = None  # the state then; None: a rule looks at everything
    changed: frozenset[DeviceId] = frozenset()  # devices whose measured seconds or more have changed


@dataclass(frozen=True)
class Pace:
    """How soon improvements are made; repairs are made at once."""

    calm_s: float = 3.0  # without a change before spares are chosen: the rest of a fleet that starts, or dies, follows
    review_s: float = 30.0  # between searches for a better placement, and after moves: some loads of a gateway's disk
    round_s: float = 600.0  # moves that aren't ready by then are cancelled: a download over a thin line
    spares: bool = True  # whether leftover memory is given to standbys and replicas


@dataclass(frozen=True)
class Facts:
    """The facts that placement depends on: when they change, it runs again. Measured seconds drift, and don't count."""

    candidates: tuple[tuple[DeviceId, DeviceProfile], ...] = ()
    tasks: tuple[TaskSpec, ...] = ()  # those that can be served, in the order in which they were deployed
    unservable: Mapping[TaskName, str] = field(default_factory=dict)  # the others, with the reason
    barred: Mapping[ModuleKey, Mapping[DeviceId, str]] = field(default_factory=dict)
    footprints: Mapping[ModuleKey, int] = field(default_factory=dict)  # measured bytes, where more than the spec's
    doubts: Mapping[DeviceId, str] = field(default_factory=dict)  # candidates that should get nothing more, and why
    limits: Mapping[DeviceId, tuple[TaskName, ...]] = field(default_factory=dict)  # candidates that serve only these
    sometimes: frozenset[DeviceId] = frozenset()  # candidates that are on only sometimes


@dataclass(frozen=True)
class Moves:
    """A round of planned moves: copies that take over together once they are loaded."""

    to: Mapping[ModuleKey, DeviceId]
    origin: Mapping[ModuleKey, DeviceId]
    until_s: float
    gain_s: float  # of the objective, when it was planned
    drains: bool = False  # made to empty a device, whatever it gains


@dataclass(frozen=True)
class CurrentPlacement:
    """The placement in force, and the facts that it follows from.

    ``where`` has the active copies that planning counts: one of each module, and further copies where no device may
    serve all of its tasks (``copies``). ``spares`` has the others; ``moves.to`` are among the standbys.
    """

    facts: Facts = Facts()
    where: Mapping[ModuleKey, DeviceId] = field(default_factory=dict)
    why: Mapping[ModuleKey, str] = field(default_factory=dict)
    refused: Mapping[TaskName, str] = field(default_factory=dict)
    spares: Spares = NO_SPARES
    moves: Moves | None = None
    further: FurtherCopies = field(default_factory=dict)  # by task the modules of which it uses a further copy

    @property
    def placed(self) -> list[TaskSpec]:
        """The tasks that are placed, as they were deployed."""
        return [task for task in self.facts.tasks if task.task not in self.refused]

    @cached_property
    def candidates(self) -> frozenset[DeviceId]:
        """The devices that the plan was about."""
        return frozenset(name for name, _ in self.facts.candidates)

    @cached_property
    def tasks(self) -> list[TaskSpec]:
        """The tasks that are placed, in which each further copy is a module of its own."""
        return with_further_copies(self.placed, self.further)

    @cached_property
    def planned(self) -> dict[TaskName, TaskSpec]:
        """The tasks that the plan was about, but for those that can't be served."""
        return {task.task: task for task in self.facts.tasks}

    @cached_property
    def modules(self) -> dict[ModuleKey, tuple[ModuleName, ModuleSpec]]:
        """The modules of these tasks, with their names; of each copy the module that it is a copy of."""
        modules = distinct_modules(self.placed)
        copies = distinct_modules(self.tasks) if self.further else modules
        return {key: modules[original_key(key)] for key in copies}

    @cached_property
    def actives(self) -> dict[ModuleKey, tuple[DeviceId, ...]]:
        """The devices that serve each module; first the one that planning counts."""
        return {key: (home, *self.spares.replicas.get(key, ())) for key, home in self.where.items()}

    def actives_of(self, task: TaskName) -> Mapping[ModuleKey, tuple[DeviceId, ...]]:
        """The devices that serve each module for a task."""
        further = self.further.get(task)
        if not further:
            return self.actives
        copies = {key: self.actives.get(copy_key(key, number), ()) for key, number in further.items()}
        return {**self.actives, **copies}

    @cached_property
    def copies(self) -> dict[DeviceId, dict[ModuleKey, ModuleKey]]:
        """By device and module the copy that must be there."""
        copies: dict[DeviceId, dict[ModuleKey, ModuleKey]] = {}
        for key, devices in self.actives.items():
            for device in (*devices, *self.spares.standby.get(key, ())):
                copies.setdefault(device, {})[original_key(key)] = key
        return copies

    @cached_property
    def users(self) -> dict[ModuleKey, frozenset[TaskName]]:
        """The tasks that use each module."""
        users: dict[ModuleKey, set[TaskName]] = {}
        for task in self.placed:
            for module in task.modules.values():
                users.setdefault(module.key, set()).add(task.task)
        return {key: frozenset(names) for key, names in users.items()}

    @cached_property
    def revisions(self) -> dict[ModuleKey, str]:
        """The revision of the first task, by name, that uses each module."""
        by_name = sorted(self.placed, key=lambda task: task.task, reverse=True)
        return {module.key: task.revision for task in by_name for module in task.modules.values()}

    @cached_property
    def roles(self) -> dict[DeviceId, dict[ModuleKey, Role]]:
        """The modules that each device must have, and their roles there."""
        return {
            device: {key: "active" if device in self.actives[copy] else "standby" for key, copy in copies.items()}
            for device, copies in self.copies.items()
        }

    @cached_property
    def serving(self) -> dict[ModuleKey, tuple[tuple[DeviceId, ...], ModuleSpec]]:
        """The active copies, without names, reasons and standbys: a change of this is a new generation."""
        return {key: (devices, self.modules[key][1]) for key, devices in self.actives.items()}

    def names(self, to: Mapping[ModuleKey, DeviceId]) -> dict[ModuleName, DeviceId]:
        """The same mapping with the modules' names, for the log."""
        return {self.name(key): device for key, device in to.items()}

    def name(self, key: ModuleKey) -> ModuleName:
        """A copy's name for the log."""
        return self.modules[key][0] + key.removeprefix(original_key(key))


@dataclass(frozen=True)
class DrainAttempt:
    """The last search for other places for the modules of draining devices."""

    facts: Facts
    where: Mapping[ModuleKey, DeviceId]  # both as they were
    retry_at_s: float  # if neither changes before
    stays: Mapping[DeviceId, str] = field(default_factory=dict)  # what can't move, and why


PlanKind = Literal["placement", "drain", "moves", "spares"]
"""The plans that the planner is asked for."""


@dataclass(frozen=True)
class Planning:
    """The one problem that the planner has, and its plan once that has arrived."""

    number: int
    kind: PlanKind
    facts: Facts
    where: Mapping[ModuleKey, DeviceId]  # both as they were when it was asked
    asked_s: float
    until_s: float  # it counts as lost then
    ending: bool = False  # whether it must come to an end
    plan: Plan | None = None


@dataclass(frozen=True)
class OtherDigests:
    """The digests that devices found of a source whose first load had another one."""

    key: ModuleKey  # of the module
    found: Mapping[DeviceId, str]


@dataclass(frozen=True)
class Snapshot:
    """The placement, and what was published of it, before the first of the latest goodbyes."""

    at_s: float
    placement: CurrentPlacement
    routes: Mapping[TaskName, Route]
    assignments: Mapping[DeviceId, Assignment]


@dataclass(frozen=True)
class State:
    """All that the orchestrator knows and has published. ``initial`` makes the first one."""

    epoch: int
    settle_s: float
    cluster: Cluster
    pace: Pace = Pace()
    link: LinkUp | None = None
    settles_at_s: float | None = None  # nothing is placed before
    reads_again: bool = False  # until our own announcement is back, behind all that the broker retains
    linked_s: float = -math.inf  # when this process first reached the broker: the broker didn't start later
    copied_epoch: int = 0  # the last term that our stored copy of the orders can be of; 0 if that isn't known
    followed_by: int = 0  # the epoch of another orchestrator that led after that term, and ended; until we reconcile
    is_first: bool = False  # whether no orchestrator's word was there before this term, and so no change number
    sessions: tuple[int, ...] = ()  # of our latest links, the present one last
    checks: Checks = field(default_factory=dict)  # of devices that one coordinator suspects
    quarantine: Quarantine = field(default_factory=Quarantine)  # of requests that may kill devices
    quarantine_told: tuple[object, ...] = ({}, {}, {})  # what agents know of it
    quarantine_said: QuarantineMessage | None = None  # the last message about it
    doubted_leader: DoubtedLeader | None = None  # the last message of the leader's topics, if its epoch isn't accepted
    told_term_s: float = -math.inf  # when this term was last announced to devices that obey a later one
    republish_at_s: float | None = None  # when all is published again after a new link, unless a newer leader shows up
    orders: Orders = NO_ORDERS  # tasks and drains, as the state directory has them before any message follows from them
    reconciled: bool = False  # whether the broker has all of these orders; false from a new link until it settled
    broker_change: int = 0  # the broker's change number, as heard over this link before that
    delivered: Delivered = NOTHING_DELIVERED
    retained_routes: Mapping[TaskName, RetainedRouteReceived] = field(default_factory=dict)  # came over this link
    serving_entries: int = 0  # modules and devices that they name
    tasks: Mapping[TaskName, TaskSpec] = field(default_factory=dict)  # in the order in which they were deployed
    served: Mapping[TaskName, TaskSpec] = field(default_factory=dict)  # older specs that go on until theirs is ready
    undated: frozenset[TaskName] = frozenset()  # tasks whose specs came while settling: their order says nothing
    invalid: Mapping[TaskName, str] = field(default_factory=dict)
    footprints: Mapping[ModuleKey, int] = field(default_factory=dict)  # the most bytes that any device measured
    placement: CurrentPlacement = CurrentPlacement()
    snapshot: Snapshot | None = None  # restored if the goodbyes were the broker's end
    spares_due_s: float | None = None  # when spares are to be chosen; None: they have been
    drain_attempt: DrainAttempt | None = None
    planning: Planning | None = None
    outstanding: Literal["nothing", "births", "more"] = "more"  # of the facts, what the placement doesn't follow from
    births_from_s: float = -math.inf  # until then births wait for further ones, to share a plan
    problems: int = 0  # that the planner was given in this term
    rebirth_requested_s: Mapping[DeviceId, float] = field(default_factory=dict)
    reviewed_s: float = 0.0  # when a better placement was last searched for, or an active copy last moved
    reviewed_devices: int = 0  # that it followed from then
    doubled_s: float = -math.inf  # when it last followed from more devices than before, and from twice as many as then
    generation: int = 0
    load_deaths: LoadDeaths = field(default_factory=dict)
    other_digests: Mapping[str, OtherDigests] = field(default_factory=dict)  # by the name of a source
    forgotten: tuple[DeviceId, ...] = ()  # by an operator's order, in this term: the latest
    went_beyond_s: float = -math.inf  # when it last grew because a device obeys another one
    routes: Mapping[TaskName, Route] = field(default_factory=dict)  # as published
    under_way: Mapping[TaskName, tuple[Route, ...]] = field(default_factory=dict)  # published, and not heard yet
    assignments: Mapping[DeviceId, Assignment] = field(default_factory=dict)  # as published
    assigned_s: Mapping[DeviceId, float] = field(default_factory=dict)  # when each assignment was last published
    due_s: float | None = field(
        default=None, compare=False
    )  # when a rule has something to do if nothing changes before
    group: int = 0  # the highest number of a share group; all tasks share the count, so that no name comes back

    @property
    def settled(self) -> bool:
        """Whether enough is known to decide."""
        return self.link is not None and self.settles_at_s is None

    @property
    def fence(self) -> Fence:
        """Epoch and generation."""
        return self.epoch, self.generation


def initial(
    *,
    epoch: int,
    heartbeat_interval_s: float = 1.0,
    settle_s: float = 1.5,
    pace: Pace | None = None,
    linked_s: float = -math.inf,
    orders: Orders = NO_ORDERS,
    is_first: bool = False,
    copied_epoch: int = 0,
) -> State:
    """The state at the begin of a term; ``orders`` are those that the state directory has."""
    cluster = Cluster(heartbeat_interval_s, leader_interval_s(heartbeat_interval_s))
    return State(
        epoch,
        settle_s,
        cluster,
        pace or Pace(),
        linked_s=linked_s,
        orders=orders,
        tasks=orders.specs,
        served=orders.served,
        is_first=is_first,
        copied_epoch=copied_epoch,
    )
