"""Engines: each runs a module's forward pass, with its own threads, memory and tensors.

Owns the table of engines and their interface. Knows no family. An engine's file, and the packages that it needs, are
imported when the first module of that engine runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Protocol, cast

from broker.protocol.tensors import Array
from edge_agent.modules import Module, Pass


class Engine(Protocol):
    """Runs forward passes. Each engine's file has this function."""

    def forward(self, module: Module, chosen: Pass, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run one forward pass: arrays to contiguous arrays, floats as float32, both by name."""


ENGINES: Mapping[str, str] = {
    "ctranslate2": "edge_agent.runtime.engines.ctranslate2_cpu",
    "torch": "edge_agent.runtime.engines.torch",
}
"""Engine -> its file. A module names its engine."""


@cache
def engine(name: str) -> Engine:
    """The engine of a name."""
    return cast("Engine", importlib.import_module(ENGINES[name]))


def limit_threads(count: int) -> None:
    """Set the threads of a pass, for this whole process. Other engines take torch's number when they load a module."""
    import torch  # noqa: PLC0415 - an agent starts without it

    torch.set_num_threads(count)
