"""What an agent knows, what can happen to it, and what it may want done: plain values.

Owns the vocabulary of the agent's rules (``decide``, ``coordinate``, ``execute``). The state belongs to the one
service thread and is changed in place by the rules; events come in, actions go out, and nothing here touches a clock,
a socket or a model.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from broker.protocol.codec import RawInput
from broker.protocol.messages import SUSPECTED_FOR_S, AssignedModule, NodeInputs, Plan, Route, Timing
from broker.protocol.specs import DeviceId, ModuleKey, NodeName, RequestId, TaskName
from broker.transport.port import RECONNECT_S
from edge_agent.events import NodeRun, Requested
from edge_agent.modules import Output, Value
from edge_agent.requests.fair_queue import Turns

DEFAULT_DEADLINE_S = 30.0  # for a sensor that sets no Message Expiry
CONFIRM_S = RECONNECT_S + 2.0  # for routes to be said again: what is heard of a leader may be the broker's memory
LEAVE_S = 1.0  # until who is a front door no more leaves its share group
MAX_COORDINATED = 256  # requests in flight here; a task may hold as many of them as are left free
MAX_COORDINATED_BYTES = 256 * 1024 * 1024  # their inputs, kept until the answer is out; the same
MAX_HELD = 1024  # requests that this second door holds until they are answered
MAX_HELD_BYTES = 64 * 1024 * 1024  # their payloads
HANDED_PASSES = 2  # one computes, and the next is at hand when it ends
MAX_JOINS = 4096  # nodes whose inputs gather here
MAX_JOIN_BYTES = 128 * 1024 * 1024  # the inputs that wait for their siblings
MAX_OUTPUT_BYTES = 64 * 1024 * 1024  # finished outputs kept, to answer a retry without computing again
MAX_OUTPUTS = 4096
SWEEP_S = 1.0  # between two looks for kept outputs whose time is over

Fence = tuple[int, int]
"""(epoch, generation): what is lower than the highest seen is stale."""


@dataclass
class Coordinated:
    """One request that this device owns until its answer is out."""

    request: RequestId
    task: TaskName
    inputs: dict[NodeName, RawInput]
    reply_to: str
    correlation: bytes
    deadline_s: float
    began_s: float = 0.0
    expected_s: float = 0.0  # how long it was to take, when it was taken; 0 when nobody could tell
    attempt: int = -1
    in_vain: int = 0  # attempts that our own link's end took along: patience doesn't double for them
    fence: Fence = (0, 0)
    first_fence: Fence | None = None  # of the first plan: what is older was never asked for
    plan: Plan | None = None  # None while the route is incomplete
    output: NodeName | None = None  # of the last plan: its answer may come when there is none any more
    second_door: tuple[DeviceId, ...] = ()  # who holds a copy until it hears that this is over
    asked: set[tuple[NodeName, DeviceId]] = field(default_factory=set)  # who was to run what, in any attempt
    sent: dict[NodeName, tuple[DeviceId, float]] = field(default_factory=dict)  # who is asked by the plan, since when
    finished: dict[NodeName, tuple[DeviceId, float]] = field(default_factory=dict)  # who keeps it, when that was told
    avoid: frozenset[DeviceId] = frozenset()
    retry_s: float = 0.0  # when to send the missing nodes again

    @property
    def size_bytes(self) -> int:
        """The bytes of its inputs."""
        return sum(len(raw.data) for raw in self.inputs.values())


@dataclass(frozen=True)
class Held:
    """A request that this second door takes over unless somebody answers it."""

    event: Requested
    front_door: tuple[DeviceId, ...]  # one of them got it, too
    due_s: float  # when to take it over
    deadline_s: float


@dataclass
class Joining:
    """A node of a request whose inputs gather here; its latest message says where the output goes."""

    message: NodeInputs
    deadline_s: float
    values: dict[NodeName, Value] = field(default_factory=dict)
    timings: dict[NodeName, Timing] = field(default_factory=dict)
    size_bytes: int = 0
    complete_s: float = 0.0  # when all of them were there
    waiting: bool = False  # for its turn
    running: bool = False  # handed to the compute thread


@dataclass(frozen=True)
class Finished:
    """An output kept for retries."""

    output: Output
    timings: tuple[Timing, ...]
    size_bytes: int
    deadline_s: float  # of its request: later nobody asks for it


@dataclass
class AgentState:
    """All that the rules know."""

    device: DeviceId
    prefix: str
    fence: Fence = (0, 0)
    epoch: int = 0  # the highest seen
    assigned: dict[ModuleKey, AssignedModule] = field(default_factory=dict)
    loading: dict[ModuleKey, Fence] = field(default_factory=dict)  # since which assignment
    ready: set[ModuleKey] = field(default_factory=set)
    failed: set[ModuleKey] = field(default_factory=set)  # assigned, and not to be had here
    routes: dict[TaskName, Route] = field(default_factory=dict)
    groups: dict[TaskName, str] = field(default_factory=dict)  # the share groups of its front doors
    second_groups: dict[TaskName, str] = field(default_factory=dict)  # of its second doors
    leaving: dict[str, float] = field(default_factory=dict)  # share groups -> until when others may need to join
    held: dict[RequestId, Held] = field(default_factory=dict)  # in the order of arrival
    held_bytes: int = 0
    unconfirmed: set[TaskName] = field(default_factory=set)  # routes not heard on this link yet
    confirm_by_s: float | None = None
    coordinated: dict[RequestId, Coordinated] = field(default_factory=dict)
    coordinated_bytes: int = 0
    joining: dict[NodeRun, Joining] = field(default_factory=dict)
    join_bytes: int = 0
    finished: OrderedDict[NodeRun, Finished] = field(default_factory=OrderedDict)
    finished_bytes: int = 0
    sweep_s: float = -math.inf  # when to look for those whose time is over
    turns: Turns[NodeRun] = field(default_factory=Turns)  # complete, and waiting for the compute thread
    passes: dict[NodeRun, tuple[TaskName, ModuleKey]] = field(default_factory=dict)  # handed to it, in their order
    pass_began_s: float = 0.0  # the first of them
    queued: Counter[ModuleKey] = field(default_factory=Counter)  # of those that wait for their turn
    measured_s: dict[ModuleKey, float] = field(default_factory=dict)  # of a pass here, on average
    reported: dict[tuple[DeviceId, TaskName], tuple[float, float]] = field(default_factory=dict)  # when, the queue told
    stretch: dict[TaskName, float] = field(default_factory=dict)  # how many times longer requests take than expected
    heard: dict[DeviceId, float] = field(default_factory=dict)  # who is asked now -> its last sign of life
    blame_from_s: float = -math.inf  # what was sent before may not have gone, or found nobody there
    suspects: dict[DeviceId, float] = field(default_factory=dict)  # who owes one since -> when that was noticed last
    dropped: Counter[str] = field(default_factory=Counter)

    def next_deadline_s(self) -> float | None:
        """When a ``Tick`` is due, or None when nothing waits for time."""
        times = [t for c in self.coordinated.values() for t in (c.deadline_s, c.retry_s)]
        times += [joining.deadline_s for joining in self.joining.values() if not joining.running]
        times += [held.due_s for held in self.held.values()]
        times += self.leaving.values()
        times += [] if self.confirm_by_s is None else [self.confirm_by_s]
        times += [self.sweep_s] if self.finished else []
        times += [at_s + SUSPECTED_FOR_S for at_s in self.suspects.values()]
        return min(times, default=None)


def size_of(value: Value) -> int:
    """The bytes of a raw input, or of some arrays."""
    if isinstance(value, RawInput):
        return len(value.data)
    return sum(int(array.nbytes) for array in value.values())
