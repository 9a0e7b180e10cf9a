"""The state of an agent's rules (``decide``): everything they know.

Owns the fields. Only the service thread changes them, and only inside the rules. Knows no clock, socket or model.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.protocol.codec import RawInput
from broker.protocol.messages import SUSPECTED_FOR_S, AssignedModule, NodeDone, NodeInputs, Plan, Route, Timing
from broker.protocol.specs import ClientName, DeviceId, ModuleKey, NodeName, RequestId, Revision, TaskName
from broker.protocol.tensors import Tensors
from broker.protocol.trace_context import Traceparent
from edge_agent.events import NodeRun, Requested
from edge_agent.modules import Output, Value
from edge_agent.requests.counters import Counters, Sampler
from edge_agent.requests.fair_queue import FairQueue, Flow

MAX_TRACES_PER_S = 20
NODE_BYTES = 2_048  # about, in memory, of one node of a plan and its timing
NEED_BYTES = 128  # about, of one need of a node
ARRAY_BYTES = 256  # of an array, beside its elements
Fence = tuple[int, int]
"""(epoch, generation). A message with a lower fence than the highest seen is stale."""


@dataclass
class Coordinated:
    """One request that this device owns until its answer is delivered."""

    request: RequestId
    task: TaskName
    inputs: dict[NodeName, RawInput]
    reply_to: str
    correlation: bytes
    deadline_s: float
    client: ClientName = ""
    traceparent: Traceparent | None = None
    arrived_s: float = 0.0
    began_s: float = 0.0
    expected_s: float = 0.0  # expected duration at admission; 0 when unknown
    attempt: int = -1
    attempts_lost_to_own_link: int = 0  # they don't double the timeout
    fence: Fence = (0, 0)
    first_fence: Fence | None = None  # of the first plan; an older ``done`` is stale
    plan: Plan | None = None  # None while the route is incomplete
    output: NodeName | None = None  # of the last plan: its ``done`` may arrive while there is no plan
    ever_assigned: set[tuple[NodeName, DeviceId]] = field(default_factory=set)  # in any attempt
    current_assignees: dict[NodeName, tuple[DeviceId, float]] = field(default_factory=dict)  # by the plan; since when
    completed: dict[NodeName, tuple[DeviceId, float]] = field(default_factory=dict)  # which device keeps it; since when
    reports: dict[NodeName, NodeDone] = field(default_factory=dict)  # of the completed nodes
    avoid: frozenset[DeviceId] = frozenset()
    late: set[tuple[NodeName, DeviceId]] = field(default_factory=set)  # had a node's inputs when an attempt timed out
    hung: set[tuple[NodeName, DeviceId]] = field(default_factory=set)  # gave the node up for good in an earlier attempt
    retry_at_s: float = 0.0  # when to send the missing nodes again
    payload: str | None = None  # its digest
    sent: tuple[bytes, str] = (b"", "")  # what the sensor sent, and its content type
    revision: Revision | None = None  # by which it is computed
    quarantined: bool = False  # it must run alone

    @property
    def flow(self) -> Flow:
        """Its account in fair queues."""
        return self.task, self.client

    @property
    def size_bytes(self) -> int:
        """The bytes of its inputs, and of the document that they came in."""
        inputs = [raw.data for raw in self.inputs.values()]
        document = 0 if any(data is self.sent[0] for data in inputs) else len(self.sent[0])
        return document + sum(map(len, inputs))


@dataclass(frozen=True)
class BackedUp:
    """A copy of a request. This backup coordinator takes the request over when no other device answers it in time."""

    event: Requested
    front_door: tuple[DeviceId, ...]  # one of these devices got the request, too
    due_s: float  # when to take it over
    deadline_s: float


@dataclass
class PendingNode:
    """A node of a request whose inputs arrive here, or that runs. Its latest message says where the output goes."""

    message: NodeInputs
    deadline_s: float
    sender: DeviceId = ""  # of its first message
    values: dict[NodeName, Value] = field(default_factory=dict)
    timings: dict[NodeName, Timing] = field(default_factory=dict)  # of nodes of the plan
    size_bytes: int = 0  # of its values
    message_bytes: int = 0  # about, of the message and the timings
    complete_s: float = 0.0  # when the last input arrived
    waiting: bool = False  # in the fair queue
    flow: Flow = ("", "")  # its account there
    running: bool = False  # submitted to the compute thread

    @property
    def key(self) -> ModuleKey:
        """The module that the node runs."""
        return self.message.plan.nodes[self.message.node].key

    @property
    def use(self) -> str | None:
        """The use of that module."""
        return self.message.plan.nodes[self.message.node].use


class Submitted(NamedTuple):
    """A node at the compute thread."""

    flow: Flow
    key: ModuleKey
    use: str | None
    group: int  # ``Run.group``
    deadline_s: float
    charged_s: float  # to its accounts in the fair queue


@dataclass(frozen=True)
class AloneRun:
    """A run in quarantine that has the compute thread for itself, from before it begins."""

    run: NodeRun
    payload: str
    due_s: float  # when it begins without a permit
    begun: bool = False


@dataclass(frozen=True)
class KeptOutput:
    """An output that is kept for retries."""

    output: Output
    given: Tensors  # what other nodes take of it
    timings: tuple[Timing, ...]
    size_bytes: int
    input_bytes: int  # of what the node took
    deadline_s: float  # of its request; later no device asks for it
    batch: int = 1  # nodes in its pass


@dataclass(frozen=True)
class Contested:
    """Another term than ours, which a leader announced. If no leader opposes it until then, that term is obeyed."""

    epoch: int
    due_s: float


@dataclass
class AgentState:
    """Everything that the rules know."""

    device: DeviceId
    prefix: str
    batch: int = 1  # the most nodes in one pass
    heartbeat_interval_s: float = 1.0  # its own
    expected_interval_s: float | None = None  # the last one that a leader expects, if it is another one
    fence: Fence = (0, 0)
    repeated: tuple[Fence, float] | None = None  # an older assignment than the one that is obeyed; since when
    epoch: int = 0  # the term that it obeys: the highest seen, unless a leader with a lower one is not opposed
    contested: Contested | None = None
    assigned: dict[ModuleKey, AssignedModule] = field(default_factory=dict)
    loading: dict[ModuleKey, Fence] = field(default_factory=dict)  # -> the assignment that asked for it
    ready: set[ModuleKey] = field(default_factory=set)
    failed: set[ModuleKey] = field(default_factory=set)  # assigned, but can't be loaded here
    routes: dict[TaskName, Route] = field(default_factory=dict)
    route_sizes: dict[TaskName, tuple[bool, int]] = field(default_factory=dict)  # whether it names us, bytes as JSON
    routes_bytes: int = 0  # of all of them
    share_groups: dict[TaskName, str] = field(default_factory=dict)  # joined as a front door or a backup coordinator
    leave_at_s: dict[str, float] = field(default_factory=dict)  # share group -> when to leave it
    backups: dict[RequestId, BackedUp] = field(default_factory=dict)  # in the order of arrival
    backup_bytes: int = 0
    unconfirmed_tasks: set[TaskName] = field(default_factory=set)  # their routes didn't arrive on this link yet
    confirm_by_s: float | None = None
    coordinated: dict[RequestId, Coordinated] = field(default_factory=dict)
    coordinated_bytes: int = 0
    pending: dict[NodeRun, PendingNode] = field(default_factory=dict)
    pending_bytes: int = 0
    pending_of: Counter[DeviceId] = field(default_factory=Counter)  # how many of them each device sent first
    pending_bytes_of: Counter[DeviceId] = field(default_factory=Counter)
    kept: OrderedDict[NodeRun, KeptOutput] = field(default_factory=OrderedDict)
    kept_bytes: int = 0
    sweep_at_s: float = -math.inf  # when to drop expired outputs
    fair_queue: FairQueue[NodeRun] = field(default_factory=FairQueue)  # complete nodes, before the compute thread
    passes: dict[NodeRun, Submitted] = field(default_factory=dict)  # submitted to it, in order
    groups: int = 0  # that were submitted so far
    pass_began_s: float = 0.0  # the first of them
    batched: dict[ModuleKey, frozenset[str | None]] = field(default_factory=dict)  # uses that take a batch
    measured_s: dict[ModuleKey, float] = field(default_factory=dict)  # a node's share of a pass, on a moving average
    reported_s: dict[tuple[DeviceId, Flow], tuple[float, float]] = field(default_factory=dict)  # -> when, its queue
    latency_inflation: dict[TaskName, float] = field(default_factory=dict)  # real over expected latency, on average
    last_heard_s: dict[DeviceId, float] = field(default_factory=dict)  # of devices that have work of ours
    suspect_only_after_s: float = -math.inf  # what was sent earlier may be lost, or its receiver was away
    suspects: dict[DeviceId, float] = field(default_factory=dict)  # -> when a call to the device last timed out
    quarantine: frozenset[str] = frozenset()  # requests and payloads that run alone
    refused: dict[str, float] = field(default_factory=dict)  # payload -> until when it isn't run
    alone: AloneRun | None = None
    leaving: bool = False  # a pass hangs: no new module, no share group
    dropped: Counter[str] = field(default_factory=Counter)
    warned: set[tuple[TaskName, str]] = field(default_factory=set)  # of requests without a topic for the answer: why
    counters: Counters = field(default_factory=Counters)
    trace_sampler: Sampler = field(default_factory=lambda: Sampler(MAX_TRACES_PER_S))

    @property
    def queue_lengths(self) -> Counter[ModuleKey]:
        """The nodes in the fair queue, by module."""
        return Counter(node.key for node in self.pending.values() if node.waiting)

    def next_deadline_s(self) -> float | None:
        """The time when the next ``Tick`` is due; None when nothing waits for time."""
        times = [t for c in self.coordinated.values() for t in (c.deadline_s, c.retry_at_s)]
        times += [node.deadline_s for node in self.pending.values() if not node.running]
        times += [backup.due_s for backup in self.backups.values()]
        times += self.leave_at_s.values()
        times += [] if self.confirm_by_s is None else [self.confirm_by_s]
        times += [] if self.contested is None else [self.contested.due_s]
        times += [self.sweep_at_s] if self.kept else []
        times += [self.alone.due_s] if self.alone and not self.alone.begun else []
        times += [at_s + SUSPECTED_FOR_S for at_s in self.suspects.values()]
        return min(times, default=None)


def kept_bytes_of(value: Value) -> int:
    """About the memory of a raw input or of some arrays, also of arrays without elements."""
    return size_of(value) + (0 if isinstance(value, RawInput) else ARRAY_BYTES * len(value))


def size_of(value: Value) -> int:
    """The bytes of a raw input or of some arrays."""
    if isinstance(value, RawInput):
        return len(value.data)
    return sum(int(array.nbytes) for array in value.values())


def message_bytes_of(message: NodeInputs) -> int:
    """About the memory of a message without its arrays, and of the timings that it may collect."""
    plan = message.plan
    texts = len(message.reply_to) + len(message.correlation)
    texts += sum(len(name) + len(text) for name, text in message.content_types.items())
    return NODE_BYTES * (len(plan.nodes) + len(message.second_door)) + NEED_BYTES * plan.needed + texts
