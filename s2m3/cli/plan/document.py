"""The JSON of ``s2m3 plan``: a promise to other tools, which recompute the objective from it.

Owns its fields. A module appears under each name that a task gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, TaskSpec
from orchestrator.planner.explain import explain
from orchestrator.planner.placement import Placement
from orchestrator.planner.spares import Spares, spares
from s2m3.bench.placement.solve import Solution

MOST_REASONS = 200_000
"""Modules times devices up to which a plan explains each pair: some ten megabytes of JSON."""


def names_of(tasks: Sequence[TaskSpec]) -> dict[ModuleName, ModuleKey]:
    """The keys of the modules that nodes use, by the names that tasks give them, in order of the names."""
    found = {node.module: task.modules[node.module].key for task in tasks for node in task.nodes.values()}
    return dict(sorted(found.items()))


def document(solution: Solution, devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec]) -> dict[str, Any]:
    """The document that ``plan --json`` prints.

    ``feasible`` is None when the exact solver neither found a placement in time nor proved that none exists. ``used``
    counts the modules of ``placement``, ``spare`` the copies of ``standby`` and ``replicas``; ``reason``, only there
    without a placement, says why. ``explain`` is empty beyond ``MOST_REASONS``.
    """
    placement = solution.placement
    made: dict[str, Any] = {
        "solver": solution.solver,
        "feasible": placement is not None,
        "objective_s": None,
        "optimal": solution.optimal,
        "bound_s": solution.bound_s,
        "placement": {},
        "standby": {},
        "replicas": {},
        "latency_s": {},
        "memory_bytes": None,
        "solve_s": solution.solve_s,
        "explain": [],
    }
    if placement is None:
        made["feasible"] = False if isinstance(solution.refusal, NoDeviceFits) else None
        made["reason"] = _reason(solution)
        return made
    names = names_of(tasks)
    spare = spares(devices, tasks, placement.where)
    made |= {
        "objective_s": placement.objective_s,
        "placement": {name: placement.where[key] for name, key in names.items()},
        "standby": _by_name(names, spare.standby),
        "replicas": _by_name(names, spare.replicas),
        "latency_s": dict(sorted(placement.latency_s.items())),
        "memory_bytes": _memory(placement, spare, tasks),
        "explain": _explain(placement, names) if len(names) * len(devices) <= MOST_REASONS else [],
    }
    return made


def _by_name(
    names: Mapping[ModuleName, ModuleKey], chosen: Mapping[ModuleKey, Sequence[DeviceId]]
) -> dict[ModuleName, list[DeviceId]]:
    return {name: list(chosen[key]) for name, key in names.items() if chosen.get(key)}


def _memory(placement: Placement, spare: Spares, tasks: Sequence[TaskSpec]) -> dict[str, Any]:
    sizes: dict[ModuleKey, int] = {}
    for task in tasks:
        for module in task.modules.values():
            sizes[module.key] = max(module.memory_bytes, sizes.get(module.key, 0))
    spare_bytes = dict.fromkeys(placement.use, 0)
    for key in placement.where:
        for device in spare.of(key):
            spare_bytes[device] += sizes[key]
    return {
        "shared": placement.shared_bytes,
        "unshared": placement.unshared_bytes,
        "per_device": {
            device: {"used": use.used_bytes, "spare": spare_bytes[device], "capacity": use.capacity_bytes}
            for device, use in placement.use.items()
        },
    }


def _explain(placement: Placement, names: Mapping[ModuleName, ModuleKey]) -> list[dict[str, Any]]:
    made = []
    for name, key in names.items():
        found = explain(placement, key)
        made.append({"module": name, "device": found.device, "why": found.why, "rejected": dict(found.rejected)})
    return made


def _reason(solution: Solution) -> dict[str, Any]:
    refusal = solution.refusal
    if not isinstance(refusal, NoDeviceFits):
        return {"message": str(refusal)}
    change = {"device": refusal.change[0], "bytes": refusal.change[1]} if refusal.change else None
    return {
        "message": str(refusal),
        "module": refusal.module,
        "memory_bytes": refusal.memory_bytes,
        "short_bytes": refusal.short_bytes,
        "missing_bytes": min(refusal.short_bytes.values(), default=refusal.memory_bytes),
        "smallest_change": change,
    }
