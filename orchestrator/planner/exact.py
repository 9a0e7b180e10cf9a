"""The optimal placement, with a proof: the heuristics are measured against it.

Owns the search for it. Each task's assignments that can belong to an optimum come from ``candidates``; ``cp_sat_model``
then takes one of them for every task, so that all tasks put a shared module on one device and no device's memory is
exceeded.

Invariants:
- ``proven`` is true only if no placement is cheaper by more than ``TOLERANCE``;
- ``bound_s`` is never above the optimum, proven or not;
- the objective is the cost model's at the placement returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from broker.protocol.errors import NoDeviceFits, S2M3Error
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.planner.candidates import Candidates, TooManyCandidates, candidates_of, least_s
from orchestrator.planner.cp_sat_model import Chosen, Instance, Options, choose
from orchestrator.planner.fleet import Integers
from orchestrator.planner.placement import Bars, refined
from orchestrator.planner.problem import Problem

TOLERANCE = 1e-10
"""Of the objective: plans are compared to 1e-9, and sums of floats lose less than this."""
MOST_CANDIDATES = 1_000_000
"""Of one task: some 100 MB while they are enumerated."""
LEAST_S = 0.1
"""The solver gets this much even when the time is over: it is enough for a small instance."""


class Undecided(S2M3Error):
    """The time was over before the solver found a placement, or proved that none exists."""

    def __init__(self, time_limit_s: float, bound_s: float) -> None:
        self.time_limit_s = time_limit_s
        self.bound_s = bound_s
        super().__init__(
            f"the solver neither found a placement within {time_limit_s:g} s nor proved that none exists; the "
            f"objective of any placement is at least {bound_s:.6g} s: give it more time, or use the refined solver"
        )


@dataclass(frozen=True)
class Optimum:
    """The best placement found, in seconds; ``bound_s``: no placement is cheaper; ``proven``: this is the optimum."""

    where: Mapping[ModuleKey, DeviceId]
    objective_s: float
    bound_s: float
    proven: bool


def exact(
    devices: Sequence[DeviceSpec],
    tasks: Sequence[TaskSpec],
    *,
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    time_limit_s: float = 60.0,
) -> Optimum:
    """Find the cheapest placement of every module of every task.

    The search starts from the refined placement. It leaves out every candidate of a task that could not be part of a
    cheaper placement even if each other task were as cheap as it can be.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        default_source: where requests of a task start that names no listed source.
        barred: devices that must not get a module.
        time_limit_s: then the best so far is returned, with the bound that is proven.

    Raises:
        NoDeviceFits: no placement exists.
        Undecided: none was found in that time.
        S2M3Error: the solver isn't installed.
    """
    until_s = time.monotonic() + time_limit_s

    def over() -> bool:
        return time.monotonic() > until_s

    search = _Search(Problem(devices, tasks, default_source=default_source, barred=barred))
    best: Mapping[ModuleKey, DeviceId] | None = None
    upper_s = np.inf
    refusal: NoDeviceFits | None = None
    try:
        best = refined(devices, tasks, default_source=default_source, barred=barred, enough=over).where
        upper_s = search.objective_s(best)
    except NoDeviceFits as error:
        refusal = error
    finished = False
    while not finished:
        if not search.enumerate(upper_s, over):
            break
        chosen = search.choose(best, lambda: max(until_s - time.monotonic(), LEAST_S))
        if not chosen.where and chosen.finished and refusal is not None:
            raise refusal
        finished = chosen.finished and best is not None
        search.bound_s = max(search.bound_s, chosen.bound_s * (1 - TOLERANCE))
        if chosen.where and (cost_s := search.objective_s(chosen.where)) < upper_s:
            best, upper_s, refusal = chosen.where, cost_s, None
        if not chosen.finished:
            break
    if best is None:
        raise Undecided(time_limit_s, search.bound_s)
    return Optimum(best, upper_s, upper_s if finished else min(search.bound_s, upper_s), finished)


class _Search:
    """One instance, and what each of its tasks may still choose from."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        fleet = problem.fleet
        self.allowed = [fleet.every[~np.isin(fleet.every, barred)] for barred in problem.barred]  # by module
        self.candidates: list[Candidates] = []  # by task
        self.least_s = [
            task.weight * least_s(schedule, self._allowed(number))
            for number, (task, schedule) in enumerate(zip(problem.tasks, problem.schedules, strict=True))
        ]
        self.bound_s = sum(self.least_s) * (1 - TOLERANCE)

    def objective_s(self, where: Mapping[ModuleKey, DeviceId]) -> float:
        """The objective of a placement."""
        problem = self.problem
        return problem.objective([problem.fleet.rows[where[key]] for key in problem.keys])

    def enumerate(self, upper_s: float, over: Callable[[], bool]) -> bool:
        """List what each task may choose from; False if that is too much, or the time is over."""
        problem, found = self.problem, list[Candidates]()
        try:
            for number, schedule in enumerate(problem.schedules):
                if over():
                    return False
                sizes = [problem.bytes[module] for module in schedule.slots]
                allowed, free = self._allowed(number), [None] * len(sizes)
                limit_s = self._limit_s(number, upper_s)
                found.append(candidates_of(schedule, allowed, free, sizes, limit_s, most=MOST_CANDIDATES))
                self._learn(number, found[number])
        except TooManyCandidates:
            return False
        before = -1
        while before != (before := sum(len(known.costs) for known in found)):
            for number, known in enumerate(found):
                found[number] = known.up_to(self._limit_s(number, upper_s))
                self._learn(number, found[number])
        self.candidates = found
        self.bound_s = max(self.bound_s, sum(self.least_s) * (1 - TOLERANCE))
        return True

    def choose(self, start: Mapping[ModuleKey, DeviceId] | None, left_s: Callable[[], float]) -> Chosen:
        """Take one of its candidates for every task."""
        problem = self.problem
        sizes = dict(zip(problem.keys, problem.bytes, strict=True))
        shared = {problem.keys[module] for module, users in enumerate(problem.users) if len(users) > 1}
        room = problem.fleet.memory_bytes
        tight = room < sum(problem.bytes)
        options = {
            task.task: Options([problem.keys[module] for module in schedule.slots], found).cheapest(
                shared, tight, sizes
            )
            for task, schedule, found in zip(problem.tasks, problem.schedules, self.candidates, strict=True)
        }
        devices = [device.id for device in problem.fleet.specs]
        return choose(Instance(options, shared, sizes, room, devices), start, left_s)

    def _allowed(self, task: int) -> list[Integers]:
        """The rows that may have each slot of a task."""
        return [self.allowed[module] for module in self.problem.schedules[task].slots]

    def _learn(self, task: int, found: Candidates) -> None:
        if len(found.costs):
            self.least_s[task] = float(found.costs[0])

    def _limit_s(self, task: int, upper_s: float) -> float:
        """The cost beyond which the other tasks, each as cheap as it can be, don't make up for this one."""
        return float(upper_s * (1 + TOLERANCE) - sum(self.least_s[:task]) - sum(self.least_s[task + 1 :]))
