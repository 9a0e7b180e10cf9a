"""Loads the modules of one agent: by their families, or from exports.

Owns the choice. With the agent's engine ``onnx``, a module that torch would run comes from its export; all other
modules come from their families, whatever the engine. What a way of loading needs is imported with the first module.
"""

from __future__ import annotations

import importlib
from typing import Any

from broker.protocol.specs import ModuleSpec
from edge_agent import modules
from edge_agent.modules import Module
from edge_agent.modules.weights import exports
from edge_agent.modules.weights.hub import models_directory


class Loader:
    """Loads modules for an agent's engine, ``torch`` or ``onnx``."""

    def __init__(self, engine: str = "torch") -> None:
        self._engine = engine

    def imports(self, spec: ModuleSpec) -> None:
        """Import what a module needs before its weights are read; an unknown family is refused later, by ``load``.

        Raises:
            ModuleRefused: a package is missing.
        """
        if self._is_exported(spec):
            _exported()
        elif spec.family in modules.FAMILIES:
            modules.import_family(spec)

    def memory_bytes(self, spec: ModuleSpec) -> int:
        """The bytes that a module's weights need here: those of its export, or of its variant, or of the spec."""
        if not self._is_exported(spec):
            return spec.memory_bytes
        variant = next((each.memory_bytes for each in spec.variants if each.engine == "onnx"), spec.memory_bytes)
        return exports.sizes(models_directory()).get(spec.key, variant)

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
        return self._engine == "onnx" and spec.engine == "torch"


def _exported() -> Any:  # noqa: ANN401 - a Python module
    return importlib.import_module("edge_agent.modules.exported")
