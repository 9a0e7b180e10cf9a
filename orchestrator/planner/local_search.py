"""A better placement by small changes: single moves and swaps of two modules.

Owns the changes and their order: the search makes each change that improves the placement, until no change does or the
budget is spent. Knows nothing of clocks, nor of where the first placement came from.

A swap is more than an exchange: a module takes another one's device, and that one goes where it costs least.

Invariants: no device ever holds more than its memory, pinned modules never move, and the total, the objective with its
penalties, only falls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from orchestrator.planner.budget import ASK_EVERY, GAIN, Budget
from orchestrator.planner.fleet import Integers, Row
from orchestrator.planner.problem import Problem, Where

FEW = 16
"""Up to so many devices every one is tried for a module; of more only the cheapest."""
_PROMISING = 8


class LocalSearch:
    """A placement that is being improved."""

    def __init__(self, problem: Problem, where: Where, pinned: Collection[int], budget: Budget) -> None:
        """Start from a placement in which every module has a row.

        Args:
            problem: what is planned.
            where: the rows; they are copied.
            pinned: modules that must not move.
            budget: how much may be looked at.
        """
        self.problem, self.budget = problem, budget
        self.where = list(where)
        self.room = problem.fleet.memory_bytes.copy()
        for module, row in enumerate(where):
            self.room[row] -= problem.bytes[module]
        self.free = [module for module in range(len(where)) if module not in pinned]
        every = np.array([*problem.fleet.rows.values()], dtype=np.int64)
        self.allowed = [
            np.array([where[module]]) if module in pinned else every[~np.isin(every, barred)]
            for module, barred in enumerate(problem.barred)
        ]
        self.shares = [self._share(task) for task in range(len(problem.tasks))]

    @property
    def total(self) -> float:
        """The objective with its penalties."""
        return sum(self.shares)

    def run(self) -> None:
        """Improve until nothing does."""
        while not self.budget.over and (self._moves() or self._swaps()):
            pass

    def make(self, changes: Mapping[int, Row]) -> None:
        """Make a change."""
        problem = self.problem
        for module, row in changes.items():
            self.room[self.where[module]] += problem.bytes[module]
            self.room[row] -= problem.bytes[module]
            self.where[module] = row
        for task in {task for module in changes for task in problem.users[module]}:
            self.shares[task] = self._share(task)

    def promising(self, module: int) -> Integers:
        """The rows worth trying for a module in any combination: of many devices those that look cheapest."""
        allowed = self.allowed[module]
        if len(allowed) <= FEW:
            return allowed
        bounds, _ = self.problem.bounds(module, self.where)
        best = allowed[np.argsort(bounds[allowed], kind="stable")[:_PROMISING]]
        together = [
            self.where[slot] for task in self.problem.users[module] for slot in self.problem.schedules[task].slots
        ]
        near = np.intersect1d(together, allowed)[:_PROMISING]
        return np.unique([*best.tolist(), *near.tolist(), self.where[module]])

    def _share(self, task: int) -> float:
        """A task's share of the total. A module's penalty counts for the first of its tasks."""
        problem = self.problem
        share = problem.tasks[task].weight * problem.latency_s(task, self.where)
        for module in problem.schedules[task].slots:
            if problem.relocation_penalty_s[module] and problem.users[module][0] == task:
                share += problem.penalty(module, self.where[module])
        return share

    def _tried(self, changes: Mapping[int, Row]) -> bool:
        """Make the change if it fits and improves."""
        self.budget.spend()
        if self._fits(changes) and self._gain(changes) > GAIN * self.total:
            self.make(changes)
            return True
        return False

    def _fits(self, changes: Mapping[int, Row]) -> bool:
        """Whether the devices have the memory; each may get its module."""
        added: dict[Row, int] = {}
        for module, row in changes.items():
            size = self.problem.bytes[module]
            added[row] = added.get(row, 0) + size
            added[self.where[module]] = added.get(self.where[module], 0) - size
        return all(size <= self.room[row] for row, size in added.items())

    def _gain(self, changes: Mapping[int, Row]) -> float:
        """By how much the total would fall."""
        before = {module: self.where[module] for module in changes}
        tasks = {task for module in changes for task in self.problem.users[module]}
        for module, row in changes.items():
            self.where[module] = row
        gain = sum(self.shares[task] - self._share(task) for task in sorted(tasks))
        for module, row in before.items():
            self.where[module] = row
        return gain

    def _moves(self) -> bool:
        improved = False
        for module in self.free:
            able = self.allowed[module][self.room[self.allowed[module]] >= self.problem.bytes[module]]
            for row in self._worth_trying(module, able):
                if self.budget.over:
                    return improved
                improved |= row != self.where[module] and self._tried({module: row})
        return improved

    def _swaps(self) -> bool:
        improved = False
        for module in self.free:
            for row in self._worth_trying(module, self.allowed[module]):
                if self.budget.over:
                    return improved
                improved |= row != self.where[module] and self._swapped(module, row)
        return improved

    def _swapped(self, module: int, row: Row) -> bool:
        """Let a module take the place of another one on this device."""
        short = self.problem.bytes[module] - int(self.room[row])
        for other in self.free:
            if self.where[other] != row or self.problem.bytes[other] < short:
                continue
            allowed = self.allowed[other]
            able = allowed[(self.room[allowed] >= self.problem.bytes[other]) | (allowed == self.where[module])]
            for away in self._worth_trying(other, able):
                if self.budget.over:
                    return False
                if away != row and self._tried({module: row, other: away}):
                    return True
        return False

    def _worth_trying(self, module: int, rows: Integers) -> Iterable[Row]:
        if len(rows) <= FEW:
            return [int(row) for row in rows]
        self.budget.spend(ASK_EVERY)
        return [self.problem.cheapest(module, rows, self.where)]
