"""The messages between processes, one frozen class each.

Owns the fields. Doesn't know bytes (``codec``), topics (``topics``) or processes. A message without a required field
can't exist. A reader ignores unknown fields, so an older reader understands a newer sender.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    model_validator,
)
from pydantic_core import from_json

from broker.protocol.engines import DEFAULT_ENGINES, MAX_ENGINES, EngineName
from broker.protocol.errors import ErrorCode
from broker.protocol.specs import (
    MAX_EXPORTS,
    MAX_INPUTS,
    MAX_LEVEL_BYTES,
    MAX_NODES,
    MAX_TASKS,
    AnswerForm,
    Availability,
    Bytes,
    ClientName,
    DeviceId,
    Digest,
    Id,
    InputSpec,
    ModuleKey,
    ModuleName,
    ModuleSpec,
    NodeName,
    NotNegative,
    Rate,
    RequestId,
    Revision,
    TaskName,
    Wire,
    check_size,
    in_order,
)
from broker.protocol.values import Value

MAX_DEADLINE_S = 86_400.0  # one day
MAX_EPOCH_JUMP = 1_000_000  # a higher epoch above the highest known is not plausible: each term adds one
SUSPECTED_FOR_S = 15.0  # a timed-out call counts so long: a few timeouts of a coordinator, and its next heartbeats

MAX_REASON = 1_000  # characters: an engine's error may list each tensor of a model
MAX_COUNT = 2**60
FOR_PEOPLE = ("label", "text", "answer")  # the fields of an answer that a person wants, of which a task has one
MAX_FIRST_DEVICES = 2  # that found the first digest of a source
MAX_DIED_WITH = MAX_BATCH = 64  # payloads that one process can have computed when it ended
MAX_QUARANTINED = 1_000  # requests and payloads
MAX_REFUSED = 1_000  # payloads

MAX_KNOWN_PLANS = 128  # which this process has read and keeps
MAX_KNOWN_PLAN = 16 * 1024  # characters; those of the catalogue have less than 1,000

MAX_FENCE = 2**53 - 1  # the largest integer that is exact in every JSON reader

Fence = Annotated[int, Field(strict=True, ge=0, le=MAX_FENCE)]
"""A number that tells old from new, such as an epoch. Anything else is refused when it is read: a text, true, 1.0."""
Reason = Annotated[str, AfterValidator(lambda text: text[:MAX_REASON])]
"""A sentence for people about a failure; the rest of a longer one is left out when it is read or written."""
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
AskedTask = Annotated[str, AfterValidator(lambda name: name[:MAX_LEVEL_BYTES])]
"""A task as a request's topic names it: any text, which needn't be an id; the rest of a longer one is left out."""
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 0.05, 60.0
Interval = Annotated[float, Field(ge=SHORTEST_INTERVAL_S, le=LONGEST_INTERVAL_S, allow_inf_nan=False)]
"""The seconds between two heartbeats of a device. A birth with any other number is refused when it is read."""
Payload = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""A digest of a request's inputs: equal for equal inputs of any sensors (``codec.inputs_digest``)."""


class Message(Value, BaseModel):
    """Base of all messages: unknown fields are ignored, missing ones refused."""

    model_config = ConfigDict(extra="ignore")


def _check_graph(needs: Mapping[NodeName, Sequence[NodeName]], output: NodeName | None) -> None:
    check_size(needs)
    if output not in needs:
        raise ValueError(f"output names {output}, which is not a node")
    if len(in_order(needs)) < len(needs):
        raise ValueError("the nodes form a cycle")


# --- control: JSON ---


def _unless(default: object) -> Callable[[object], bool]:
    """Leave a field out of the bytes while it has its default."""
    return lambda value: value == default


class LeaderState(Message):
    """A leader's term (epoch), or its end."""

    epoch: Fence
    online: bool
    session: Fence  # new at each connection, so that a late will of an older connection has no effect


class OrchestratorState(LeaderState):
    """The leader's term (epoch), or its end. ``change`` counts the changes of deployed tasks and drains.

    ``heartbeat_interval_s`` counts for devices whose births have none.
    """

    change: Annotated[Fence, Field(exclude_if=_unless(0))] = 0
    heartbeat_interval_s: Annotated[Interval, Field(exclude_if=_unless(1.0))] = 1.0


class Drain(Message):
    """An operator takes a device out of service, or puts it back."""

    drain: bool


class DeviceProfile(Message):
    """The resources of a device, without its reserves, and what it can run: the fields are those of ``DeviceSpec``."""

    memory_bytes: Bytes
    compute_flops_per_s: Rate
    bandwidth_bits_per_s: Rate
    latency_s: NotNegative
    engines: Annotated[tuple[EngineName, ...], Field(max_length=MAX_ENGINES, exclude_if=_unless(DEFAULT_ENGINES))] = (
        DEFAULT_ENGINES
    )
    exports: Annotated[dict[ModuleKey, Bytes], Field(max_length=MAX_EXPORTS, exclude_if=_unless({}))] = {}


class About(Message):
    """The software and the machine of a device, for people."""

    version: str
    host: str
    machine: str  # its architecture
    cpu: str
    python: str
    engines: tuple[str, ...]
    accelerator: str | None = None
    changed: Annotated[tuple[str, ...], Field(exclude_if=_unless(()))] = ()  # of its settings, since its last start


class DeviceState(Message):
    """A device's birth, drain or death; also its will. Only the first two fields are in others than births.

    A device whose birth has ``about`` ignores fields that it doesn't know, also inside specs. ``died_with`` is in the
    births of a process's first session: the payload at which the process before it crashed, if any; it is missing where
    the device can't know. ``machine_up_s`` tells whether the machine was off since.
    """

    status: Literal["online", "draining", "offline"]
    session: Fence
    profile: DeviceProfile | None = None
    about: About | None = None
    tasks: Annotated[tuple[TaskName, ...], Field(max_length=MAX_TASKS)] | None = None  # that it may serve; null: all
    availability: Annotated[Availability, Field(exclude_if=_unless("always"))] = "always"
    heartbeat_interval_s: Interval | None = None  # null: as the orchestrator expects
    died_with: Annotated[tuple[Payload, ...], Field(max_length=MAX_DIED_WITH)] | None = None
    machine_up_s: NotNegative | None = None  # since its boot


class FirstLoad(Message):
    """The digest that a source's weights had when the site first loaded them, and the first two devices that found it.

    The source's task file states none, so this one counts for every device.
    """

    digest: Digest
    devices: Annotated[tuple[DeviceId, ...], Field(min_length=1, max_length=MAX_FIRST_DEVICES)]

    def refusal(self, source: object, found: str) -> str:
        """The sentence about weights of this source with another digest."""
        return (
            f"the weights of {source} have the digest {found} here, and {' and '.join(self.devices)} first loaded "
            f"{self.digest} from the same source: if those here are right, write digest: {found} into the task file; "
            "else bring the first ones here"
        )


class AssignedModule(Message):
    """A module that a device must hold, with the reason for the operator."""

    module: ModuleName
    spec: ModuleSpec
    role: Literal["active", "standby"] = "active"
    why: Reason = ""
    revision: Revision | None = None  # of the task's spec that describes the module; of the first task by name
    first_load: Annotated[FirstLoad | None, Field(exclude_if=_unless(None))] = None  # other weights are refused


class Assignment(Message):
    """All modules that a device must hold, under the fence (epoch, generation). It unloads the others."""

    epoch: Fence
    generation: Fence
    modules: tuple[AssignedModule, ...] = ()
    stays: str | None = None  # why a drained device must keep these modules


class HeldModule(Message):
    """The state of a module on a device."""

    module: ModuleName
    state: Literal["loading", "ready", "failed"]
    error: Reason | None = None
    memory_bytes: Count = 0  # measured once it is ready, before that the spec's
    load_s: NotNegative | None = None  # measured: read and calibrate the weights, without imports
    compute_s: NotNegative | None = None  # moving average of measured forward passes
    uses: Count = 0  # passes that use it now: its reference count
    queue: Count = 0  # waiting forward passes
    digest: Annotated[Digest | None, Field(exclude_if=_unless(None))] = None  # of weights whose task file states none


class OutputCacheUse(Message):
    """The outputs that a device keeps to compute equal work once, and how often it did."""

    limit_bytes: Count
    used_bytes: Count = 0
    outputs: Count = 0  # that are kept now
    hits: Count = 0  # nodes that took a kept output, since the agent started
    computed: Count = 0  # nodes that were computed, since then


class Alone(Message):
    """A request in quarantine that a device computes, or asks to compute, with nothing else beside it."""

    request: RequestId
    payload: Payload


class Quarantine(Message):
    """The requests that run alone, because a device died while they were under way, and the payloads that don't run."""

    epoch: Fence
    requests: Annotated[tuple[RequestId, ...], Field(max_length=MAX_QUARANTINED)] = ()
    payloads: Annotated[tuple[Payload, ...], Field(max_length=MAX_QUARANTINED)] = ()  # one device died of them
    refused: Annotated[
        dict[Payload, NotNegative], Field(max_length=MAX_REFUSED)
    ] = {}  # two did -> for how many seconds


class Permit(Message):
    """The leader knows which request in quarantine a device is about to compute, and lets it begin, or wait on."""

    epoch: Fence
    request: RequestId
    granted: bool = True  # false: another device computes the same payload now


class Heartbeat(Message):
    """A device's periodic report of its actual state."""

    session: Fence
    seq: Fence
    epoch: Fence  # of its assignment
    generation: Fence
    modules: dict[ModuleKey, HeldModule] = {}
    memory_used_bytes: Count = 0
    memory_bytes: Count = 0
    cached: dict[ModuleKey, NotNegative] = {}  # key of weights on its disk, not in memory -> measured seconds of a pass
    in_flight: Count = 0  # requests that it coordinates
    progress: Count = 0  # turns of the service's loop; doesn't change while it hangs
    dropped: dict[str, Count] = {}  # reason -> refused messages, since the start
    suspects: dict[DeviceId, NotNegative] = {}  # devices whose calls timed out -> seconds since then
    alone: Alone | None = None  # the request in quarantine that it computes, or asks to compute
    output_cache: OutputCacheUse | None = None  # None: it keeps no outputs


class RouteDevice(Message):
    """A device that can run a node, with the figures for routing."""

    device: DeviceId
    compute_s: NotNegative
    latency_s: NotNegative
    bandwidth_bits_per_s: Rate


class RouteNode(Message):
    """One node of a task's graph, and the devices that can run it now; none while its module loads."""

    module: ModuleName
    key: ModuleKey
    needs: tuple[NodeName, ...]
    use: Id | None = None
    output_bytes: Bytes
    devices: tuple[RouteDevice, ...] = ()


class Route(Message):
    """The devices for a task's requests. ``unavailable`` is the reason why the task can't be served now."""

    task: TaskName
    epoch: Fence
    generation: Fence
    group: Fence  # counts the changes of front doors and backup coordinators; part of the share group's name
    inputs: Annotated[dict[NodeName, InputSpec], Field(max_length=MAX_INPUTS)] = {}
    nodes: Annotated[dict[NodeName, RouteNode], Field(max_length=MAX_NODES)] = {}
    output: NodeName | None = None
    answer: AnswerForm | None = None
    wire: Wire = "float32"
    front_door: tuple[DeviceId, ...] = ()
    second_door: tuple[DeviceId, ...] = ()  # the backup coordinator; keeps a copy of each open request
    unavailable: str | None = None
    revision: Revision | None = None  # of the task's spec

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        if self.nodes:
            _check_graph({name: node.needs for name, node in self.nodes.items()}, self.output)
        return self

    @cached_property
    def order(self) -> tuple[NodeName, ...]:
        """The nodes, each after all that it needs."""
        return in_order({name: node.needs for name, node in self.nodes.items()})

    @cached_property
    def compute_s(self) -> Mapping[tuple[NodeName, DeviceId], float]:
        """The seconds of each node on each device that can run it."""
        return {(name, each.device): each.compute_s for name, node in self.nodes.items() for each in node.devices}

    def plan_on(self, devices: Mapping[NodeName, DeviceId]) -> Plan:
        """The plan with these devices, one for each node. The requests of a task share few plans."""
        chosen = tuple(map(devices.__getitem__, self.nodes))
        if (known := self._plans.get(chosen)) is not None:
            return known
        if len(self._plans) >= MAX_KNOWN_PLANS:
            self._plans.clear()
        nodes = {
            name: PlannedNode(key=node.key, needs=node.needs, use=node.use, device=devices[name])
            for name, node in self.nodes.items()
        }
        made = Plan.model_validate(
            {
                "nodes": nodes,
                "output": self.output,
                "answer": self.answer,
                "wire": self.wire,
                "revision": self.revision,
            }
        )
        self._plans[chosen] = made
        return made

    @cached_property
    def _plans(self) -> dict[tuple[DeviceId, ...], Plan]:
        return {}

    @cached_property
    def complete(self) -> bool:
        """Whether every node has a device."""
        return not self.unavailable and bool(self.front_door) and all(n.devices for n in self.nodes.values())


# --- data: the result is JSON, or safetensors when the output is a tensor ---


MAX_NOTES, MAX_NOTE_CHARACTERS = 8, 250
_Note = Annotated[str, StringConstraints(max_length=MAX_NOTE_CHARACTERS)]


class Timing(Message):
    """The cost of one node of one request, and its device."""

    node: NodeName
    device: DeviceId
    queue_s: NotNegative
    compute_s: NotNegative
    output_bytes: Count
    attempt: Fence
    cached: Annotated[bool, Field(exclude_if=_unless(default=False))] = False  # its output was kept, not computed
    notes: Annotated[tuple[_Note, ...], Field(max_length=MAX_NOTES, exclude_if=_unless(()))] = ()  # what it didn't read


class ErrorBody(Message):
    """The failure of a request: a code for programs, and a sentence that says what to do."""

    code: ErrorCode
    message: str
    retry_after_s: NotNegative | None = None


class Result(Message):
    """The end of a request: ``answer`` or ``error``, never both, and the timings of its nodes."""

    request: RequestId
    task: AskedTask
    epoch: Fence = 0
    generation: Fence = 0
    revision: Revision | None = None  # of the task's spec
    coordinator: DeviceId | None = None
    answer: dict[str, JsonValue] | None = None
    error: ErrorBody | None = None
    timings: tuple[Timing, ...] = ()

    @property
    def text(self) -> str:
        """The text that a person wants of the answer; empty if it has none, as a mask or a vector."""
        return next((text for name in FOR_PEOPLE if isinstance(text := (self.answer or {}).get(name), str)), "")


# --- data: safetensors documents; these are their metadata ---


def _from_text(value: object) -> object:
    """Decode a compound field: metadata are strings, so it travels as JSON text."""
    return from_json(value, allow_inf_nan=False) if isinstance(value, str) else value


_DIGITS = re.compile(r"[0-9]{1,16}")


def _number_of(value: object) -> object:
    """Read the digits of a fencing number: at most 16 of them, before anything is converted."""
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value


FenceText = Annotated[Fence, BeforeValidator(_number_of)]
"""A fencing number in metadata, where it travels as text."""


def _plan_of(value: object) -> object:
    """Read a plan: one that was read before is the same value, with all that was found out about it."""
    if not isinstance(value, str):
        return value
    return _known_plan(value) if len(value) <= MAX_KNOWN_PLAN else _read_plan(value)


def _read_plan(text: str) -> Plan:
    return Plan.model_validate(from_json(text, allow_inf_nan=False))


_known_plan = lru_cache(MAX_KNOWN_PLANS)(_read_plan)


class PlannedNode(Message):
    """One node of a request's plan: its module, its inputs, and its device."""

    key: ModuleKey
    needs: tuple[NodeName, ...]
    use: Id | None = None
    device: DeviceId


class Plan(Message):
    """The devices of one request, chosen by its coordinator. Messages carry it: a device needn't know the task."""

    nodes: Annotated[dict[NodeName, PlannedNode], Field(max_length=MAX_NODES)]
    output: NodeName
    answer: AnswerForm | None = None  # of an output that is an array
    wire: Wire = "float32"  # arrays between nodes are rounded to it
    revision: Revision | None = None  # of the task's spec

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        _ = self.is_sound
        return self

    @cached_property
    def is_sound(self) -> bool:
        """True; it is found out once, though each message that carries this plan has it validated again.

        Raises:
            ValueError: the nodes form a cycle, or its output isn't one of them.
        """
        _check_graph({name: node.needs for name, node in self.nodes.items()}, self.output)
        return True

    @cached_property
    def text(self) -> str:
        """Its JSON, as messages carry it. The requests of a task share few plans."""
        return self.model_dump_json(exclude_none=True)

    @cached_property
    def work(self) -> str:
        """A digest of the computation without its devices: equal for two attempts, different for other graphs."""
        graph = sorted((name, node.key, node.use or "", *node.needs) for name, node in self.nodes.items())
        form = [self.answer] if self.answer else []
        return hashlib.sha256(json.dumps([graph, self.output, self.wire, *form]).encode()).hexdigest()[:32]

    @cached_property
    def needed(self) -> int:
        """The needs of all nodes together."""
        return sum(len(node.needs) for node in self.nodes.values())

    def consumers(self, node: NodeName) -> list[NodeName]:
        """The nodes that take this node's output."""
        return [name for name, planned in self.nodes.items() if node in planned.needs]


class Envelope(Message):
    """The fields of every message between agents."""

    request: RequestId
    task: TaskName
    node: NodeName
    epoch: FenceText
    generation: FenceText
    attempt: FenceText
    revision: Revision | None = None  # of the task's spec


class NodeInputs(Envelope):
    """Inputs of a node, from the coordinator or from the nodes that it needs. The arrays are named ``need/array``."""

    kind: Literal["inputs"] = "inputs"
    coordinator: DeviceId
    deadline_s: Annotated[float, Field(ge=0, le=MAX_DEADLINE_S)]  # the time left when sent: clocks needn't agree
    reply_to: str
    client: Annotated[ClientName, Field(max_length=MAX_LEVEL_BYTES, exclude_if=_unless(""))] = ""  # of the request
    correlation: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$")] = ""  # Correlation Data, hexadecimal
    plan: Annotated[Plan, BeforeValidator(_plan_of), PlainSerializer(lambda plan: plan.text, when_used="json")]
    content_types: Annotated[dict[NodeName, str], BeforeValidator(_from_text)] = {}
    timings: Annotated[tuple[Timing, ...], BeforeValidator(_from_text)] = ()
    second_door: Annotated[tuple[DeviceId, ...], BeforeValidator(_from_text)] = ()  # also gets ``done`` of the output
    payload: Payload | None = None  # of the request
    quarantined: Annotated[bool, BeforeValidator(_from_text), Field(exclude_if=_unless(default=False))] = False


class NodeDone(Envelope):
    """A node finished. Goes to the coordinator; that of the output node also to the backup coordinator."""

    kind: Literal["done"] = "done"
    queue_s: NotNegative = 0.0  # expected time of the work that waits on the sender
    waited_s: Annotated[NotNegative, Field(exclude_if=_unless(0.0))] = 0.0  # of this node, from its last input
    compute_s: Annotated[NotNegative, Field(exclude_if=_unless(0.0))] = 0.0  # of its pass
    input_bytes: Annotated[Count, BeforeValidator(_from_text), Field(exclude_if=_unless(0))] = 0  # that it took
    cache_hit: Annotated[bool, Field(exclude_if=_unless(default=False))] = False  # its output was kept, not computed
    batch: Annotated[Count, Field(ge=1, exclude_if=_unless(1)), BeforeValidator(_from_text)] = 1  # nodes in its pass


class NodeFailed(Envelope):
    """A node can't run on a device. Goes to the coordinator. ``retry``: another device may be able to.

    ``quarantined``: it may hang, so it must be retried alone.
    """

    kind: Literal["failed"] = "failed"
    device: DeviceId  # not always the sender: it may be a device that receives no messages
    retry: bool
    quarantined: Annotated[bool, BeforeValidator(_from_text), Field(exclude_if=_unless(default=False))] = False
    error: Annotated[ErrorBody, BeforeValidator(_from_text)]


TensorMessage = Annotated[NodeInputs | NodeDone | NodeFailed, Field(discriminator="kind")]
