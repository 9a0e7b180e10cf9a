"""The problems that the orchestrator gives the planner, and the plans that it gets back: values that can be pickled.

Knows nothing of how a problem is solved (``solve``), of live devices or of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskName, TaskSpec
from orchestrator.planner.copies import AtHand, Bars, FurtherCopies, Homes
from orchestrator.planner.moves import Actives
from orchestrator.planner.spares import NO_SPARES, Spares


@dataclass(frozen=True)
class _Problem:
    """The fields of every problem.

    ``tasks`` have the bytes that their modules really occupy. They are in the order in which they were deployed.
    """

    devices: tuple[DeviceSpec, ...]
    tasks: tuple[TaskSpec, ...]
    at_hand: AtHand
    barred: Bars


@dataclass(frozen=True)
class PlacementProblem(_Problem):
    """The device for each module of each task, or the reason why a task has to wait."""

    keep: Homes  # where modules stay if they can
    where: Homes  # of the placement in force
    explained: frozenset[ModuleKey]  # modules that need no other reason while they stay
    credit: Mapping[DeviceId, int]  # memory beyond a device's own, for copies that need less there; while they stay
    absent: Mapping[DeviceId, str]  # devices that can hold nothing now, each with the reason
    waived: Bars | None  # the constraints without doubts about devices, for tasks that would have to wait
    upcoming: frozenset[TaskName] = frozenset()  # tasks that come after all others, and move none of their modules


@dataclass(frozen=True)
class PlacementPlan:
    """The answer to a ``PlacementProblem``."""

    where: Homes
    further: FurtherCopies
    why: Mapping[ModuleKey, str]  # for modules that aren't where they were, or had no reason
    refused: Mapping[TaskName, str]
    waived: bool  # whether doubts about devices were ignored


@dataclass(frozen=True)
class MovesProblem(_Problem):
    """The moves to a better placement that are worth making."""

    where: Homes
    actives: Actives
    doubtful: frozenset[DeviceId]
    further: FurtherCopies  # of the placement in force


@dataclass(frozen=True)
class MovesPlan:
    """The answer to a ``MovesProblem``: where modules should move, and what that gains of the objective."""

    to: Homes = field(default_factory=dict)
    gain_s: float = 0.0


@dataclass(frozen=True)
class DrainProblem(_Problem):
    """Other places for the modules of devices that are emptied; these aren't among ``devices``."""

    leaving: Homes
    where: Homes
    actives: Actives
    further: FurtherCopies  # of the placement in force
    waived: Bars  # as in ``PlacementProblem``


@dataclass(frozen=True)
class DrainPlan:
    """The answer to a ``DrainProblem``: where modules can go, and why the others can't."""

    to: Homes
    why: Mapping[ModuleKey, str]


@dataclass(frozen=True)
class SparesProblem(_Problem):
    """Standbys and replicas for the memory that a placement leaves. The fields are ``spares``' arguments."""

    where: Homes
    further: FurtherCopies  # of the placement in force
    load_s: Mapping[ModuleKey, float]
    kept: Spares


@dataclass(frozen=True)
class SparesPlan:
    """The answer to a ``SparesProblem``."""

    spares: Spares = NO_SPARES


Problem = PlacementProblem | MovesProblem | DrainProblem | SparesProblem
Plan = PlacementPlan | MovesPlan | DrainPlan | SparesPlan
