"""Loads the modules of one agent: by their families, or from exports.

Owns the choice, which is the cost model's (``runnable``): what the orchestrator counted for a module is what is loaded
here. What a way of loading needs is imported with the first module.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from broker.cost_model import RunsModules, memory_bytes, runnable
from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleKey, ModuleSpec
from edge_agent import modules
from edge_agent.modules import Module
from edge_agent.modules.weights import exports
from edge_agent.modules.weights.hub import models_directory
from edge_agent.modules.weights.packaged import is_here


@dataclass(frozen=True)
class _Offered:
    """The engines and the exports of an agent of one engine."""

    engines: tuple[str, ...]
    exports: Mapping[ModuleKey, int]


class Loader:
    """Loads modules for an agent.

    Args:
        engine: ``torch`` or ``onnx``, for an agent that offers this, CTranslate2, and the exports that are there now.
        offered: what the agent says that it offers, in place of that.
    """

    def __init__(self, engine: str = "torch", *, offered: RunsModules | None = None) -> None:
        found = exports.sizes(models_directory()) if engine == "onnx" and offered is None else {}
        self._offered: RunsModules = offered or _Offered((engine, "ctranslate2"), found)

    def imports(self, spec: ModuleSpec) -> None:
        """Import what a module needs before its weights are read; an unknown family is refused later, by ``load``.

        Raises:
            ModuleRefused: a package is missing.
        """
        if self._is_exported(spec):
            _exported()
        elif spec.family in modules.FAMILIES:
            modules.import_family(spec)
            if spec.dtype == "int8" and spec.engine == "torch":
                with suppress(ModuleRefused):  # it is missing: a family that needs it says so
                    importlib.import_module("edge_agent.modules.weights.precision").torchao()

    def memory_bytes(self, spec: ModuleSpec) -> int:
        """The bytes that a module's weights need here: those of its export, or of its variant, or of the spec."""
        return memory_bytes(spec, self._offered)

    def is_here(self, spec: ModuleSpec) -> bool:
        """Whether the weights that would be loaded are on this machine. Reads the disk, never the network."""
        if not self._is_exported(spec):
            return is_here(spec.source)
        return spec.key in self._offered.exports

    def load(self, spec: ModuleSpec) -> Module:
        """Load a module's weights into memory.

        Raises:
            ModuleRefused: there is no export of it, its family is unknown, or the weights don't fit the spec.
        """
        if self._is_exported(spec):
            loaded: Module = _exported().load(spec)
            return loaded
        return modules.load(spec)

    def _is_exported(self, spec: ModuleSpec) -> bool:
        """Whether the engine onnx runs a module whose own weights are for another one."""
        if spec.engine == "onnx":
            return False
        form = runnable(spec, self._offered)
        return "onnx" in self._offered.engines if form is None else form.engine == "onnx"


def _exported() -> Any:  # noqa: ANN401 - a Python module
    return importlib.import_module("edge_agent.modules.exported")
