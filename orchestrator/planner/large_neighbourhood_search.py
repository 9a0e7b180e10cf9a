"""A better placement by placing whole tasks again: all at once, or group by group.

Owns the choice of the groups (a large neighbourhood search: Shaw 1998). Each group is placed by branch and bound over
its tasks' candidates. Knows nothing of how the first placement was found.

Invariant: the total, the objective with its penalties, only falls.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations, cycle, islice

import numpy as np

from orchestrator.planner.branch_and_bound import BranchAndBound
from orchestrator.planner.candidates import Candidates, TooManyCandidates, candidates_of
from orchestrator.planner.fleet import Integers
from orchestrator.planner.local_search import FEW, GAIN, LocalSearch

_WORK_ON_ALL = 90_000  # units of the budget, on all tasks together
_WORK_ON_A_GROUP = 3_000
_TOGETHER = 3  # tasks of the largest group
_GROUPS = 5_000  # of one size at most; the work ends before
_UNITS_OF_A_TASK = 20  # what it costs to enumerate the candidates of a task
_UNITS_OF_TOO_MANY = 2_000  # to find out that there are too many
_CANDIDATES_A_UNIT = 10  # how many candidates or devices cost one more


class LargeNeighbourhoodSearch:
    """The improvement of a placement, which a local search has ended on."""

    def __init__(self, search: LocalSearch) -> None:
        self.search = search
        self.least: dict[int, float] = {}  # by task: its share if it were alone on the fleet
        self.options: dict[int, Integers] = {}  # by module: the rows that are looked at
        self.certain = all(len(rows) <= FEW for rows in search.allowed)  # else some candidates are not looked at

    def run(self) -> None:
        """Improve until nothing does, or the budget is spent."""
        if not self.place_again(range(len(self.search.problem.tasks)), _WORK_ON_ALL):
            self._groups()

    def _groups(self) -> None:
        """Place each task again, then each pair, then larger groups, until none of them gains by it."""
        search = self.search
        for size in range(1, _TOGETHER + 1):
            # those first that are farthest from what they could have alone
            gaps = [self.least.get(task, 0.0) - share for task, share in enumerate(search.shares)]
            order = sorted(range(len(gaps)), key=lambda task: (gaps[task], task))
            groups = [*islice(combinations(order, size), _GROUPS)]
            since = 0  # groups looked at since the last that improved
            for group in cycle(groups):
                if search.budget.over:
                    return
                if since == len(groups):
                    break
                before = search.total
                self.place_again(group, _WORK_ON_A_GROUP)
                since = 0 if search.total < before else since + 1

    def place_again(self, tasks: Collection[int], units: int) -> bool:
        """Place all modules of these tasks as well as ``units`` of work allow; the others stay where they are.

        Returns:
            Whether no better placement of them exists, for certain.
        """
        search, problem = self.search, self.search.problem
        free = {module for task in tasks for module in problem.schedules[task].slots}
        affected = search.affected(free)
        total = sum(search.shares[task] for task in affected)
        try:
            least = {task: self._least(task, free) for task in affected}
            slack = total - sum(least.values())
            if slack <= GAIN * total:
                return self.certain
            candidates = {task: self._candidates(task, free, least[task] + slack) for task in affected}
        except TooManyCandidates:
            return False
        room = search.draft.room.copy()
        for module in {module for task in affected for module in problem.schedules[task].slots}:
            room[search.where[module]] += problem.sizes[module][search.where[module]]
        tree = BranchAndBound(problem, best=total, units=units, budget=search.budget)
        if found := tree.search(candidates, room):
            search.make(found)
        return self.certain and not tree.cut_short

    def _least(self, task: int, free: set[int]) -> float:
        """A task's least share while only these modules move."""
        if not free.issuperset(self.search.problem.schedules[task].slots):
            return float(self._candidates(task, free, self.search.shares[task]).costs[0])
        if task not in self.least:
            self.least[task] = float(self._candidates(task, free, self.search.shares[task]).costs[0])
        return self.least[task]

    def _candidates(self, task: int, free: set[int], limit: float) -> Candidates:
        """The candidates of a task up to a limit. A module's penalty counts for the first of its tasks."""
        search, problem = self.search, self.search.problem
        if search.budget.over:
            raise TooManyCandidates
        schedule = problem.schedules[task]
        movable = {
            module
            for module in problem.penalised[task]
            if module in free or problem.penalty(module, search.where[module])
        }
        penalties = [problem.penalties(module) if module in movable else None for module in schedule.slots]
        for module in free.intersection(schedule.slots) - self.options.keys():
            self.options[module] = search.promising(module)
        allowed = [
            self.options[module] if module in free else np.array([search.where[module]]) for module in schedule.slots
        ]
        sizes = [problem.sizes[module] for module in schedule.slots]
        try:
            found = candidates_of(schedule, allowed, penalties, sizes, limit * (1 + GAIN))
        except TooManyCandidates:
            search.budget.spend(_UNITS_OF_TOO_MANY)
            raise
        search.budget.spend(_UNITS_OF_A_TASK + (len(found.costs) + len(problem.fleet)) // _CANDIDATES_A_UNIT)
        return found
