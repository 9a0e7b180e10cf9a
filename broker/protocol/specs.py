"""What a person writes, as frozen values: ids, sizes, modules, tasks, devices.

Owns the shape of the files in DESIGN section 5 and the meaning of a module's identity. Knows nothing of files,
brokers or processes. An illegal spec can't exist: every rule is checked at construction, and the error names the
field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
INVALID_ID = "is not a valid id: use a-z, 0-9 and -, at most 63 characters"
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
SITE_PATTERN = r"^[a-z0-9-]+(/[a-z0-9-]+)*$"
SitePrefix = Annotated[str, StringConstraints(pattern=SITE_PATTERN)]
"""A site's own topic prefix, in front of all topics."""
DeviceId = Id
TaskName = Id
NodeName = Id
ClientId = Id
RequestId = Id
ModuleName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.@-]*(/[a-z0-9][a-z0-9.@-]*)*$", max_length=128)
]
Wire = Literal["float32", "float16"]
"""In which dtype numbers cross from one node to another."""
ModuleKey = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""A module's identity (``ModuleSpec.key``): equal keys are one module, held once."""

_SIZE = re.compile(r"^\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmgt]i?b|b)?\s*$", re.IGNORECASE)
_UNIT = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNIT |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(value: object) -> object:
    """Turn ``300MiB``, ``"1.0e9"`` or ``1.0e9`` into a whole number of bytes; leave other numbers alone.

    Raises:
        ValueError: a text or a truth value that is no size.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (match := _SIZE.match(value)):
        with suppress(ValueError, OverflowError):
            return round(float(match[1]) * _UNIT[(match[2] or "b").lower()])
    if isinstance(value, (str, bool)):
        raise ValueError("is not a valid size: write a number of bytes, or 300MiB, or 1.5GB")  # noqa: TRY004 - pydantic's rule
    return value


# The limits are beyond anything physical; within them every quotient is finite.
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, le=2**60)]
Positive = Annotated[float, Field(gt=0, le=1e21, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e21, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1, le=1e21, allow_inf_nan=False)]  # of operations or bits per second
_Place = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_Part = Annotated[str, StringConstraints(min_length=1, max_length=64)]


def in_order(needs: Mapping[NodeName, Sequence[NodeName]]) -> tuple[NodeName, ...]:
    """Nodes, each after all the nodes that it needs; ties in the order given.

    What is no node is an input, there from the start. Nodes that need each other in a circle, or come after such, are
    left out.
    """
    done: list[NodeName] = []
    waiting = {name: {need for need in taken if need in needs} for name, taken in needs.items()}
    while following := [name for name, missing in waiting.items() if not missing.difference(done)]:
        done.extend(following)
        for name in following:
            del waiting[name]
    return tuple(done)


class Spec(BaseModel):
    """Base of everything a person writes: frozen, and a field that nobody knows is an error, not a typo."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Spec):
    """Where a module's weights come from: exactly one of a hub repository, a pip package, a catalogue file."""

    hub: _Place | None = None
    pip: _Place | None = None
    catalog: (
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+(/[a-z0-9-]+)*\.safetensors$", max_length=128)] | None
    ) = None
    part: _Part
    revision: _Part | None = None

    @model_validator(mode="after")
    def _exactly_one_place(self) -> Self:
        if sum(place is not None for place in (self.hub, self.pip, self.catalog)) != 1:
            msg = "name exactly one of hub, pip, catalog"
            raise ValueError(msg)
        return self

    def __str__(self) -> str:
        kind = next(kind for kind in ("hub", "pip", "catalog") if getattr(self, kind))
        revision = f"@{self.revision}" if self.revision else ""
        return f"{kind}:{getattr(self, kind)}{revision}#{self.part}"


class ModuleSpec(Spec):
    """A functional part of a model.

    ``memory_bytes`` is what it occupies, ``flops`` what one typical forward pass costs, ``output_bytes`` what it
    sends on, in float32. ``source`` is null for a family without weights. ``dtype`` is that of the weights: int8 is for
    the matrices of linear layers, and the rest stays float32.
    """

    family: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+\.[a-z0-9_]+$")]
    source: Source | None = None
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    memory_bytes: Bytes
    flops: Positive
    output_bytes: Bytes
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None

    @cached_property
    def key(self) -> str:
        """The identity: the digest when known, else (source, part, dtype). Equal keys share one module."""
        if self.digest:
            return self.digest
        return f"{self.source}:{self.dtype}" if self.source else f"weightless:{self.family}:{self.dtype}"


class InputSpec(Spec):
    """One input of a task: what it is, and its typical size for planning."""

    kind: Literal["image", "text", "audio"]
    bytes: Bytes


class NodeSpec(Spec):
    """One use of a module: which module, and the nodes or inputs whose values it takes, in that order.

    ``use`` names one of the ways in which the module's family can be used, when it has several: how the raw input is
    prepared, and which outputs cross the wire. Null is the family's ordinary way.
    """

    module: ModuleName
    needs: Annotated[tuple[NodeName, ...], Field(min_length=1)]
    use: Id | None = None


class TaskSpec(Spec):
    """A graph of nodes under a name that sensors address.

    With ``wire: float16``, what a node gives to another is rounded to float16, whether it crosses a border between
    devices or not: the answer depends on the task, never on the placement. What a sensor gets isn't rounded.
    """

    task: TaskName
    description: str = ""
    source: DeviceId | None = None  # where requests start, for planning
    inputs: Annotated[dict[NodeName, InputSpec], Field(min_length=1)]
    nodes: Annotated[dict[NodeName, NodeSpec], Field(min_length=1)]
    output: NodeName
    weight: Positive = 1.0  # requests per second, for planning
    wire: Wire = "float32"
    redundancy: Literal[1, 2] = 1  # 2: a second device holds each request until it is answered
    modules: dict[ModuleName, ModuleSpec]

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        if twice := sorted(self.inputs.keys() & self.nodes.keys()):
            raise _unsound(("nodes", twice[0]), "is the name of an input too; rename one")
        known = self.inputs.keys() | self.nodes.keys()
        for name, node in self.nodes.items():
            if missing := [need for need in node.needs if need not in known]:
                raise _unsound(("nodes", name, "needs"), f"names {missing[0]}, which is neither an input nor a node")
            if node.module not in self.modules:
                raise _unsound(("nodes", name, "module"), f"names {node.module}, which modules does not describe")
        if self.output not in self.nodes:
            raise _unsound(("output",), f"names {self.output}, which is not a node")
        if len(self.order) < len(self.nodes):
            around = sorted(self.nodes.keys() - set(self.order))
            raise _unsound(("nodes", around[0]), f"nodes need each other in a circle: {', '.join(around)}")
        return self

    @cached_property
    def order(self) -> tuple[NodeName, ...]:
        """The nodes, each after all that it needs; ties in the order written."""
        return in_order({name: node.needs for name, node in self.nodes.items()})

    def module_of(self, node: NodeName) -> ModuleSpec:
        """The module that a node uses."""
        return self.modules[self.nodes[node].module]

    def sent_bytes(self, node: NodeName) -> int:
        """Bytes that a node typically sends to another; its ``output_bytes`` are taken for float32."""
        size_bytes = self.module_of(node).output_bytes
        return -(-size_bytes // 2) if self.wire == "float16" else size_bytes


class DeviceSpec(Spec):
    """A device as planning sees it: what it can hold, how fast it computes, how it is linked."""

    id: DeviceId
    memory_bytes: Bytes
    compute_flops_per_s: Rate
    bandwidth_bits_per_s: Rate
    latency_s: NotNegative
    compute_s: dict[str, Positive] = {}  # module name or key -> measured seconds; these win over the estimate


class FleetSpec(Spec):
    """The devices of a plan made without them, and the one where requests start unless a task says otherwise."""

    source: DeviceId
    devices: tuple[DeviceSpec, ...]

    @model_validator(mode="after")
    def _devices_are_told_apart(self) -> Self:
        if not self.devices:
            raise _unsound(("devices",), "is empty: a plan needs at least one device")
        seen: set[DeviceId] = set()
        for position, device in enumerate(self.devices):
            if device.id in seen:
                raise _unsound(("devices", position, "id"), f"names {device.id} a second time")
            seen.add(device.id)
        if self.source not in seen:
            known = ", ".join(sorted(seen))
            raise _unsound(("source",), f"names {self.source}, which is not among the devices: {known}")
        return self


def _unsound(place: tuple[int | str, ...], sentence: str) -> PydanticCustomError:
    """A problem between fields, with the place where a person mends it."""
    return PydanticCustomError("unsound_graph", "{sentence}", {"sentence": sentence, "place": place})


def place_of(problem: Any) -> tuple[int | str, ...]:  # noqa: ANN401 - pydantic's error dictionaries are untyped
    """The steps from the root to the field of one pydantic problem."""
    return (*problem["loc"], *problem.get("ctx", {}).get("place", ()))


def describe(problem: Any) -> tuple[str, str]:  # noqa: ANN401 - pydantic's error dictionaries are untyped
    """The field and the sentence of one pydantic problem, for a person."""
    field = ".".join(str(part) for part in place_of(problem))
    sentence = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == ID_PATTERN:
        sentence = INVALID_ID
    return field, sentence
