"""``s2m3 plan``: where modules would go, without any device. Exit 0: there is a plan; 1: none; 2: bad input.

Owns the tables for people, and the JSON: a promise to other tools, which recompute the objective from it. A module
appears under each name that a task gives it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from broker.cost_model import memory_bytes
from broker.protocol.errors import NoDeviceFits
from broker.protocol.sizes import mebibytes
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, TaskSpec
from orchestrator.planner.copies import original_key, with_further_copies
from orchestrator.planner.explain import explain
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.preferred import preferred_copies
from orchestrator.planner.problem import Placement
from orchestrator.planner.spares import Spares, spares
from s2m3.bench.placement.solve import SOLVERS, TIME_LIMIT_S, Solution, read, solve
from s2m3.cli.arguments import add_json, add_what_if, positive_seconds
from s2m3.cli.output import console, print_result, table

MOST_REASONS = 200_000
"""Modules times devices up to which a plan explains each pair: some ten megabytes of JSON."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 plan``."""
    parser.add_argument("--fleet", required=True, metavar="FILE", help="devices, and where requests start")
    text = "catalogue names, task files, lists of tasks, or directories of them; again for more"
    parser.add_argument("--tasks", required=True, action="append", nargs="+", metavar="T", help=text)
    add_what_if(parser, "plan without this device", "plan with one more device like this one")
    parser.add_argument("--solver", choices=SOLVERS, default="refined", help="default %(default)s")
    text = "seconds, for refined and exact; then the best so far counts; default 60"
    parser.add_argument("--time-limit", type=positive_seconds, default=TIME_LIMIT_S, metavar="S", help=text)
    parser.add_argument(
        "--explain", action="store_true", help="say for each module why it is there, and on no other device"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, solve, print; 0 when there is a plan."""
    names = [name for names in arguments.tasks for name in names]
    devices, tasks = read(arguments.fleet, names, arguments.without, arguments.one_more)
    solution = solve(arguments.solver, devices, tasks, time_limit_s=arguments.time_limit)
    made = _document(solution, devices, tasks)
    print_result(arguments, made, lambda _: _print(made, devices, tasks, with_reasons=arguments.explain))
    return 0 if made["feasible"] else 1


def _print(
    made: dict[str, Any], devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], *, with_reasons: bool
) -> None:
    if not made["feasible"]:
        print(f"no plan: {made['reason']['message']}")
        return
    placement = table("module", "MiB", "device", "further copies", "used by", title="placement")
    names, specs = _names_of(tasks), {device.id: device for device in devices}
    modules = {key: module for key, (_, module) in distinct_modules(tasks).items()}
    for name, device in made["placement"].items():
        size_bytes = memory_bytes(modules[names[name]], specs[device])
        copies = [f"{other} (replica)" for other in made["replicas"].get(name, [])]
        copies += [f"{other} (standby)" for other in made["standby"].get(name, [])]
        users = [task.task for task in tasks if any(node.module == name for node in task.nodes.values())]
        placement.add_row(name, mebibytes(size_bytes), device, "\n".join(copies), "\n".join(users))
    memory = table("device", "used (MiB)", "spare copies (MiB)", "of (MiB)", title="memory")
    for device in sorted(device.id for device in devices if device.tasks != ()):  # not what is only a source
        use = made["memory_bytes"]["per_device"][device]
        memory.add_row(device, *(mebibytes(use[kind]) for kind in ("used", "spare", "capacity")))
    latency = table("task", "weight", "from", "latency (s)", title="tasks")
    for task in sorted(tasks, key=lambda task: task.task):
        latency.add_row(task.task, f"{task.weight:g}", task.source, f"{made['latency_s'][task.task]:.4g}")
    console().print(placement, memory, latency)
    for each in made["explain"] if with_reasons else ():
        print(f"{each['module']} is on {each['device']}: {each['why']}")
        for device, reason in each["rejected"].items():
            print(f"  not on {device}: {reason}")
    print(_summary(made))


def _summary(made: dict[str, Any]) -> str:
    shared, unshared = made["memory_bytes"]["shared"], made["memory_bytes"]["unshared"]
    worth = {
        None: f"{made['solver']} doesn't know whether that is the least",
        True: "that is the least, proven",
        False: f"the time was over before a proof; no plan is below {made['bound_s'] or 0:.6g} s",
    }
    return (
        f"objective {made['objective_s']:.6g} s ({worth[made['optimal']]}); found in {made['solve_s']:.3g} s\n"
        f"memory: {mebibytes(shared)} MiB shared, {mebibytes(unshared)} MiB if each task held its own"
    )


def _names_of(tasks: Sequence[TaskSpec]) -> dict[ModuleName, ModuleKey]:
    """The keys of the modules that nodes use, by the names that tasks give them, in order of the names."""
    found = {node.module: task.modules[node.module].key for task in tasks for node in task.nodes.values()}
    return dict(sorted(found.items()))


def _document(solution: Solution, devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec]) -> dict[str, Any]:
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
    names = _names_of(tasks)
    is_explained = len(names) * len(devices) <= MOST_REASONS
    preferred = preferred_copies(devices, tasks, placement.where, further=placement.further)
    copied = with_further_copies(tasks, placement.further)
    spare = spares(devices, copied, placement.where, preferred=preferred)
    made |= {
        "objective_s": placement.objective_s,
        "placement": {name: placement.where[key] for name, key in names.items()},
        "standby": _by_name(names, spare.standby),
        "replicas": _by_name(names, _further_actives(placement, spare)),
        "latency_s": dict(sorted(placement.latency_s.items())),
        "memory_bytes": _memory(placement, spare),
        "explain": [{"module": name} | asdict(explain(placement, key)) for name, key in names.items() if is_explained],
    }
    return made


def _further_actives(placement: Placement, spare: Spares) -> dict[ModuleKey, tuple[DeviceId, ...]]:
    """By copy the devices that serve it beside the one of ``placement``."""
    homes = {key: (home,) for key, home in placement.where.items() if key != original_key(key)}
    return {key: homes.get(key, ()) + spare.replicas.get(key, ()) for key in placement.where}


def _by_name(
    names: Mapping[ModuleName, ModuleKey], chosen: Mapping[ModuleKey, Sequence[DeviceId]]
) -> dict[ModuleName, list[DeviceId]]:
    """The devices by the modules' names, those of all copies of a module together."""
    found: dict[ModuleKey, list[DeviceId]] = {}
    for copy, devices in chosen.items():
        found.setdefault(original_key(copy), []).extend(devices)
    return {name: found[key] for name, key in names.items() if found.get(key)}


def _memory(placement: Placement, spare: Spares) -> dict[str, Any]:
    problem, used_bytes = placement.problem, placement.used_bytes
    spare_bytes = dict.fromkeys(used_bytes, 0)
    for key, sizes in zip(problem.keys, problem.sizes, strict=True):
        for device in spare.of(key):
            spare_bytes[device] += int(sizes[problem.fleet.rows[device]])
    return {
        "shared": placement.shared_bytes,
        "unshared": placement.unshared_bytes,
        "per_device": {
            device.id: {"used": used_bytes[device.id], "spare": spare_bytes[device.id], "capacity": device.memory_bytes}
            for device in problem.fleet.specs
        },
    }


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
