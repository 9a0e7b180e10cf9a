"""Engines: each runs a module's forward pass, with its own threads, memory and tensors.

Owns the table of engines and their interface. Knows no family. An engine's file, and the packages that it needs, are
imported when the first module of that engine runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Literal, Protocol, cast

from broker.protocol.errors import BadFile, first_line
from broker.protocol.tensors import Array
from edge_agent.modules import Module, Pass


class Engine(Protocol):
    """Runs forward passes. Each engine's file has this function."""

    def forward(self, module: Module, chosen: Pass, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run one forward pass: arrays to contiguous arrays, floats as float32, both by name."""


ENGINES: Mapping[str, str] = {
    "ctranslate2": "edge_agent.runtime.engines.ctranslate2_cpu",
    "onnx": "edge_agent.runtime.engines.onnx_cpu",
    "torch": "edge_agent.runtime.engines.torch",
}
"""Engine -> its file. A module names its engine."""
PACKAGES: Mapping[str, str] = {"ctranslate2": "ctranslate2", "onnx": "onnxruntime", "torch": "torch"}
"""Engine -> its Python package."""
AgentEngine = Literal["torch", "onnx"]
"""The engine of all modules of an agent that aren't of CTranslate2."""
_EXTRAS: Mapping[AgentEngine, str] = {"torch": "agent", "onnx": "onnx"}


@cache
def engine(name: str) -> Engine:
    """The engine of a name."""
    return cast("Engine", importlib.import_module(ENGINES[name]))


def is_installed(name: str) -> bool:
    """Whether an engine's package is installed; it isn't imported."""
    return importlib.util.find_spec(PACKAGES[name]) is not None


def version(name: str) -> str:
    """An engine's package with its version, for people and for the setting of measurements."""
    return f"{PACKAGES[name]} {metadata.version(PACKAGES[name])}"


def chosen(wanted: Literal["auto", "torch", "onnx"], file: str = "agent", *, needs_cuda: bool = False) -> AgentEngine:
    """The engine that an agent's file asks for; ``auto`` is torch where it is installed. CUDA needs torch.

    Raises:
        BadFile: it isn't installed here.
    """
    if needs_cuda:
        if not is_installed("torch"):
            problem = "cuda needs the Python package torch, which is not installed here"
            fix = "install the [agent] extra, or write accelerator: cpu"
            raise BadFile(file=file, field="accelerator", problem=problem, fix=fix)
        return "torch"
    if wanted == "auto":
        if found := next((each for each in _EXTRAS if is_installed(each)), None):
            return found
        fix = "install the [agent] extra, or the [onnx] extra on a small machine"
        raise BadFile(file=file, field="engine", problem="neither torch nor onnxruntime is installed here", fix=fix)
    if not is_installed(wanted):
        raise BadFile(
            file=file,
            field="engine",
            problem=f"{wanted} needs the Python package {PACKAGES[wanted]}, which is not installed here",
            fix=f"install the [{_EXTRAS[wanted]}] extra, or write engine: auto",
        )
    return wanted


def imported(name: AgentEngine, file: str = "agent") -> AgentEngine:
    """An installed engine, with its package imported.

    Raises:
        BadFile: it can't be imported, as a library that it needs isn't there.
    """
    try:
        importlib.import_module(PACKAGES[name])
    except Exception as error:  # an ImportError, an OSError, or whatever a package raises
        problem = f"{PACKAGES[name]} is installed here and can't be imported ({first_line(error)})"
        raise BadFile(file=file, field="engine", problem=problem, fix=fix_of(name)) from error
    return name


def fix_of(name: AgentEngine) -> str:
    """The fix for an engine that is installed and doesn't work."""
    other = next(each for each in _EXTRAS if each != name)
    return f"install the [{_EXTRAS[name]}] extra again, or write engine: {other}"


def usable(preferred: AgentEngine) -> tuple[str, ...]:
    """The installed engines of an agent, in order of preference. One with ``onnx`` never runs torch."""
    others = ("ctranslate2",) if preferred == "onnx" else ("ctranslate2", "onnx")
    return (preferred, *(each for each in others if is_installed(each)))
