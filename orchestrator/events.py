"""What can happen to the orchestrator, and what it can do: frozen values, one class each.

Owns the vocabulary between ``service``, which makes events of messages and messages of actions, and ``decide``. What
happens to devices is in ``cluster``. Knows nothing of topics or bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.messages import Assignment, OrchestratorState, Result, Route
from broker.protocol.specs import DeviceId, ModuleKey, TaskName, TaskSpec
from orchestrator.membership.cluster import MembershipEvent

# --- events ---


@dataclass(frozen=True)
class TaskDeployed:
    """A task's spec arrived."""

    spec: TaskSpec


@dataclass(frozen=True)
class TaskRejected:
    """A spec arrived that is none; ``why`` is a sentence for who deployed it."""

    task: TaskName
    why: str


@dataclass(frozen=True)
class TaskUndeployed:
    """A task's spec was taken away."""

    task: TaskName


@dataclass(frozen=True)
class RetainedRouteReceived:
    """The broker remembers a route, of an earlier term or of an earlier link of ours."""

    task: TaskName
    available: bool
    front_door: bool = False  # whether somebody takes the task's requests
    serving: Mapping[ModuleKey, tuple[DeviceId, ...]] = field(default_factory=dict)  # who ran its modules


@dataclass(frozen=True)
class RequestReceived:
    """A sensor asks for a task; ``reply_to`` is allowed already."""

    task: TaskName
    reply_to: str
    correlation: bytes | None
    payload: bytes  # only for the request's id, and that only if we answer


@dataclass(frozen=True)
class LeaderStateReceived:
    """Somebody, perhaps we, said who leads."""

    message: OrchestratorState


TaskEvent = TaskDeployed | TaskRejected | TaskUndeployed | RetainedRouteReceived
Event = MembershipEvent | TaskEvent | RequestReceived | LeaderStateReceived

# --- actions ---


@dataclass(frozen=True)
class PublishState:
    """Say that we lead."""

    message: OrchestratorState


@dataclass(frozen=True)
class PublishSpec:
    """Give a broker that lost its memory a task's spec back."""

    spec: TaskSpec


@dataclass(frozen=True)
class PublishRoute:
    """Say how a task's requests may go."""

    route: Route


@dataclass(frozen=True)
class ClearRoute:
    """Take the route of a task away that nobody deploys any more."""

    task: TaskName


@dataclass(frozen=True)
class PublishAssignment:
    """Say what a device must hold."""

    device: DeviceId
    assignment: Assignment


@dataclass(frozen=True)
class ClearAssignment:
    """Take the assignment of a device away that is forgotten."""

    device: DeviceId


@dataclass(frozen=True)
class PublishDrain:
    """Give a broker that lost its memory the order back to take a device out of service."""

    device: DeviceId


@dataclass(frozen=True)
class RequestRebirth:
    """Make a device announce itself: it beats, and its birth isn't known."""

    device: DeviceId


@dataclass(frozen=True)
class AnswerError:
    """Answer a request that nobody else will."""

    reply_to: str
    correlation: bytes | None
    result: Result


@dataclass(frozen=True)
class Resign:
    """End: somebody else leads, or has led in this term. The next start must take an epoch above ``epoch``."""

    why: str
    epoch: int


@dataclass(frozen=True)
class Note:
    """A line for the log."""

    event: str
    fields: Mapping[str, object]


Message = (
    PublishState
    | PublishSpec
    | PublishRoute
    | ClearRoute
    | PublishAssignment
    | ClearAssignment
    | PublishDrain
    | RequestRebirth
    | AnswerError
)
"""The actions that are messages."""
Action = Message | Resign | Note
