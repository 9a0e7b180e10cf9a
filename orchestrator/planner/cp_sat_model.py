"""An integer program that takes one candidate for every task, so that they agree on shared modules and all fits.

Owns the program and the solver, OR-Tools' CP-SAT. Knows nothing of latencies but that each candidate has a cost.

The program: a binary for each candidate of each task, exactly one of them true; a binary for each shared module and
device, equal to the sum of each task's candidates that put it there; on each device that could be filled up, the bytes
of what is true are at most its memory; the least sum of costs. Memory counts in bytes and time in whole steps, so the
proof holds without tolerances.

Why CP-SAT: measured against HiGHS (through scipy) on the 95 instances of ``benchmarks/placement``, one thread, the same
program, started from the refined placement, limit 60 s: CP-SAT proved all 95 in 7.8 s of processor time (median 1 ms,
worst 2.7 s), HiGHS 94 in 34 s (median 2 ms; the 95th not within the limit). Started from the greedy placement, HiGHS
also ended once with a placement 2.5 times too slow, 40 s after its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from broker.protocol.errors import S2M3Error
from orchestrator.planner.candidates import Candidates
from orchestrator.planner.fleet import Integers
from orchestrator.planner.problem import Problem, Where

STEPS = 1e12
"""Steps of time in the objective: a thousand times finer than the 1e-9 to which plans are compared."""


@dataclass(frozen=True)
class Chosen:
    """The solver's answer: where the modules go (None: nothing found), and what it knows of the least objective."""

    where: Where | None
    bound_s: float
    finished: bool  # this is the least; or, when nothing was found, there is nothing


def choose(
    problem: Problem, candidates: Sequence[Candidates], start: Where | None, left_s: Callable[[], float]
) -> Chosen:
    """Take one candidate for every task, with the least sum of costs; begin the search at ``start``.

    ``left_s`` gives the time left, and is asked when the program is written; after it the best so far is returned.

    Raises:
        S2M3Error: the solver isn't installed.
    """
    if not all(len(found.costs) for found in candidates):
        return Chosen(None, np.inf, finished=True)
    cp_model = _cp_model()
    program = _Program(problem, candidates, cp_model.CpModel())
    if start:
        program.hint(start)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = left_s()
    solver.parameters.num_workers = 1  # the same answer every time, on one core
    solver.parameters.relative_gap_limit = 0.0
    solver.parameters.cp_model_probing_level = 0  # measured: the hardest of the 95 instances take a third less
    status = solver.solve(program.model)
    if status == cp_model.INFEASIBLE:
        return Chosen(None, np.inf, finished=True)
    where = None
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        rows: dict[int, int] = {}
        for schedule, found, binaries in zip(problem.schedules, program.candidates, program.taken, strict=True):
            taken = next(number for number, binary in enumerate(binaries) if solver.boolean_value(binary))
            rows |= zip(schedule.slots, found.rows[taken].tolist(), strict=True)
        where = [rows[module] for module in range(len(rows))]
    bound_s = program.least_s + max(0.0, solver.best_objective_bound - len(candidates)) / program.steps_per_s
    return Chosen(where, bound_s, finished=status == cp_model.OPTIMAL)


class _Program:
    """The integer program. Of candidates that are alike to all other tasks it has only the cheapest."""

    def __init__(self, problem: Problem, candidates: Sequence[Candidates], model: Any) -> None:  # noqa: ANN401 - the solver is an extra
        self.problem, self.model = problem, model
        all_bytes = sum(problem.sizes, np.zeros(len(problem.fleet), dtype=np.int64))  # (D,)
        self.tight = np.flatnonzero(problem.fleet.memory_bytes < all_bytes)  # devices that could be filled up
        shared = [module for module, users in enumerate(problem.users) if len(users) > 1]
        self.there = {module: [model.new_bool_var("") for _ in problem.fleet.specs] for module in shared}
        self.candidates = [self._cheapest(task, found) for task, found in enumerate(candidates)]
        self.taken = [[model.new_bool_var("") for _ in found.costs] for found in self.candidates]
        for binaries in (*self.there.values(), *self.taken):
            model.add_exactly_one(binaries)
        for task in range(len(candidates)):
            self._agree(task)
        self._fit()
        self._cost()

    def hint(self, start: Where) -> None:
        """Begin the search at a placement."""
        for module, binaries in self.there.items():
            for row, binary in enumerate(binaries):
                self.model.add_hint(binary, int(start[module] == row))

    def _cheapest(self, task: int, found: Candidates) -> Candidates:
        """The candidates that put the shared modules or the bytes on tight devices elsewhere than any cheaper one."""
        slots = self.problem.schedules[task].slots
        places = found.rows[:, [slot for slot, module in enumerate(slots) if module in self.there]]
        traits = np.column_stack([places, self._own_bytes(task, found)[:, self.tight]])
        _, first = np.unique(traits, axis=0, return_index=True)  # candidates rise in cost: the first is the cheapest
        return found.only(np.sort(first))

    def _own_bytes(self, task: int, found: Candidates) -> Integers:
        """The memory that each candidate's modules, but for the shared ones, take on each device, (N, D)."""
        used = np.zeros((len(found.rows), len(self.problem.fleet)), dtype=np.int64)
        for slot, module in enumerate(self.problem.schedules[task].slots):
            if module not in self.there:
                rows = found.rows[:, slot]
                used[np.arange(len(used)), rows] += self.problem.sizes[module][rows]
        return used

    def _agree(self, task: int) -> None:
        """Let a task's candidates put a shared module where it is."""
        for slot, module in enumerate(self.problem.schedules[task].slots):
            for row, binary in enumerate(self.there.get(module, ())):
                able = np.flatnonzero(self.candidates[task].rows[:, slot] == row).tolist()
                self.model.add(sum(self.taken[task][number] for number in able) == binary)

    def _fit(self) -> None:
        """Limit each device that could be filled up: the shared modules there, and each task's own of what is taken."""
        own = [self._own_bytes(task, found) for task, found in enumerate(self.candidates)]
        for row in self.tight.tolist():
            used = [(binaries[row], int(self.problem.sizes[module][row])) for module, binaries in self.there.items()]
            for taken, sizes in zip(self.taken, own, strict=True):
                used += [(taken[number], int(sizes[number, row])) for number in np.flatnonzero(sizes[:, row]).tolist()]
            if used:
                room = int(self.problem.fleet.memory_bytes[row])
                self.model.add(sum(binary * size for binary, size in used) <= room)

    def _cost(self) -> None:
        """Minimise the sum of what each task costs more than it could, in steps."""
        costs = [found.costs for found in self.candidates]
        self.least_s = float(sum(known[0] for known in costs))
        most_s = max((float(known[-1] - known[0]) for known in costs), default=0.0)
        self.steps_per_s = STEPS / max(self.least_s, most_s, 1e-300)
        self.model.minimize(
            sum(
                binary * round(float(cost - known[0]) * self.steps_per_s)
                for taken, known in zip(self.taken, costs, strict=True)
                for binary, cost in zip(taken, known, strict=True)
            )
        )


def _cp_model() -> Any:  # noqa: ANN401 - the solver is an extra
    try:
        from ortools.sat.python import cp_model  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise S2M3Error("the exact solver needs OR-Tools, which isn't installed: pip install 's2m3[exact]'") from error
    return cp_model
