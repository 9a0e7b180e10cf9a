"""The agent's events and actions: frozen values, one class each.

Owns the vocabulary between ``wire``, ``service``, which performs actions, and the rules. Knows nothing of topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.messages import (
    AssignedModule,
    Assignment,
    DeviceState,
    NodeFailed,
    OrchestratorState,
    Permit,
    Quarantine,
    Result,
    Route,
    TensorMessage,
)
from broker.protocol.reports import EventType, Trace
from broker.protocol.specs import (
    AnswerForm,
    ClientName,
    DeviceId,
    ModuleKey,
    ModuleName,
    NodeName,
    RequestId,
    TaskName,
    Wire,
)
from broker.protocol.tensors import Tensors
from broker.protocol.trace_context import Traceparent
from edge_agent.modules import Output, Value

# --- events ---


class OwnEvent:
    """An event of the agent's own: not a control message, which is the event of its arrival."""


@dataclass(frozen=True)
class NodeRun:
    """One node of one request under one graph of modules. Equal runs are the same work in any attempt."""

    request: RequestId
    node: NodeName
    work: str  # ``Plan.work``


@dataclass(frozen=True)
class LeaderAnnounced(OwnEvent):
    """A message of the leader's topic that was published just now: not the broker's memory of a dead leader."""

    message: OrchestratorState


@dataclass(frozen=True)
class ControlLinkRestored(OwnEvent):
    """The control link is new. The agent missed all routes that were cleared while the link was down."""


@dataclass(frozen=True)
class DataLinkChanged(OwnEvent):
    """The connection for requests and tensors came up or went down."""

    up: bool


@dataclass(frozen=True)
class RouteCleared(OwnEvent):
    """A task was undeployed."""

    task: TaskName


@dataclass(frozen=True)
class ModuleReady(OwnEvent):
    """A module is loaded. A measured forward pass took ``compute_s``; ``batched`` are its uses that take a batch."""

    key: ModuleKey
    compute_s: float | None = None
    batched: frozenset[str | None] = frozenset()


@dataclass(frozen=True)
class ModuleFailed(OwnEvent):
    """A module can't be loaded here."""

    key: ModuleKey
    why: str = ""


@dataclass(frozen=True)
class ModuleUnloaded(OwnEvent):
    """A module's memory is free again, or will be when its last use ends."""

    module: ModuleName


@dataclass(frozen=True)
class Requested(OwnEvent):
    """A sensor's request arrived at this front door."""

    task: TaskName
    payload: bytes
    content_type: str
    reply_to: str
    correlation: bytes
    expiry_s: int | None
    client: ClientName = ""
    traceparent: Traceparent | None = None
    waited_s: float = 0.0  # in this device's mailbox: the request has so much less time


@dataclass(frozen=True)
class Received(OwnEvent):
    """A message between agents arrived. The broker vouches for its sender."""

    sender: DeviceId
    message: TensorMessage
    values: Mapping[NodeName, Value]  # need -> what the sensor sent, or the output of a node


@dataclass(frozen=True)
class NotReceived(OwnEvent):
    """The broker reports that no client took a message of ours. Its coordinator must know."""

    coordinator: DeviceId
    failed: NodeFailed
    deadline_s: float  # on this device's clock


@dataclass(frozen=True)
class Ran(OwnEvent):
    """A forward pass ended with an output or with an error.

    ``output`` is rounded to the plan's ``wire`` unless the sensor gets it. Then ``given`` holds the rounded arrays for
    other nodes, if any node takes them.
    """

    run: NodeRun
    output: Output | None
    error: Exception | None
    began_s: float  # on this device's clock
    compute_s: float  # of the whole pass
    given: Tensors | None = None
    cached: bool = False  # the output of equal work was kept: nothing was computed
    batch: int = 1  # nodes in the pass


@dataclass(frozen=True)
class PassIsLost(OwnEvent):
    """A forward pass doesn't end, or it broke the accelerator: this process will be replaced soon."""

    runs: tuple[NodeRun, ...]  # the nodes in the pass
    broken: str = ""  # why the accelerator fails; empty: the pass hangs


@dataclass(frozen=True)
class Restarting(OwnEvent):
    """This process is replaced now."""


@dataclass(frozen=True)
class Tick(OwnEvent):
    """Time passed."""


Event = Assignment | OrchestratorState | OwnEvent | Permit | Quarantine | Route
"""An event that ``decide`` handles."""


@dataclass(frozen=True)
class RebirthRequested:
    """The orchestrator doesn't know this device and asks it to announce itself."""


@dataclass(frozen=True)
class Echoed:
    """A message that the agent sent to itself came back."""

    payload: bytes


@dataclass(frozen=True)
class RetainedState:
    """The broker retained this state under the device's id when its connection began."""

    message: DeviceState


ConnectionEvent = DeviceState | RetainedState | Echoed | RebirthRequested
"""An event of the agent's connections (session, measured link, client id), which ``service`` handles itself.
``DeviceState`` was published just now under this device's id: our own, coming back, or another client's."""

# --- actions ---


@dataclass(frozen=True)
class Load:
    """Load a module."""

    assigned: AssignedModule


@dataclass(frozen=True)
class Unload:
    """Unload a module."""

    key: ModuleKey
    module: ModuleName


@dataclass(frozen=True)
class JoinGroup:
    """Subscribe to a share group."""

    filter: str


@dataclass(frozen=True)
class LeaveGroup:
    """Unsubscribe from a share group."""

    filter: str


@dataclass(frozen=True)
class Run:
    """Compute a node. The values stand in the order of its needs."""

    run: NodeRun
    key: ModuleKey
    values: tuple[Value, ...]
    deadline_s: float  # on this device's clock
    use: str | None = None  # which of the module's uses
    wire: Wire = "float32"  # the dtype to which the output is rounded for other nodes
    answers: bool = False  # the sensor gets the output, unrounded
    form: AnswerForm | None = None  # of its answer, where the output is an array
    payload: str | None = None  # of its request
    group: int = 0  # the runs of one group may be computed together


@dataclass(frozen=True)
class Send:
    """Send a message to another agent."""

    receiver: DeviceId
    message: TensorMessage
    values: Mapping[NodeName, Value]  # need -> what the sensor sent, or the output of a node
    deadline_s: float  # on this device's clock


@dataclass(frozen=True)
class Reply:
    """Answer a sensor, with tensors when the task's output is a tensor."""

    reply_to: str
    correlation: bytes
    result: Result
    deadline_s: float  # on this device's clock
    tensors: Tensors | None = None


@dataclass(frozen=True)
class SendHeartbeat:
    """Send a heartbeat at once: the state of a module has changed."""


@dataclass(frozen=True)
class ReadRetained:
    """Subscribe to the control topics again: the broker then sends what it retains."""


@dataclass(frozen=True)
class PublishEvent:
    """Publish that something happened on this device."""

    type: EventType
    task: TaskName | None = None
    module: ModuleName | None = None
    why: str | None = None
    requests: int | None = None  # that a backup coordinator took over


@dataclass(frozen=True)
class PublishTrace:
    """Publish where the seconds of a request went."""

    trace: Trace


@dataclass(frozen=True)
class Log:
    """Write a log event with these fields."""

    action: str
    fields: dict[str, object] = field(default_factory=dict)


Action = (
    Load
    | Unload
    | JoinGroup
    | LeaveGroup
    | Run
    | Send
    | Reply
    | SendHeartbeat
    | ReadRetained
    | PublishEvent
    | PublishTrace
    | Log
)
