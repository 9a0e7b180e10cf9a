"""The command line of ``s2m3 plan``, and its tables for people. Exit 0: there is a plan; 1: none; 2: bad input."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from broker.protocol.specs import DeviceSpec, TaskSpec
from s2m3.bench.placement.inputs import read
from s2m3.bench.placement.solve import SOLVERS, TIME_LIMIT_S, solve
from s2m3.cli.arguments import add_json, positive_seconds
from s2m3.cli.output import console, megabytes, print_result, table
from s2m3.cli.plan.document import document, names_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 plan``."""
    parser.add_argument("--fleet", required=True, metavar="FILE", help="devices, and where requests start")
    parser.add_argument(
        "--tasks",
        required=True,
        action="append",
        nargs="+",
        metavar="T",
        help="catalogue names, task files, lists of tasks, or directories of them; again for more",
    )
    parser.add_argument("--solver", choices=SOLVERS, default="refined", help="default %(default)s")
    parser.add_argument(
        "--time-limit",
        type=positive_seconds,
        default=TIME_LIMIT_S,
        metavar="S",
        help="seconds, for refined and exact; then the best so far counts; default 60",
    )
    parser.add_argument(
        "--explain", action="store_true", help="say for each module why it is there, and on no other device"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, solve, print; 0 when there is a plan."""
    devices, tasks = read(arguments.fleet, [name for names in arguments.tasks for name in names])
    solution = solve(arguments.solver, devices, tasks, time_limit_s=arguments.time_limit)
    made = document(solution, devices, tasks)
    print_result(arguments, made, lambda _: _print(made, devices, tasks, explain=arguments.explain))
    return 0 if made["feasible"] else 1


def _print(made: dict[str, Any], devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], *, explain: bool) -> None:
    if not made["feasible"]:
        print(f"no plan: {made['reason']['message']}")
        return
    placement = table("module", "MB", "device", "further copies", "used by", title="placement")
    sizes = {name: module.memory_bytes for task in tasks for name, module in task.modules.items()}
    for name in names_of(tasks):
        copies = [f"{device} (replica)" for device in made["replicas"].get(name, [])]
        copies += [f"{device} (standby)" for device in made["standby"].get(name, [])]
        users = [task.task for task in tasks if any(node.module == name for node in task.nodes.values())]
        row = (name, megabytes(sizes[name]), made["placement"][name], "\n".join(copies), "\n".join(users))
        placement.add_row(*row)
    memory = table("device", "used (MB)", "spare copies (MB)", "of (MB)", title="memory")
    for device in sorted(device.id for device in devices):
        use = made["memory_bytes"]["per_device"][device]
        memory.add_row(device, *(megabytes(use[kind]) for kind in ("used", "spare", "capacity")))
    latency = table("task", "weight", "from", "latency (s)", title="tasks")
    for task in sorted(tasks, key=lambda task: task.task):
        latency.add_row(task.task, f"{task.weight:g}", task.source, f"{made['latency_s'][task.task]:.4g}")
    console().print(placement, memory, latency)
    for each in made["explain"] if explain else ():
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
        f"memory: {megabytes(shared)} MB shared, {megabytes(unshared)} MB if each task held its own"
    )
