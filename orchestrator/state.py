"""What the orchestrator knows and has said: one frozen value.

Owns the fields, not what changes them. Knows nothing of messages' bytes, topics or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from broker.protocol.messages import Assignment, DeviceProfile, Route
from broker.protocol.specs import DeviceId, ModuleKey, ModuleName, ModuleSpec, TaskName, TaskSpec
from broker.transport.port import LinkUp
from orchestrator.events import RetainedRouteReceived
from orchestrator.leadership.standby import own_interval_s
from orchestrator.membership.cluster import Cluster
from orchestrator.placement.routes import Term
from orchestrator.planner.placement import never
from orchestrator.planner.spares import NO_SPARES, Spares

Role = Literal["active", "standby"]


@dataclass(frozen=True)
class Moment:
    """Now, and whether this turn's time for planning is over."""

    now_s: float
    enough: Callable[[], bool] = never


@dataclass(frozen=True)
class Pace:
    """How soon what is merely better is done; what is broken is mended at once."""

    calm_s: float = 3.0  # without a change before spares are chosen: the rest of a fleet that starts, or dies, follows
    review_s: float = 30.0  # between looks for a better placement, and after moves: some loads of a gateway's disk
    round_s: float = 600.0  # moves that aren't ready by then are given up: a download over a thin line
    spares: bool = True  # whether leftover memory is given to standbys and replicas at all


@dataclass(frozen=True)
class Facts:
    """All that calls for placing anew. Equal facts are never placed twice: measured seconds drift, modules don't."""

    candidates: tuple[tuple[DeviceId, DeviceProfile], ...] = ()
    tasks: tuple[TaskSpec, ...] = ()  # those that could be served
    unservable: Mapping[TaskName, str] = field(default_factory=dict)  # the others, and why
    barred: Mapping[ModuleKey, Mapping[DeviceId, str]] = field(default_factory=dict)
    footprints: Mapping[ModuleKey, int] = field(default_factory=dict)  # measured bytes, where more than the spec's
    doubts: Mapping[DeviceId, str] = field(default_factory=dict)  # candidates that should get nothing more, and why


@dataclass(frozen=True)
class Moves:
    """One round of planned moves: the copies that take over together once they are loaded."""

    to: Mapping[ModuleKey, DeviceId]
    origin: Mapping[ModuleKey, DeviceId]
    until_s: float
    gain_s: float  # of the objective, when it was planned
    drains: bool = False  # made to empty a device, whatever it gains


@dataclass(frozen=True)
class Standing:
    """The placement that stands, and the facts it answers.

    ``where`` is the active copy that planning counts; ``spares`` are the others; ``moves.to`` are among the standbys.
    """

    facts: Facts = Facts()
    where: Mapping[ModuleKey, DeviceId] = field(default_factory=dict)
    modules: Mapping[ModuleKey, tuple[ModuleName, ModuleSpec]] = field(default_factory=dict)
    why: Mapping[ModuleKey, str] = field(default_factory=dict)
    refused: Mapping[TaskName, str] = field(default_factory=dict)
    spares: Spares = NO_SPARES
    moves: Moves | None = None

    @property
    def tasks(self) -> list[TaskSpec]:
        """The tasks that are placed."""
        return [task for task in self.facts.tasks if task.task not in self.refused]

    @cached_property
    def actives(self) -> dict[ModuleKey, tuple[DeviceId, ...]]:
        """The devices that serve each module, the one that planning counts first."""
        return {key: (home, *self.spares.replicas.get(key, ())) for key, home in self.where.items()}

    @cached_property
    def held_by(self) -> dict[DeviceId, dict[ModuleKey, Role]]:
        """What each device must hold, and for what."""
        held: dict[DeviceId, dict[ModuleKey, Role]] = {}
        for key, devices in self.actives.items():
            for device in devices:
                held.setdefault(device, {})[key] = "active"
            for device in self.spares.standby.get(key, ()):
                held.setdefault(device, {})[key] = "standby"
        return held

    @property
    def serving(self) -> dict[ModuleKey, tuple[tuple[DeviceId, ...], ModuleSpec]]:
        """What serves where: the placement's content, without names, reasons and standbys."""
        return {key: (devices, self.modules[key][1]) for key, devices in self.actives.items()}


@dataclass(frozen=True)
class Draining:
    """A look for places for what draining devices serve."""

    facts: Facts
    where: Mapping[ModuleKey, DeviceId]  # both as they were
    again_s: float  # when to look again, if neither changes
    stays: Mapping[DeviceId, str] = field(default_factory=dict)  # what can't go, and why


@dataclass(frozen=True)
class Before:
    """What stood, and what was said, before the first of the latest goodbyes."""

    at_s: float
    standing: Standing
    routes: Mapping[TaskName, Route]
    assignments: Mapping[DeviceId, Assignment]


@dataclass(frozen=True)
class State:
    """All that the orchestrator knows and has said. Make the first one with ``initial``."""

    epoch: int
    settle_s: float
    cluster: Cluster
    pace: Pace = Pace()
    link: LinkUp | None = None
    settles_at_s: float | None = None  # until then nothing is placed
    linked_s: float = -math.inf  # since when this process is linked to the broker: it didn't start later
    sessions: tuple[int, ...] = ()  # of our links, the present one last; only the latest are kept
    delivered: frozenset[TaskName] = frozenset()  # tasks whose specs came since the link is up
    republish_at_s: float | None = None  # when all is said again after a new link, if nobody newer is heard of before
    drains: frozenset[DeviceId] = frozenset()  # ordered before this link, and not heard of anew over it yet
    broker_kept_memory: bool = False  # whether the broker still knows an earlier link of ours: it kept its memory
    tasks: Mapping[TaskName, TaskSpec] = field(default_factory=dict)
    invalid: Mapping[TaskName, str] = field(default_factory=dict)
    remembered: Mapping[TaskName, RetainedRouteReceived] = field(
        default_factory=dict
    )  # what the broker retained at our link
    footprints: Mapping[ModuleKey, int] = field(default_factory=dict)  # the most bytes that any device measured
    standing: Standing = Standing()
    before: Before | None = None  # in case that the goodbyes were the broker's end
    spares_due_s: float | None = None  # from when on spares are to be chosen; None: those that stand were
    draining: Draining | None = None  # what was last tried for the devices that are to be emptied
    asked_s: Mapping[DeviceId, float] = field(default_factory=dict)  # when strangers were asked for their birth
    reviewed_s: float = 0.0  # when a better placement was last looked for, or an active copy last moved
    generation: int = 0
    routes: Mapping[TaskName, Route] = field(default_factory=dict)  # as published
    assignments: Mapping[DeviceId, Assignment] = field(default_factory=dict)  # as published
    told_s: Mapping[DeviceId, float] = field(default_factory=dict)  # when each assignment was last published
    group: int = 0  # the highest number of a share group; all tasks share the count, so that no name comes back

    @property
    def settled(self) -> bool:
        """Whether we know enough to decide."""
        return self.link is not None and self.settles_at_s is None

    @property
    def term(self) -> Term:
        """Epoch and generation."""
        return Term(self.epoch, self.generation)


def initial(
    *,
    epoch: int,
    heartbeat_interval_s: float = 1.0,
    settle_s: float = 1.5,
    pace: Pace | None = None,
    linked_s: float = -math.inf,
    tasks: Mapping[TaskName, TaskSpec] | None = None,
) -> State:
    """The state before anything is known but the tasks that an earlier term stored."""
    cluster = Cluster(heartbeat_interval_s, own_interval_s(heartbeat_interval_s))
    return State(
        epoch=epoch, settle_s=settle_s, cluster=cluster, pace=pace or Pace(), linked_s=linked_s, tasks=tasks or {}
    )
