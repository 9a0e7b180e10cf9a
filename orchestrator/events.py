"""The orchestrator's events and actions: the words between messages and ``decide``, without prefixes and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.messages import (
    Assignment,
    DeviceState,
    FirstLoad,
    Heartbeat,
    OrchestratorState,
    Quarantine,
    Result,
    Route,
)
from broker.protocol.specs import DeviceId, ModuleKey, RequestId, Revision, TaskName, TaskSpec
from broker.protocol.topics import Topic
from broker.transport.port import LinkDown, LinkUp
from orchestrator.planner.plans import Plan, Problem

Ticket = tuple[int, int]
"""The epoch, and the number of a problem in it."""

# --- events ---


@dataclass(frozen=True)
class DeviceStateReceived:
    """A device's birth, drain or will arrived."""

    device: DeviceId
    message: DeviceState


@dataclass(frozen=True)
class HeartbeatReceived:
    """A device's heartbeat arrived."""

    device: DeviceId
    message: Heartbeat


@dataclass(frozen=True)
class DrainReceived:
    """An operator's order arrived: take a device out of service, or put it back."""

    device: DeviceId
    drain: bool
    retained: bool = False  # by the broker, from before this link


@dataclass(frozen=True)
class ForgetReceived:
    """An operator's order arrived: forget a device that is gone for good."""

    device: DeviceId


@dataclass(frozen=True)
class Overslept:
    """The orchestrator's process stood still, and received nothing meanwhile."""


@dataclass(frozen=True)
class MessagesRefused:
    """Control messages found no room. The broker sends again what it retains, and what it lacks then was removed."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class TaskDeployed:
    """A task's spec arrived."""

    spec: TaskSpec
    retained: bool = False  # by the broker, from before this link


@dataclass(frozen=True)
class TaskRejected:
    """An invalid spec arrived; ``why`` is a sentence for its deployer."""

    task: TaskName
    why: str


@dataclass(frozen=True)
class TaskUndeployed:
    """A task's spec was cleared."""

    task: TaskName


@dataclass(frozen=True)
class RevisionReceived:
    """A revision's topic has this spec now; None if it was cleared, or if its message isn't that revision's spec."""

    task: TaskName
    revision: str  # as the topic says, not always a valid one
    spec: TaskSpec | None
    is_empty: bool = False


@dataclass(frozen=True)
class RevisionsListed:
    """A task's status arrived: its last revisions, newest first, the one that is served, and digests of first loads."""

    task: TaskName
    revisions: tuple[Revision, ...]
    served: Revision | None = None
    digests: Mapping[str, FirstLoad] = field(default_factory=dict)


@dataclass(frozen=True)
class RetainedRouteReceived:
    """A route arrived that the broker retained, of an earlier term or an earlier link of ours."""

    task: TaskName
    available: bool
    front_door: bool = False  # whether any device takes the task's requests
    serving: Mapping[ModuleKey, tuple[DeviceId, ...]] = field(default_factory=dict)  # the devices that ran its modules
    epoch: int = 0  # of the leader that published it

    @property
    def entries(self) -> int:
        """The number of modules and devices that it names."""
        return len(self.serving) + sum(map(len, self.serving.values()))


@dataclass(frozen=True)
class RouteHeard:
    """A route was published, or cleared, just now: our own message, coming back, or another client's."""

    task: TaskName
    epoch: int
    generation: int = 0
    is_empty: bool = False  # it was cleared
    payload: bytes = b""


@dataclass(frozen=True)
class LeaderTopicLost:
    """The leader's topic was cleared, or its message can't be read."""

    why: str


@dataclass(frozen=True)
class QuarantineHeard:
    """The list of requests in quarantine arrived: an earlier leader's, ours, or another client's; None if cleared."""

    message: Quarantine | None
    retained: bool = False  # by the broker, from before this link


@dataclass(frozen=True)
class RequestReceived:
    """A sensor's request arrived; ``reply_to`` is known to be allowed."""

    task: str  # as its topic names it: it needn't be an id
    reply_to: str
    correlation: bytes | None
    payload: bytes  # for the request's id, if this orchestrator answers


@dataclass(frozen=True)
class RequestUnanswerable:
    """A sensor's request arrived, and its answer has no topic; ``reason`` is a word for counters."""

    task: str  # as its topic names it
    reason: str


@dataclass(frozen=True)
class PlanFound:
    """The planner's plan for the problem of this ``ticket`` arrived; None: it failed at it, and there will be none."""

    ticket: Ticket
    plan: Plan | None


@dataclass(frozen=True)
class CheckAnswered:
    """A device answered the orchestrator's own check."""

    device: DeviceId
    request: RequestId


DeviceEvent = DeviceStateReceived | HeartbeatReceived | DrainReceived | ForgetReceived
MembershipEvent = DeviceEvent | Overslept | Tick | LinkUp | LinkDown
Order = TaskDeployed | TaskRejected | TaskUndeployed | DrainReceived
"""An operator's order."""
TaskEvent = TaskDeployed | TaskRejected | TaskUndeployed | RetainedRouteReceived
TopicEvent = RouteHeard | RevisionReceived | RevisionsListed | LeaderTopicLost | CheckAnswered | QuarantineHeard
RequestEvent = RequestReceived | RequestUnanswerable
Event = MembershipEvent | TaskEvent | TopicEvent | MessagesRefused | RequestEvent | PlanFound | OrchestratorState
"""The leader's topic and its heartbeat are events as they are: this orchestrator's own, or another's."""

# --- actions ---


@dataclass(frozen=True)
class PublishState:
    """Publish that this orchestrator leads."""

    message: OrchestratorState


@dataclass(frozen=True)
class PublishSpec:
    """Publish a task's spec to a broker that lost it."""

    spec: TaskSpec


@dataclass(frozen=True)
class PublishRoute:
    """Publish a task's route."""

    route: Route


@dataclass(frozen=True)
class PublishAssignment:
    """Publish the modules that a device must have."""

    device: DeviceId
    assignment: Assignment


@dataclass(frozen=True)
class PublishQuarantine:
    """Publish the requests that run alone, and the payloads that are refused."""

    message: Quarantine


@dataclass(frozen=True)
class PublishPermit:
    """Let a device compute a request in quarantine, or wait for another one that computes the same payload."""

    device: DeviceId
    epoch: int
    request: RequestId
    granted: bool


@dataclass(frozen=True)
class PublishDrain:
    """Publish the order to drain a device to a broker that lost it."""

    device: DeviceId


@dataclass(frozen=True)
class Clear:
    """Clear the topic of a task or a device: it is undeployed or forgotten, or the broker lost the end of an order."""

    topic: Topic
    name: str


@dataclass(frozen=True)
class RequestRebirth:
    """Ask a device for its birth: it sends heartbeats, and its birth isn't known."""

    device: DeviceId


@dataclass(frozen=True)
class CheckDevice:
    """Send a device a request of our own, which it answers with a refusal if it serves."""

    device: DeviceId
    request: RequestId
    key: ModuleKey  # of a module that it holds, if it holds any
    fence: tuple[int, int]  # epoch and generation that it reports
    within_s: float


@dataclass(frozen=True)
class AnswerError:
    """Answer a request that no device takes. ``reason`` is for counters, the sentence in ``result`` for the sensor."""

    reply_to: str
    correlation: bytes | None
    result: Result
    reason: str


@dataclass(frozen=True)
class Resign:
    """Stop leading: another orchestrator leads, or has led in this term. The next term's epoch is above ``epoch``."""

    why: str
    epoch: int


@dataclass(frozen=True)
class RequestPlan:
    """Give the planner a problem; the one that it is at, if any, isn't needed any more."""

    ticket: Ticket
    problem: Problem


@dataclass(frozen=True)
class EndPlanning:
    """Tell the planner to come to an end with this problem, because another one waits."""

    ticket: Ticket


@dataclass(frozen=True)
class Note:
    """A line for the log."""

    event: str
    fields: Mapping[str, object]


Message = (
    PublishState
    | PublishSpec
    | PublishRoute
    | PublishAssignment
    | PublishDrain
    | PublishQuarantine
    | PublishPermit
    | Clear
    | RequestRebirth
    | CheckDevice
    | AnswerError
)
"""The actions that are messages."""
Action = Message | RequestPlan | EndPlanning | Resign | Note
