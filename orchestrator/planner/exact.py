"""The optimal placement, with a proof: the heuristics are measured against it.

Owns the search for it. Each task's assignments that can belong to an optimum come from ``candidates``; ``cp_sat_model``
then takes one of them for every task, so that all tasks put a shared module on one device and no device's memory is
exceeded.

Invariants:
- as few modules as possible have their only copy on a device that is on only sometimes;
- ``proven`` is true only if no such placement is cheaper by more than ``TOLERANCE``;
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
from orchestrator.planner.copies import Bars
from orchestrator.planner.cp_sat_model import choose
from orchestrator.planner.placement import refined
from orchestrator.planner.problem import Problem, Where

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
    barred: Bars | None = None,
    time_limit_s: float = 60.0,
) -> Optimum:
    """Find the cheapest placement of every module of every task.

    The search starts from the refined placement. It leaves out every candidate of a task that could not be part of a
    cheaper placement even if each other task were as cheap as it can be.

    After ``time_limit_s`` it returns the best so far, with the bound that is proven. The other arguments are those of
    ``placement.refined``.

    Raises:
        NoDeviceFits: no placement exists.
        Undecided: none was found in that time.
        S2M3Error: the solver isn't installed.
    """
    until_s = time.monotonic() + time_limit_s

    def over() -> bool:
        return time.monotonic() > until_s

    search = _Search(Problem(devices, tasks, barred=barred))
    problem = search.problem
    best: Where | None = None
    upper_s = np.inf
    refusal: NoDeviceFits | None = None
    try:
        found = refined(devices, tasks, barred=barred, enough=over).where
        best = [problem.fleet.rows[found[key]] for key in problem.keys]
        upper_s = problem.objective(best)
    except NoDeviceFits as error:
        refusal = error
    finished = False
    while not finished and (candidates := search.candidates(upper_s, over)) is not None:
        chosen = choose(problem, candidates, best, lambda: max(until_s - time.monotonic(), LEAST_S))
        if chosen.where is None and chosen.finished and refusal is not None:
            raise refusal
        finished = chosen.finished and best is not None
        search.bound_s = max(search.bound_s, chosen.bound_s * (1 - TOLERANCE))
        if chosen.where is not None and (cost_s := problem.objective(chosen.where)) < upper_s:
            best, upper_s, refusal = chosen.where, cost_s, None
        if not chosen.finished:
            break
    if best is None:
        raise Undecided(time_limit_s, search.bound_s)
    placement, penalties_s = problem.placement(best), sum(map(problem.penalty, range(len(best)), best))
    bound_s = placement.objective_s if finished else max(0.0, min(search.bound_s, upper_s) - penalties_s)
    return Optimum(placement.where, placement.objective_s, bound_s, finished)


class _Search:
    """One instance, the least that each of its tasks can cost, and the bound of the objective that is known."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        every = problem.fleet.every
        by_module = [every[~np.isin(every, barred)] for barred in problem.barred]
        self._allowed = [[by_module[module] for module in schedule.slots] for schedule in problem.schedules]  # by task
        self._least_s = [
            schedule.task.weight * least_s(schedule, allowed)
            for schedule, allowed in zip(problem.schedules, self._allowed, strict=True)
        ]
        self.bound_s = sum(self._least_s) * (1 - TOLERANCE)

    def candidates(self, upper_s: float, over: Callable[[], bool]) -> list[Candidates] | None:
        """The candidates of each task; None if that is too much, or the time is over."""
        found: list[Candidates] = []
        try:
            for task, schedule in enumerate(self.problem.schedules):
                if over():
                    return None
                sizes = [self.problem.sizes[module] for module in schedule.slots]
                own = self.problem.penalised[task]
                penalties = [self.problem.penalties(module) if module in own else None for module in schedule.slots]
                limit_s, allowed = self._limit_s(task, upper_s), self._allowed[task]
                found.append(candidates_of(schedule, allowed, penalties, sizes, limit_s, most=MOST_CANDIDATES))
                self._learn(task, found[task])
        except TooManyCandidates:
            return None
        before = -1
        while before != (before := sum(len(known.costs) for known in found)):
            for task, known in enumerate(found):
                found[task] = known.up_to(self._limit_s(task, upper_s))
                self._learn(task, found[task])
        self.bound_s = max(self.bound_s, sum(self._least_s) * (1 - TOLERANCE))
        return found

    def _learn(self, task: int, found: Candidates) -> None:
        if len(found.costs):
            self._least_s[task] = float(found.costs[0])

    def _limit_s(self, task: int, upper_s: float) -> float:
        """The cost beyond which the other tasks, each as cheap as it can be, don't make up for this one."""
        return float(upper_s * (1 + TOLERANCE) - sum(self._least_s[:task]) - sum(self._least_s[task + 1 :]))
