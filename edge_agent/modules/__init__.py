"""One file per model family: its parts, its shapes, its split. Here: what a module is, and the table of families.

Owns the interface between the agent and the networks. Must not know any network: a family's file, and the packages
that it needs, are imported when the first module of that family is loaded, so an agent starts without them.

A module is a function of the values that its node needs, in the order of ``needs``: what a sensor sent (``RawInput``)
or the arrays of another node. The same values give the same bits at the same thread count, on any device of one kind.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

from pydantic import JsonValue

from broker.codec import RawInput
from broker.errors import ModuleRefused
from broker.specs import ModuleSpec
from broker.tensors import Array, Tensors

Value = RawInput | Tensors


@dataclass(frozen=True)
class Output:
    """What one forward pass gives: contiguous arrays for other nodes, and what a sensor reads if this is the output."""

    tensors: dict[str, Array]
    answer: dict[str, JsonValue] | None = None


class Module(Protocol):
    """A functional part of a model with its weights in memory."""

    def __call__(self, *values: Value) -> Output:
        """Run one forward pass on the values of the node's needs, in that order.

        Raises:
            RequestFailed: ``bad_input`` for what a sensor sent and this module can't read; ``module_failed`` for
                arrays that don't fit this module, which only a wrong task spec causes.
        """


FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "efficientnet.encoder": "edge_agent.modules.efficientnet",
        "efficientnet.classifier": "edge_agent.modules.efficientnet",
        "sentence.encoder": "edge_agent.modules.sentence",
        "conse.head": "edge_agent.modules.conse",
    }
)
"""Family -> the file whose ``load(spec)`` makes its modules. A spec chooses a family, never a path."""


def load(spec: ModuleSpec) -> Module:
    """Load a module's weights into memory.

    Raises:
        ModuleRefused: unknown family, a package is missing, or the weights don't fit the spec.
    """
    if spec.family not in FAMILIES:
        raise ModuleRefused(f"unknown family {spec.family}: this agent has {', '.join(sorted(FAMILIES))}")
    if spec.dtype != "float32":
        raise ModuleRefused(f"{spec.family} computes in float32, not {spec.dtype}: set dtype to float32")
    try:
        family = importlib.import_module(FAMILIES[spec.family])
    except ImportError as error:
        raise ModuleRefused(
            f"{spec.family} needs the Python package {error.name}, which is missing: install the [pocket] extra"
        ) from error
    return cast("Callable[[ModuleSpec], Module]", family.load)(spec)
