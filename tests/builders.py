"""Builders of the values that many tests need, each with defaults for the fields that a test doesn't care about.

Owns these defaults. Doesn't know any test: a file that needs other defaults names them once, with ``partial``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.protocol.specs import DeviceSpec, InputSpec, ModuleSpec, NodeSpec, Source, TaskSpec


def module(
    part: str, memory_bytes: int = 1, flops: float = 1e9, output_bytes: int = 100, *, family: str = "any.kind"
) -> ModuleSpec:
    """A module of float32 weights that its part identifies."""
    source = Source(pip="weights", part=part)
    return ModuleSpec(family=family, source=source, memory_bytes=memory_bytes, flops=flops, output_bytes=output_bytes)


def part_of(spec: ModuleSpec) -> str:
    """The part that identifies a module of ``module``."""
    assert spec.source
    return spec.source.part


def device(
    name: str,
    memory_bytes: int = 100,
    *,
    speed: float = 10e9,
    bandwidth_bits_per_s: float = 1e8,
    latency_s: float = 0.001,
    compute_s: Mapping[str, float] | None = None,
) -> DeviceSpec:
    """A device for the planner; ``speed`` is in flops per second."""
    return DeviceSpec(
        id=name,
        memory_bytes=memory_bytes,
        compute_flops_per_s=speed,
        bandwidth_bits_per_s=bandwidth_bits_per_s,
        latency_s=latency_s,
        compute_s=dict(compute_s or {}),
    )


def graph(
    name: str,
    nodes: Mapping[str, tuple[ModuleSpec, tuple[str, ...]]],
    *,
    image_bytes: int = 100_000,
    text_bytes: int = 1_000,
    **fields: Any,
) -> TaskSpec:
    """A task of these nodes: each has a module, named by its part, and needs. The output is the last node's."""
    sizes = {"image": image_bytes, "text": text_bytes}
    needed = {need for _, needs in nodes.values() for need in needs}
    values = {
        "task": name,
        "inputs": {kind: InputSpec(kind=kind, bytes=size) for kind, size in sizes.items() if kind in needed},
        "nodes": {node: NodeSpec(module=part_of(spec), needs=needs) for node, (spec, needs) in nodes.items()},
        "output": list(nodes)[-1],
        "modules": {part_of(spec): spec for spec, _ in nodes.values()},
    }
    return TaskSpec.model_validate(values | fields)


def chain(name: str, *modules: ModuleSpec, **fields: Any) -> TaskSpec:
    """A task in which each module takes the output of the one before it, and the first takes an image."""
    nodes = [f"n-{part_of(spec)}" for spec in modules]
    needs = ["image", *nodes]
    return graph(name, {node: (modules[i], (needs[i],)) for i, node in enumerate(nodes)}, **fields)


def joined(name: str, encoders: Sequence[ModuleSpec], head: ModuleSpec, **fields: Any) -> TaskSpec:
    """A task in which encoders take an image side by side, and the head takes all their outputs."""
    nodes = {f"n-{part_of(spec)}": (spec, ("image",)) for spec in encoders}
    return graph(name, nodes | {"last": (head, tuple(nodes) or ("image",))}, **fields)
