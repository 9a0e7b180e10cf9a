"""The cheapest choice of one candidate for each task, as far as a bounded search can tell.

Owns the branch and bound over whole tasks (Land and Doig 1960). Candidates exclude each other if they disagree on a
shared module's device, or if they exceed a device's memory together. A branch is cut when it would cost too much even
with the cheapest candidates of all tasks that are left. The search branches on the task with most bytes to place, which
shapes the remaining room most. Knows nothing of where candidates and the first placement came from.

Invariant: a search that is not cut short has found the optimum, within ``GAIN``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.planner.budget import Budget
from orchestrator.planner.candidates import Candidates
from orchestrator.planner.device_rows import Row
from orchestrator.planner.fleet import Flags, Integers
from orchestrator.planner.local_search import GAIN
from orchestrator.planner.problem import Problem

_UNITS_OF_A_BRANCH, _UNITS_OF_A_CHECK = 2, 2
_CHECKS_A_UNIT = 1_000  # candidates x slots that are checked in one unit


class _Choice(NamedTuple):
    """The candidates chosen so far: where their modules are, those of the last one, the room left, and the cost."""

    fixed: dict[int, Row]
    added: dict[int, Row]
    room: Integers
    cost: float


class BranchAndBound:
    """A search for something cheaper than what is known, whose cost is ``best``; it spends ``units`` of the budget."""

    def __init__(self, problem: Problem, *, best: float, units: int, budget: Budget) -> None:
        self.slots = [schedule.slots for schedule in problem.schedules]  # by task: its modules
        self.sizes, self.most, self.budget = problem.sizes, problem.bytes, budget
        self.best, self.reserve = best, budget.left - units
        self.found: dict[int, Row] | None = None

    @property
    def cut_short(self) -> bool:
        """Whether the search ended, or must end, before all was looked at."""
        return self.budget.left < self.reserve or self.budget.over

    def search(self, candidates: Mapping[int, Candidates], room: Integers) -> dict[int, Row] | None:
        """A placement cheaper than the one known, the cheapest if the budget was enough; None if there was none.

        Args:
            candidates: for each task, by number, all that could be in such a placement.
            room: (D,) bytes of each device.
        """
        self._below(candidates, _Choice({}, {}, room, 0.0))
        return self.found

    def _below(self, candidates: Mapping[int, Candidates], made: _Choice) -> None:
        """Choose a candidate for each of these tasks, beside those that were chosen."""
        fixed, added, room, cost = made
        self.budget.spend(_UNITS_OF_A_BRANCH)
        if self.cut_short:
            return
        if not candidates:
            self.best, self.found = cost, dict(fixed)
            return
        bytes_open = {
            task: sum(self.most[module] for module in self.slots[task] if module not in fixed) for task in candidates
        }
        least_room = min((int(room[row]) for row in added.values()), default=0)
        left: dict[int, Candidates] = {}
        for task, known in candidates.items():
            slots = self.slots[task]
            if bytes_open[task] <= least_room and added.keys().isdisjoint(slots):
                left[task] = known  # what was fixed last can't concern it
                continue
            left[task] = known.only(self._possible(slots, known.rows, fixed, room))
            if not len(left[task].costs):
                return
        bound = cost + sum(float(still.costs[0]) for still in left.values())
        if bound >= self.best * (1 - GAIN):
            return
        for task, still in left.items():  # a candidate that even beside the cheapest others costs too much
            slack = self.best * (1 - GAIN) - bound + still.costs[0]
            left[task] = still.only(slice(int(np.searchsorted(still.costs, slack, "left"))))
        task = max(left, key=lambda number: (bytes_open[number], -len(left[number].costs), -number))
        others = bound - float(left[task].costs[0])
        self._branch(task, left, others, made)

    def _branch(self, task: int, candidates: Mapping[int, Candidates], others: float, made: _Choice) -> None:
        """Try each candidate of one task, the cheapest first; ``others`` is the least that all else costs."""
        fixed, room = made.fixed, made.room
        rest = {number: still for number, still in candidates.items() if number != task}
        for rows, share in zip(candidates[task].rows.tolist(), candidates[task].costs.tolist(), strict=True):
            if others + share >= self.best * (1 - GAIN) or self.cut_short:
                return
            added = {module: row for module, row in zip(self.slots[task], rows, strict=True) if module not in fixed}
            room_left = room.copy()
            for module, row in added.items():
                room_left[row] -= self.sizes[module][row]
            self._below(rest, _Choice({**fixed, **added}, added, room_left, made.cost + share))

    def _possible(self, slots: Sequence[int], rows: Integers, fixed: Mapping[int, Row], room: Integers) -> Flags:
        """Which candidates agree with what is fixed, and have the room for the rest."""
        possible = np.ones(len(rows), dtype=np.bool_)
        for slot, module in enumerate(slots):
            if module in fixed:
                possible &= rows[:, slot] == fixed[module]
        open_slots = [(rows[:, slot], self.sizes[module]) for slot, module in enumerate(slots) if module not in fixed]
        for at, sizes in open_slots:
            used = np.zeros(len(rows), dtype=np.int64)
            for there, other in open_slots:
                used += sizes[at] if there is at else np.where(there == at, other[at], 0)
            possible &= used <= room[at]
        self.budget.spend(_UNITS_OF_A_CHECK + len(rows) * len(slots) // _CHECKS_A_UNIT)
        return possible
