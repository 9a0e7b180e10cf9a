"""Hypothesis strategies for the values that persons write: modules, tasks and fleets, over every field that a spec has.

Owns what is drawn: small numbers of everything, so that ties, sharing and lack of memory are likely. Doesn't know any
test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from broker.protocol.engines import DEFAULT_ENGINES, Engine, engine_of
from broker.protocol.preparation import PicturePreparation, Preparation, TextPreparation
from broker.protocol.specs import DeviceSpec, InputSpec, ModuleSpec, NodeSpec, Source, TaskSpec, Variant

# The planner takes long, and the ordinary run plays the same examples each time: more of them prove little.
CALMLY = settings(
    deadline=None, max_examples=settings().max_examples // 2, suppress_health_check=[HealthCheck.too_slow]
)
PARTS = [f"part-{number}" for number in range(5)]
DEVICES = "abcde"
TASKS = [f"task-{number}" for number in range(4)]
DIGESTS = ["sha256:" + character * 64 for character in "01"]
PREPARATIONS = [
    None,
    Preparation(picture=PicturePreparation(size=(8, 8))),
    Preparation(text=TextPreparation(longest=8)),
]
LABELS = [None, ("a cat", "a dog"), "labels.txt"]
RUN_ALL: list[tuple[Engine, ...]] = [
    DEFAULT_ENGINES,
    ("onnx", "torch", "ctranslate2"),
    ("torch", "onnx", "ctranslate2"),
]
RUN_SOME: list[tuple[Engine, ...]] = [("onnx", "ctranslate2"), ("onnx",), ("torch",), ()]
Instance = tuple[list[DeviceSpec], list[TaskSpec]]


@st.composite
def _sources(draw: st.DrawFn, part: str) -> Source | None:
    """A place of weights, or none: two parts without one are the same weightless module."""
    place = draw(
        st.sampled_from([{"pip": "weights"}, {"hub": "some/model"}, {"catalog": "some/file.safetensors"}, None])
    )
    revision = draw(st.sampled_from([None, "main"]))
    return Source(part=part, revision=revision, **place) if place else None


@st.composite
def _variants(draw: st.DrawFn, part: str, family: str) -> tuple[Variant, ...]:
    """No variant, or one for an engine that doesn't run the module's own weights."""
    if engine_of(family) == "onnx" or draw(st.booleans()):
        return ()
    source = Source(hub="some/export", part=part)
    digest = draw(st.sampled_from([None, DIGESTS[0]]))
    return (Variant(engine="onnx", source=source, digest=digest, memory_bytes=draw(st.integers(1, 100))),)


@st.composite
def modules(draw: st.DrawFn, *, constrained: bool = False) -> dict[str, ModuleSpec]:
    """A module for each of the parts; some are the same module by their digest.

    ``constrained``: some have weights that torch doesn't run.
    """
    kinds = ["any.kind", "any.kind", "other.kind", *(["onnx.kind", "whisper_ctranslate2.kind"] if constrained else [])]
    families = {part: draw(st.sampled_from(kinds)) for part in PARTS}
    return {
        part: ModuleSpec(
            family=family,
            source=draw(_sources(part)),
            dtype=draw(st.sampled_from(["float32", "float16", "bfloat16", "int8"])),
            memory_bytes=draw(st.integers(1, 100)),
            flops=draw(st.sampled_from([1e6, 1e9, 5e9, 2e10])),
            output_bytes=draw(st.sampled_from([1, 1_000, 1_001, 1_000_000])),
            digest=draw(st.sampled_from([None, None, None, *DIGESTS])),
            variants=draw(_variants(part, family)),
            prepare=draw(st.sampled_from(PREPARATIONS)) if engine_of(family) == "onnx" else None,
            labels=draw(st.sampled_from(LABELS)) if engine_of(family) == "onnx" else None,
        )
        for part, family in families.items()
    }


@st.composite
def tasks(
    draw: st.DrawFn, name: str, known: dict[str, ModuleSpec], *, chain: bool = False, constrained: bool = False
) -> TaskSpec:
    """A graph of up to four nodes over these modules, which it may call by names of its own.

    Args:
        draw: Hypothesis's.
        name: the task's.
        known: the modules, by part.
        chain: each node needs the one before it, and nothing else.
        constrained: the task may name the devices where its modules may stand.
    """
    nodes: dict[str, NodeSpec] = {}
    alias = draw(st.sampled_from(["", "my-"]))
    for position, part in enumerate(draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4))):
        some = st.lists(st.sampled_from(["image", "text", *nodes]), min_size=1, max_size=3, unique=True)
        needs = [f"n{position - 1}" if position else "image"] if chain else draw(some)
        use = draw(st.sampled_from([None, "pooled"]))
        nodes[f"n{position}"] = NodeSpec(module=f"{alias}{part}", needs=tuple(needs), use=use)
    fields: dict[str, Any] = {
        "weight": draw(st.sampled_from([0.5, 1.0, 3.0])),
        "wire": draw(st.sampled_from(["float32", "float16"])),
        "redundancy": draw(st.sampled_from([1, 2])),
        "source": draw(st.sampled_from([None, "a", "b", "nobody"])),
        "description": "drawn",
        "devices": draw(_some_of(DEVICES, least=1)) if constrained else None,
    }
    omitted = draw(st.sets(st.sampled_from(sorted(fields)), max_size=2))  # these have their defaults
    return TaskSpec(
        task=name,
        inputs={
            "image": InputSpec(kind="image", bytes=draw(st.sampled_from([1, 150_000]))),
            "text": InputSpec(kind=draw(st.sampled_from(["text", "audio"])), bytes=200),
        },
        nodes=nodes,
        output=list(nodes)[-1] if chain else draw(st.sampled_from(sorted(nodes))),
        modules={node.module: known[node.module.removeprefix("my-")] for node in nodes.values()},
        **{field: value for field, value in fields.items() if field not in omitted},
    )


def _some_of(names: Sequence[str], *, least: int) -> st.SearchStrategy[tuple[str, ...] | None]:
    """None, or some of these names."""
    some = st.lists(st.sampled_from(names), min_size=least, max_size=3, unique=True)
    return st.none() | st.none() | some.map(tuple)


@st.composite
def fleets(
    draw: st.DrawFn, known: dict[str, ModuleSpec], *, most: int = 5, constrained: bool = False, mixed: bool = False
) -> list[DeviceSpec]:
    """Up to ``most`` devices; some have measured some modules, by name or by key.

    ``constrained``: a device may name the tasks that it may serve, and its engines may run only some modules.
    ``mixed``: it may be on only sometimes.
    """
    keys = [module.key for module in known.values()]
    labels = [*PARTS, *(f"my-{part}" for part in PARTS), *keys]
    return [
        DeviceSpec(
            id=name,
            memory_bytes=draw(st.integers(20, 400)),
            compute_flops_per_s=draw(st.sampled_from([1e9, 1e10, 3e10])),
            bandwidth_bits_per_s=draw(st.sampled_from([1e6, 1e8])),
            latency_s=draw(st.sampled_from([0.0, 0.001, 0.05])),
            compute_s=draw(st.dictionaries(st.sampled_from(labels), st.sampled_from([0.01, 0.5]), max_size=3)),
            tasks=draw(_some_of(TASKS, least=0)) if constrained else None,
            availability=draw(st.sampled_from(["always", "sometimes"])) if mixed else "always",
            engines=draw(st.sampled_from([*RUN_ALL, *RUN_SOME] if constrained else RUN_ALL)),
            exports=draw(st.dictionaries(st.sampled_from(keys), st.integers(1, 100), max_size=3)),
        )
        for name in draw(st.lists(st.sampled_from(DEVICES[:most]), min_size=1, max_size=most, unique=True))
    ]


@st.composite
def instances(
    draw: st.DrawFn,
    *,
    most_devices: int = 5,
    most_tasks: int = 4,
    chains: bool = False,
    constrained: bool = False,
    mixed: bool = False,
) -> Instance:
    """A fleet, and tasks over the same modules. The other arguments are those of ``tasks`` and ``fleets``."""
    known = draw(modules(constrained=constrained))
    count = draw(st.integers(1, most_tasks))
    drawn = [draw(tasks(TASKS[number], known, chain=chains, constrained=constrained)) for number in range(count)]
    return draw(fleets(known, most=most_devices, constrained=constrained, mixed=mixed)), drawn
