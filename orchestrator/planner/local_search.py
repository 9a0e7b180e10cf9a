"""A better placement by small changes: single moves and swaps of two modules.

Owns the changes and their order: the search makes each change that improves the placement, until no change does or the
budget is spent. Knows nothing of clocks, nor of where the first placement came from.

A swap is more than an exchange: a module takes another one's device, and that one goes where it costs least.

Invariants: no device ever holds more than its memory, pinned modules never move, and the total, the objective with its
penalties, only falls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from orchestrator.planner.budget import ASK_EVERY, Budget
from orchestrator.planner.device_rows import Row
from orchestrator.planner.fleet import Integers
from orchestrator.planner.greedy import PartialPlacement

FEW = 16
"""Up to so many devices every one is tried for a module; of more only the cheapest."""
_PROMISING = 8
GAIN = 1e-9
"""Relative: an improvement by less is rounding."""


class LocalSearch:
    """A placement that is being improved: every module has a row, and the kept ones must not move."""

    def __init__(self, draft: PartialPlacement, budget: Budget) -> None:
        """Start from a placement, which is changed."""
        self.draft, self.problem, self.where, self.budget = draft, draft.problem, draft.where, budget
        self.free = [module for module in range(len(self.where)) if module not in draft.kept]
        every = self.problem.fleet.every
        self.allowed = [
            np.array([self.where[module]]) if module in draft.kept else every[~np.isin(every, barred)]
            for module, barred in enumerate(self.problem.barred)
        ]
        self.shares = [self.problem.share(task, self.where) for task in range(len(self.problem.tasks))]

    @property
    def total(self) -> float:
        """The objective with its penalties."""
        return sum(self.shares)

    def run(self) -> None:
        """Improve until nothing does."""
        while not self.budget.over and (self._sweep(self._moved, only_with_room=True) or self._sweep(self._swapped)):
            pass

    def make(self, changes: Mapping[int, Row]) -> None:
        """Make a change."""
        self.draft.put_all(changes)
        for task in self.affected(changes):
            self.shares[task] = self.problem.share(task, self.where)

    def affected(self, changes: Iterable[int]) -> list[int]:
        """The tasks that use any of these modules, ascending."""
        return sorted({task for module in changes for task in self.problem.users[module]})

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
            sizes, home = self.problem.sizes[module], self.where[module]
            added[row] = added.get(row, 0) + int(sizes[row])
            added[home] = added.get(home, 0) - int(sizes[home])
        return all(size <= self.draft.room[row] for row, size in added.items())

    def _gain(self, changes: Mapping[int, Row]) -> float:
        """By how much the total would fall."""
        there = list(self.where)
        for module, row in changes.items():
            there[module] = row
        return sum(self.shares[task] - self.problem.share(task, there) for task in self.affected(changes))

    def _sweep(self, change: Callable[[int, Row], bool], *, only_with_room: bool = False) -> bool:
        """Try a change of each module to each row worth trying; whether any improved."""
        improved = False
        for module in self.free:
            rows = self.allowed[module]
            if only_with_room:
                rows = rows[self.draft.room[rows] >= self.problem.sizes[module][rows]]
            for row in self._worth_trying(module, rows):
                if self.budget.over:
                    return improved
                improved |= row != self.where[module] and change(module, row)
        return improved

    def _moved(self, module: int, row: Row) -> bool:
        return self._tried({module: row})

    def _swapped(self, module: int, row: Row) -> bool:
        """Let a module take the place of another one on this device."""
        short = int(self.problem.sizes[module][row]) - int(self.draft.room[row])
        for other in self.free:
            sizes = self.problem.sizes[other]
            if self.where[other] != row or sizes[row] < short:
                continue
            allowed = self.allowed[other]
            able = allowed[(self.draft.room[allowed] >= sizes[allowed]) | (allowed == self.where[module])]
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
