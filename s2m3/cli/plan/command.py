"""The command line of ``s2m3 plan``, and its tables for people. Exit 0: there is a plan; 1: none; 2: bad input."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from broker.protocol.specs import DeviceSpec, TaskSpec
from s2m3.bench.placement.inputs import read
from s2m3.bench.placement.solve import SOLVERS, TIME_LIMIT_S, solve
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
        type=seconds,
        default=TIME_LIMIT_S,
        metavar="S",
        help="seconds, for refined and exact; then the best so far counts; default 60",
    )
    parser.add_argument(
        "--explain", action="store_true", help="say for each module why it is there, and on no other device"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=plan)


def plan(arguments: argparse.Namespace) -> int:
    """Read, solve, print.

    Raises:
        BadFile: a file is wrong.
        S2M3Error: the exact solver isn't installed.
    """
    devices, tasks = read(arguments.fleet, [name for names in arguments.tasks for name in names])
    solution = solve(arguments.solver, devices, tasks, time_limit_s=arguments.time_limit)
    made = document(solution, devices, tasks)
    if arguments.json:
        print(json.dumps(made))
    else:
        _print(made, devices, tasks, explain=arguments.explain)
    return 0 if made["feasible"] else 1


def _print(made: dict[str, Any], devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], *, explain: bool) -> None:
    console = Console()
    if not made["feasible"]:
        console.print(f"no plan: {made['reason']['message']}", soft_wrap=True, markup=False, highlight=False)
        return
    placement = Table("module", "MB", "device", "further copies", "used by", title="placement")
    for column in placement.columns:
        column.overflow = "fold"
    sizes = {name: module.memory_bytes for task in tasks for name, module in task.modules.items()}
    for name in names_of(tasks):
        copies = [f"{device} (replica)" for device in made["replicas"].get(name, [])]
        copies += [f"{device} (standby)" for device in made["standby"].get(name, [])]
        users = [task.task for task in tasks if any(node.module == name for node in task.nodes.values())]
        row = (name, f"{sizes[name] / 1e6:,.1f}", made["placement"][name], "\n".join(copies), "\n".join(users))
        placement.add_row(*row)
    memory = Table("device", "used (MB)", "spare copies (MB)", "of (MB)", title="memory")
    for device in sorted(device.id for device in devices):
        use = made["memory_bytes"]["per_device"][device]
        memory.add_row(device, *(f"{use[kind] / 1e6:,.1f}" for kind in ("used", "spare", "capacity")))
    latency = Table("task", "weight", "from", "latency (s)", title="tasks")
    for task in sorted(tasks, key=lambda task: task.task):
        latency.add_row(task.task, f"{task.weight:g}", task.source, f"{made['latency_s'][task.task]:.4g}")
    for table in (placement, memory, latency):
        table.title_justify = "left"
        console.print(table)
    if explain:
        for each in made["explain"]:
            lines = [f"{each['module']} is on {each['device']}: {each['why']}"]
            lines += [f"  not on {device}: {reason}" for device, reason in each["rejected"].items()]
            console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)
    console.print(_summary(made), soft_wrap=True, markup=False, highlight=False)


def _summary(made: dict[str, Any]) -> str:
    shared, unshared = made["memory_bytes"]["shared"], made["memory_bytes"]["unshared"]
    worth = {
        None: f"{made['solver']} doesn't know whether that is the least",
        True: "that is the least, proven",
        False: f"the time was over before a proof; no plan is below {made['bound_s'] or 0:.6g} s",
    }
    return (
        f"objective {made['objective_s']:.6g} s ({worth[made['optimal']]}); found in {made['solve_s']:.3g} s\n"
        f"memory: {shared / 1e6:,.1f} MB shared, {unshared / 1e6:,.1f} MB if each task held its own"
    )


def seconds(text: str) -> float:
    """A time on the command line.

    Raises:
        ArgumentTypeError: it is not a number greater than 0.
    """
    try:
        given_s = float(text)
    except ValueError:
        given_s = math.nan
    if not 0 < given_s < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds greater than 0, got {text!r}")
    return given_s
