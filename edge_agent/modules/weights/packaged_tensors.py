"""Tensors of pip packages and of the catalogue: read, checked, and copied into this process's own memory.

Owns every check of the tensors. Knows no network: a family names the tensors of its part, and their shapes.

Invariants: the file has exactly the named tensors; they are stored as float32; together they are no larger than
``memory_bytes`` of the spec; their bytes have the digest of the spec, or of the first load (``digests``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import safe_open
from torch import Tensor

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec
from edge_agent.modules.weights import check_size, digests, part_source, pickled, precision, several
from edge_agent.modules.weights.identity import digest as digest_of
from edge_agent.modules.weights.packaged import path_of

Shape = tuple[int, ...]


def read(
    spec: ModuleSpec, part: str, shapes: Mapping[str, Shape], *, others: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Read the tensors of one part, which are those of ``shapes``; the spec's source must name this ``part``.

    ``others`` are prefixes and suffixes of the names that belong to the model's other parts or to training.

    Returns:
        Tensors of the spec's dtype in aligned memory of their own, by name. For int8 they are float32 still: the
        family makes int8 of them, and checks their size.

    Raises:
        ModuleRefused: the source is unknown, unreadable, or not what the spec says.
    """
    path = path_of(part_source(spec, part))
    stored = _mapped(path, others)
    if missing := sorted(shapes.keys() - stored.keys()):
        raise ModuleRefused(f"{path.name} lacks {several(missing)}: these are not the weights of {spec.family}")
    if extra := sorted(stored.keys() - shapes.keys()):
        raise ModuleRefused(f"{path.name} has {several(extra)} besides: these are not the weights of {spec.family}")
    for name, shape in shapes.items():
        if stored[name].shape != shape or stored[name].dtype != torch.float32:
            raise ModuleRefused(
                f"{name} in {path.name} is {stored[name].dtype} {tuple(stored[name].shape)}, "
                f"{spec.family} takes torch.float32 {shape}"
            )
    held = {name: precision.own(tensor, spec.dtype) for name, tensor in stored.items()}
    if spec.dtype != precision.INT8:
        check_size(spec, precision.memory_bytes(held.values()))
    config: dict[str, JsonValue] | None = {"dtype": precision.INT8} if spec.dtype == precision.INT8 else None
    digests.check(spec, lambda: digest_of(held, config))
    return held


def _mapped(path: Path, others: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of a file but for ``others``. They are in the file still: large ones take no memory."""

    def ours(name: str) -> bool:
        return not (name.startswith(others) or name.endswith(others))

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if ours(name)}  # noqa: SIM118
        return {name: tensor for name, tensor in pickled.mapped(path).items() if ours(name)}
    except Exception as error:  # a damaged file makes its reader raise anything
        raise ModuleRefused(
            f"{path.name} can't be read as weights ({type(error).__name__}): install it again"
        ) from error
