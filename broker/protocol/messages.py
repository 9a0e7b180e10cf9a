"""Every message that crosses the broker, one frozen class each.

Owns the fields. Knows nothing of bytes (``codec``), topics (``topics``) or processes. A message that lacks a needed
field can't exist; fields a reader doesn't know are ignored, so that a newer sender can talk to an older reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from broker.protocol.errors import ErrorCode
from broker.protocol.specs import (
    Bytes,
    DeviceId,
    Id,
    InputSpec,
    ModuleKey,
    ModuleName,
    ModuleSpec,
    NodeName,
    NotNegative,
    Rate,
    RequestId,
    TaskName,
    Wire,
    in_order,
)

MAX_DEADLINE_S = 86_400.0  # nobody waits longer than a day
SUSPECTED_FOR_S = 15.0  # how long a call that timed out counts: some patiences of a coordinator, and its next beats

Count = Annotated[int, Field(ge=0)]


class Message(BaseModel):
    """Base of everything on the wire: frozen; unknown fields are ignored, missing ones refused."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _check_graph(needs: Mapping[NodeName, Sequence[NodeName]], output: NodeName | None) -> None:
    if output not in needs:
        raise ValueError(f"output names {output}, which is not a node")
    if len(in_order(needs)) < len(needs):
        raise ValueError("nodes need each other in a circle")


# --- control: JSON ---


class OrchestratorState(Message):
    """Who leads, and since which term."""

    epoch: Count
    online: bool
    session: Count  # new at each connection: a late will of an older session changes nothing


class Drain(Message):
    """Whether an operator wants a device out of service."""

    drain: bool


class DeviceProfile(Message):
    """What a device has to offer; reserves are already taken off."""

    memory_bytes: Bytes
    compute_flops_per_s: Rate
    bandwidth_bits_per_s: Rate
    latency_s: NotNegative


class DeviceState(Message):
    """A device's birth, drain or death (also its will)."""

    status: Literal["online", "draining", "offline"]
    session: Count
    profile: DeviceProfile | None = None  # in births; a will can't know it


class AssignedModule(Message):
    """One module that a device must hold, with the reason for the operator."""

    module: ModuleName
    spec: ModuleSpec
    role: Literal["active", "standby"] = "active"
    why: str = ""


class Assignment(Message):
    """All that one device must hold, under the fence (epoch, generation). What is not named is unloaded."""

    epoch: Count
    generation: Count
    modules: tuple[AssignedModule, ...] = ()
    stays: str | None = None  # why a device that an operator drains must go on holding these modules


class HeldModule(Message):
    """What a device really holds of a module, or why not."""

    module: ModuleName
    state: Literal["loading", "ready", "failed"]
    error: str | None = None
    memory_bytes: Count = 0  # what it really occupies once it is ready, before that what its spec says
    load_s: NotNegative | None = None  # measured: weights read and calibrated, without imports
    compute_s: NotNegative | None = None  # moving average of measured forward passes
    uses: Count = 0  # nodes of live requests that wait for it: its reference count
    queue: Count = 0  # forward passes waiting


class Heartbeat(Message):
    """A device's periodic report: what is, not what should be."""

    session: Count
    seq: Count
    epoch: Count  # of the assignment it obeys
    generation: Count
    modules: dict[ModuleKey, HeldModule] = {}
    memory_used_bytes: Count = 0
    memory_bytes: Count = 0
    cached: dict[ModuleKey, NotNegative] = {}  # weights on its disk that it doesn't hold -> measured seconds of a pass
    in_flight: Count = 0  # requests it coordinates
    progress: Count = 0  # events handled; stands still when the service hangs
    dropped: dict[str, int] = {}  # reason -> messages refused, since start
    suspects: dict[DeviceId, NotNegative] = {}  # who let a call of this agent's requests time out -> seconds since


class RouteDevice(Message):
    """A device able to run a node, with what routing needs to choose."""

    device: DeviceId
    compute_s: NotNegative
    latency_s: NotNegative
    bandwidth_bits_per_s: Rate


class RouteNode(Message):
    """One node of a task's graph, and who can run it now; nobody while its module loads."""

    module: ModuleName
    key: ModuleKey
    needs: tuple[NodeName, ...]
    use: Id | None = None
    output_bytes: Bytes
    devices: tuple[RouteDevice, ...] = ()


class Route(Message):
    """The way a task's requests may go. ``unavailable`` says why there is none until capacity returns."""

    task: TaskName
    epoch: Count
    generation: Count
    group: Count  # counts changes of the front-door set; names the share group
    inputs: dict[NodeName, InputSpec] = {}
    nodes: dict[NodeName, RouteNode] = {}
    output: NodeName | None = None
    wire: Wire = "float32"
    front_door: tuple[DeviceId, ...] = ()
    second_door: tuple[DeviceId, ...] = ()  # holds a copy of each request until it is answered; of no front door
    unavailable: str | None = None

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        if self.nodes:
            _check_graph({name: node.needs for name, node in self.nodes.items()}, self.output)
        return self

    @cached_property
    def order(self) -> tuple[NodeName, ...]:
        """The nodes, each after all that it needs."""
        return in_order({name: node.needs for name, node in self.nodes.items()})

    @property
    def complete(self) -> bool:
        """Whether every node has a device now."""
        return not self.unavailable and bool(self.front_door) and all(n.devices for n in self.nodes.values())


# --- data: the result is JSON, or safetensors when the output is a tensor ---


class Timing(Message):
    """What one node of one request cost, and where."""

    node: NodeName
    device: DeviceId
    queue_s: NotNegative
    compute_s: NotNegative
    output_bytes: Count
    attempt: Count


class ErrorBody(Message):
    """How a request failed: a code for programs, a sentence that says what to do."""

    code: ErrorCode
    message: str
    retry_after_s: NotNegative | None = None


class Result(Message):
    """How a request ended: ``answer`` or ``error``, never both, with the path it took."""

    request: RequestId
    task: TaskName
    epoch: Count = 0
    generation: Count = 0
    coordinator: DeviceId | None = None
    answer: dict[str, JsonValue] | None = None
    error: ErrorBody | None = None
    timings: tuple[Timing, ...] = ()


# --- data: safetensors documents; these are their metadata ---


def _from_text(value: object) -> object:
    """Metadata are strings: a compound field travels as JSON text."""
    return json.loads(value) if isinstance(value, str) else value


class PlannedNode(Message):
    """One node of a request's plan: the module, what it takes, and the device chosen for it."""

    key: ModuleKey
    needs: tuple[NodeName, ...]
    use: Id | None = None
    device: DeviceId


class Plan(Message):
    """The way of one request, decided by its coordinator; it travels along, so no device need know the task."""

    nodes: dict[NodeName, PlannedNode]
    output: NodeName
    wire: Wire = "float32"  # what nodes give to others is rounded to it

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        _check_graph({name: node.needs for name, node in self.nodes.items()}, self.output)
        return self

    @cached_property
    def work(self) -> str:
        """A digest of what is computed, wherever: two attempts have the same, another graph or module has another."""
        graph = sorted((name, node.key, node.use or "", *node.needs) for name, node in self.nodes.items())
        return hashlib.sha256(json.dumps([graph, self.output, self.wire]).encode()).hexdigest()[:32]

    def consumers(self, node: NodeName) -> list[NodeName]:
        """The nodes that take this node's output."""
        return [name for name, planned in self.nodes.items() if node in planned.needs]


class Envelope(Message):
    """What every message between agents says about itself."""

    request: RequestId
    task: TaskName
    node: NodeName
    epoch: Count
    generation: Count
    attempt: Count


class NodeInputs(Envelope):
    """Inputs of a node, from the coordinator or from the nodes it needs. The arrays are named ``need/array``."""

    kind: Literal["inputs"] = "inputs"
    coordinator: DeviceId
    deadline_s: Annotated[float, Field(ge=0, le=MAX_DEADLINE_S)]  # time left when sent: clocks need not agree
    reply_to: str
    correlation: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$")] = ""  # Correlation Data, hexadecimal
    plan: Annotated[Plan, BeforeValidator(_from_text)]
    content_types: Annotated[dict[NodeName, str], BeforeValidator(_from_text)] = {}
    timings: Annotated[tuple[Timing, ...], BeforeValidator(_from_text)] = ()
    second_door: Annotated[tuple[DeviceId, ...], BeforeValidator(_from_text)] = ()  # hear ``done`` of the output, too


class NodeDone(Envelope):
    """A node finished; to the coordinator. With the output node the answer is out: to the second door, too."""

    kind: Literal["done"] = "done"
    queue_s: NotNegative = 0.0  # expected work still waiting on the sender


class NodeFailed(Envelope):
    """A node can't run on a device; to the coordinator. ``retry`` says whether another device may help."""

    kind: Literal["failed"] = "failed"
    device: DeviceId  # which one; not always the sender: it may be the one that nobody answers for
    retry: bool
    error: Annotated[ErrorBody, BeforeValidator(_from_text)]


TensorMessage = Annotated[NodeInputs | NodeDone | NodeFailed, Field(discriminator="kind")]
