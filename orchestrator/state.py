"""What the orchestrator knows and has said: one frozen value.

Owns the fields, not what changes them. Knows nothing of messages' bytes, topics or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.messages import Assignment, DeviceProfile, Route
from broker.specs import DeviceId, ModuleKey, ModuleName, ModuleSpec, TaskName, TaskSpec
from broker.transport import LinkUp
from orchestrator.cluster import Cluster
from orchestrator.events import RouteSeen
from orchestrator.placement import Explanation
from orchestrator.routes import Term


@dataclass(frozen=True)
class Facts:
    """All that the placement depends on. Equal facts are never placed twice: measured seconds drift, modules don't."""

    candidates: tuple[tuple[DeviceId, DeviceProfile], ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    barred: Mapping[ModuleKey, Mapping[DeviceId, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """The placement that stands, and the facts it answers."""

    facts: Facts = Facts()
    where: Mapping[ModuleKey, DeviceId] = field(default_factory=dict)
    modules: Mapping[ModuleKey, tuple[ModuleName, ModuleSpec]] = field(default_factory=dict)
    explain: Mapping[ModuleKey, Explanation] = field(default_factory=dict)
    refused: Mapping[TaskName, str] = field(default_factory=dict)

    @property
    def holdings(self) -> dict[ModuleKey, tuple[DeviceId, ModuleSpec]]:
        """What is held where: the placement's content, without names and reasons."""
        return {key: (home, self.modules[key][1]) for key, home in self.where.items()}

    def held_by(self, device: DeviceId) -> dict[ModuleKey, ModuleSpec]:
        """What this device must hold."""
        return {key: self.modules[key][1] for key, home in self.where.items() if home == device}


@dataclass(frozen=True)
class State:
    """All that the orchestrator knows and has said. Make the first one with ``initial``."""

    epoch: int
    settle_s: float
    cluster: Cluster
    link: LinkUp | None = None
    settles_at_s: float | None = None  # until then nothing is placed
    sessions: tuple[int, ...] = ()  # of our links, the present one last; only the latest are kept
    delivered: frozenset[TaskName] = frozenset()  # tasks whose specs came since the link is up
    outlived: bool = False  # whether the broker still knows an earlier link of ours: it kept its memory
    tasks: Mapping[TaskName, TaskSpec] = field(default_factory=dict)
    invalid: Mapping[TaskName, str] = field(default_factory=dict)
    remembered: Mapping[TaskName, RouteSeen] = field(default_factory=dict)  # routes that the broker had at our link
    standing: Standing = Standing()
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


def initial(*, epoch: int, heartbeat_interval_s: float = 1.0, settle_s: float = 1.5) -> State:
    """The state before anything is known."""
    return State(epoch=epoch, settle_s=settle_s, cluster=Cluster(heartbeat_interval_s))
