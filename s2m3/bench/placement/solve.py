"""Reads a plan's files, runs one of the three solvers, and tells how good its answer is.

Owns the rules between a fleet file and task files; each file's own rules are its spec's. A wrong field is shown with
its file and line. Owns also the meaning of ``optimal``: true with a proof, false when the proof wasn't finished in
time, None for the heuristics, which prove nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from broker.files import load_spec
from broker.protocol.errors import BadFile, NoDeviceFits
from broker.protocol.specs import DeviceId, DeviceSpec, FleetSpec, ModuleKey, ModuleName, TaskSpec
from orchestrator.planner.exact import Undecided, exact
from orchestrator.planner.placement import place, refined
from orchestrator.planner.problem import Placement
from s2m3.catalogue import Written, load_tasks
from s2m3.reference.auto_numbers import counted
from s2m3.testbed.what_if import changed_fleet

Solver = Literal["greedy", "refined", "exact"]
SOLVERS: tuple[Solver, ...] = ("greedy", "refined", "exact")
TIME_LIMIT_S = 60.0


def read(
    fleet: str | Path,
    tasks: Sequence[str | Path],
    without: Sequence[DeviceId] = (),
    more: Sequence[DeviceId] = (),
) -> tuple[tuple[DeviceSpec, ...], list[TaskSpec]]:
    """The devices of a fleet file, and the tasks with the source of each filled in.

    Args:
        fleet: the file.
        tasks: catalogue names, task files, lists of tasks, or directories of such files.
        without: devices that are left out.
        more: devices that there is one more of.

    Raises:
        BadFile: a file is wrong; two tasks have one name; a task's source is not a device of the fleet; one module name
            means two different modules.
    """
    found = changed_fleet(load_spec(fleet, FleetSpec), without, more)
    written = [each for name in tasks for each in load_tasks(name, counted)]
    if not written:
        raise BadFile(file="--tasks", problem="names no task", fix="name a task file, or one of the catalogue")
    _refuse_one_name_for_two_tasks(written)
    _refuse_one_name_for_two_modules(written)
    known = {device.id for device in found.devices}
    for each in written:
        if each.spec.source is not None and each.spec.source not in known:
            raise each.wrong(
                "source",
                problem=f"names {each.spec.source}, which is not a device of {fleet}",
                fix="name one of its devices, or leave it out to take the fleet's source",
            )
    return found.devices, with_sources([each.spec for each in written], found)


def with_sources(tasks: Iterable[TaskSpec], fleet: FleetSpec) -> list[TaskSpec]:
    """The tasks, each with a source: its own, or the fleet's."""
    return [task if task.source else task.model_copy(update={"source": fleet.source}) for task in tasks]


def _refuse_one_name_for_two_tasks(written: Sequence[Written]) -> None:
    first: dict[str, Written] = {}
    for each in written:
        if other := first.get(each.spec.task):
            raise each.wrong(
                "task",
                problem=f"{each.spec.task} is the name of another task too, in {other.file}",
                fix="name each task once, or rename one",
            )
        first[each.spec.task] = each


def _refuse_one_name_for_two_modules(written: Sequence[Written]) -> None:
    """A plan names modules as tasks do, so one name must mean one module."""
    first: dict[ModuleName, tuple[ModuleKey, Written]] = {}
    for each in written:
        for node in each.spec.nodes.values():
            key = each.spec.modules[node.module].key
            before, other = first.setdefault(node.module, (key, each))
            if before != key:
                raise each.wrong(
                    "modules" if each.at else f"modules.{node.module}",
                    problem=f"{node.module} is another module in {other.file}: {before} there, {key} here",
                    fix="rename one of the two",
                )


@dataclass(frozen=True)
class Solution:
    """A solver's answer: a placement, or why it found none.

    ``bound_s``: no placement has a smaller objective, in seconds; known to the exact solver only. ``solve_s``: what it
    took, files and output not counted.
    """

    solver: Solver
    solve_s: float
    placement: Placement | None = None
    optimal: bool | None = None
    bound_s: float | None = None
    refusal: NoDeviceFits | Undecided | None = None


def solve(
    solver: Solver, devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], *, time_limit_s: float = TIME_LIMIT_S
) -> Solution:
    """Place every module of every task; the tasks' names are distinct, and each source is a device.

    ``time_limit_s`` is for refined and exact; greedy needs none.

    Raises:
        S2M3Error: the exact solver isn't installed.
    """
    start_s = time.perf_counter()

    def passed_s() -> float:
        return time.perf_counter() - start_s

    try:
        if solver == "greedy":
            return Solution(solver, placement=place(devices, tasks), solve_s=passed_s())
        if solver == "refined":
            found = refined(devices, tasks, enough=lambda: passed_s() > time_limit_s)
            return Solution(solver, placement=found, solve_s=passed_s())
        best = exact(devices, tasks, time_limit_s=time_limit_s)
    except NoDeviceFits as refusal:
        return Solution(solver, refusal=refusal, solve_s=passed_s())
    except Undecided as refusal:
        return Solution(solver, refusal=refusal, bound_s=refusal.bound_s, solve_s=passed_s())
    solve_s = passed_s()
    placement = replace(place(devices, tasks, keep=best.where), kept=frozenset())  # it was chosen, not kept
    return Solution(solver, placement=placement, optimal=best.proven, bound_s=best.bound_s, solve_s=solve_s)
