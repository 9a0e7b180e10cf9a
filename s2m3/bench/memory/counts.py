"""Exact bytes of weights: one task split over devices, and several tasks that share modules.

Owns these two sums. Pure: sizes and identities come from the tasks' specs, and a test holds the catalogue's sizes equal
to those of the real configurations. Token embeddings count like all other weights; activations don't count.

The comparison is our reading of the paper's abstract. A whole model needs one device for all its modules; a split one
needs no device larger than its largest module. Unshared tasks hold all their modules each; shared tasks hold each
module once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.protocol.specs import ModuleKey, TaskSpec


def single(name: str, task: TaskSpec) -> dict[str, Any]:
    """One task: the bytes of its whole model and of its largest module, and the saving of the one over the other."""
    held = _modules({name: task})
    whole_bytes = sum(module["memory_bytes"] for module in held.values())
    largest = max(held.values(), key=lambda module: int(module["memory_bytes"]))
    return {
        "name": name,
        "modules": len(held),
        "unsplit_bytes": whole_bytes,
        "largest_module": largest["module"],
        "largest_module_bytes": largest["memory_bytes"],
        "saved_percent": saved_percent(whole_bytes, largest["memory_bytes"]),
    }


def mix(tasks: Mapping[str, TaskSpec]) -> dict[str, Any]:
    """Several tasks: bytes unshared and shared, the largest module, and the tasks that use each module."""
    held = _modules(tasks)
    unshared_bytes = sum(single(name, task)["unsplit_bytes"] for name, task in tasks.items())
    shared_bytes = sum(module["memory_bytes"] for module in held.values())
    return {
        "tasks": list(tasks),
        "unshared_bytes": unshared_bytes,
        "shared_bytes": shared_bytes,
        "saved_percent": saved_percent(unshared_bytes, shared_bytes),
        "largest_unsplit_bytes": max(single(name, task)["unsplit_bytes"] for name, task in tasks.items()),
        "largest_module_bytes": max(module["memory_bytes"] for module in held.values()),
        "modules": sorted(held.values(), key=lambda module: -int(module["memory_bytes"])),
    }


def saved_percent(before: int, after: int) -> float:
    """The saving in percent of ``before``, with two decimals; negative if ``after`` is larger."""
    return round(100 * (1 - after / before), 2)


def _modules(tasks: Mapping[str, TaskSpec]) -> dict[ModuleKey, dict[str, Any]]:
    """Each module once, by identity: its first name, its bytes, and the tasks that use it."""
    held: dict[ModuleKey, dict[str, Any]] = {}
    for name, task in tasks.items():
        for module, spec in task.modules.items():
            entry = held.setdefault(spec.key, {"module": module, "memory_bytes": spec.memory_bytes, "tasks": []})
            if name not in entry["tasks"]:
                entry["tasks"].append(name)
    return held
