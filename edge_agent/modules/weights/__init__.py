"""Weights of modules: where they are, how they are read, and the checks that all kinds of sources share."""

from __future__ import annotations

from collections.abc import Sequence

from broker.protocol.errors import ModuleRefused
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import ModuleSpec, Source


def part_source(spec: ModuleSpec, part: str) -> Source:
    """The source of a module's weights, which must name this part: it belongs to the module's identity.

    Raises:
        ModuleRefused: it doesn't.
    """
    if spec.source is None or spec.source.part != part:
        raise ModuleRefused(f"{spec.family} takes its weights from a source with part: {part}, not {spec.source}")
    return spec.source


def check_size(spec: ModuleSpec, held_bytes: int) -> None:
    """Refuse weights that take more than the spec says.

    Raises:
        ModuleRefused: they do.
    """
    if held_bytes > spec.memory_bytes:
        held, said = show_sizes(held_bytes, spec.memory_bytes)
        raise ModuleRefused(
            f"the weights of {spec.source} have {held} and the spec says {said}: correct memory_bytes to "
            f"{held_bytes}, or the spec's source"
        )


def several(names: Sequence[str]) -> str:
    """The first name and how many there are besides, for a sentence."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
