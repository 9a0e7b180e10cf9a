"""Exact bytes of weights: one task split over devices, and the named mixes of tasks that share modules.

Owns these two sums, and the catalogue's ``mixes.yaml`` (name -> description, tasks). Sizes and identities come from the
tasks' specs, and a test holds the catalogue's sizes equal to those of the real configurations. Token embeddings count
like all other weights; activations don't count.

The comparison is our reading of the paper's abstract. A whole model needs one device for all its modules; a split one
needs no device larger than its largest module. Unshared tasks hold all their modules each; shared tasks hold each
module once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, RootModel

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import Id, ModuleKey, TaskSpec
from broker.protocol.values import Spec
from edge_agent import catalog
from s2m3.catalogue import load_task

MIXES = catalog.DIRECTORY / "mixes.yaml"


class Mix(Spec):
    """A set of tasks: catalogue names, or files."""

    description: str
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]

    def load(self) -> dict[str, TaskSpec]:
        """The tasks by name.

        Raises:
            BadFile: one is missing or wrong.
        """
        return {name: load_task(name) for name in self.tasks}


class Mixes(RootModel[dict[Id, Mix]]):
    """The file."""


def mixes() -> dict[str, Mix]:
    """All mixes by name.

    Raises:
        BadFile: the file is wrong.
    """
    return load_spec(MIXES, Mixes).root


def named_mix(name: str) -> Mix:
    """One mix.

    Raises:
        BadFile: there is no such mix.
    """
    known = mixes()
    if name not in known:
        raise BadFile(
            file=name, problem="is not the name of a mix", fix=f"name one of {', '.join(known)}, or add it to {MIXES}"
        )
    return known[name]


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
