"""A better placement than the greedy one: the search that the orchestrator uses.

Owns the order of its stages: the greedy rule; packing, where that rule finds no room; small changes while they improve;
a bounded search tree over all tasks, which on small problems ends with the optimum; else one over groups of tasks (a
large neighbourhood search: Shaw 1998). Knows nothing of clocks: the caller's ``enough`` may end it earlier. It never
ends with less than the greedy rule found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations, islice

import numpy as np

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.planner.descent import FEW, GAIN, Budget, Descent
from orchestrator.planner.fleet import NOWHERE, Fleet, Floats, Integers
from orchestrator.planner.greedy import Board, greedy
from orchestrator.planner.packing import STEPS, GaveUp, least_extra
from orchestrator.planner.problem import AtHand, Bars, Placement, Problem
from orchestrator.planner.tree import Tree
from orchestrator.planner.ways import TooManyWays, Ways, ways_of

WORK = 120_000
"""What the search may cost, in units of about 10 microseconds: a second."""
_WORK_ON_ALL = 90_000  # of that, on all tasks together
_WORK_ON_A_GROUP = 3_000
_TOGETHER = 3  # tasks of the largest group that is placed anew
_GROUPS = 5_000  # of one size at most; the work ends before
_UNITS_OF_WAYS = 20  # what it costs to enumerate the ways of a task, and how many ways or devices cost one more
_WAYS_A_UNIT = 10


def never() -> bool:
    """The clock of a caller who has all the time."""
    return False


def refined(
    devices: Sequence[DeviceSpec] | Fleet,
    tasks: Sequence[TaskSpec],
    *,
    keep: Mapping[ModuleKey, DeviceId] | None = None,
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    enough: Callable[[], bool] = never,
) -> Placement:
    """Place every module of every task, at an objective not above the greedy rule's.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        keep: as for ``place``.
        default_source: as for ``place``.
        barred: as for ``place``.
        at_hand: as for ``place``. Then what is not above the greedy rule's is the objective with its penalties.
        enough: whether the caller's time is over; it only ends the search earlier.

    Raises:
        NoDeviceFits: there is no way to fit all beside what is kept.
    """
    problem = Problem(devices, tasks, default_source=default_source, barred=barred, at_hand=at_hand)
    board = Board(problem)
    board.keep(keep or {})
    try:
        fill(board)
    except NoDeviceFits as refusal:
        raise refusal.after(least_change(board)) from None
    return improved(board, enough)


def fill(board: Board) -> None:
    """Place what has no device yet: by the greedy rule, or where that finds no room, by packing.

    Raises:
        NoDeviceFits: there is no way to fit all beside what the board already holds; the board is as before.
    """
    missing = board.missing
    try:
        greedy(board)
    except NoDeviceFits as refusal:
        for module in missing:
            board.put(module, NOWHERE)
        try:
            rows = board.packing(steps=STEPS)
        except GaveUp:
            rows = None
        if rows is None:
            raise refusal from None
        for module, row in zip(missing, rows, strict=True):
            board.put(module, row)


def improved(board: Board, enough: Callable[[], bool]) -> Placement:
    """The best placement that the search finds from a full board; what the board keeps stays."""
    descent = Descent(board.problem, board.where, board.kept, Budget(WORK, enough))
    descent.run()
    again = _Again(descent)
    if not again.placed(range(len(board.problem.tasks)), _WORK_ON_ALL):
        again.groups()
    return board.problem.placement(descent.where, board.kept)


def least_change(board: Board) -> tuple[DeviceId, int] | None:
    """The least change that makes all fit beside what the board already holds: which device, how many bytes more."""
    problem, missing = board.problem, board.missing
    sizes = [problem.bytes[module] for module in missing]
    extra = least_extra(sizes, board.room.tolist(), [problem.barred[module] for module in missing])
    return (problem.fleet.specs[extra[0]].id, extra[1]) if extra else None


class _Again:
    """Tasks that are placed anew, all their modules together, as well as can be."""

    def __init__(self, descent: Descent) -> None:
        self.descent = descent
        self.least: dict[int, float] = {}  # by task: its share were it alone on the fleet
        self.options: dict[int, Integers] = {}  # by module: the rows that are looked at
        self.certain = all(len(rows) <= FEW for rows in descent.allowed)  # else some ways are not looked at

    def groups(self) -> None:
        """Place one task after the other anew, then pairs, then larger groups, until none gets better by it."""
        descent = self.descent
        for size in range(1, _TOGETHER + 1):
            # those first that are farthest from what they could have alone
            gaps = [self.least.get(task, 0.0) - share for task, share in enumerate(descent.shares)]
            order = sorted(range(len(gaps)), key=lambda task: (gaps[task], task))
            groups = [*islice(combinations(order, size), _GROUPS)]
            since = 0  # groups looked at since the last that improved
            while since < len(groups):
                for group in groups:
                    if descent.budget.over or since == len(groups):
                        break
                    before = descent.total
                    self.placed(group, _WORK_ON_A_GROUP)
                    since = 0 if descent.total < before else since + 1
                if descent.budget.over:
                    return

    def placed(self, tasks: Collection[int], units: int) -> bool:
        """Place all modules of these tasks as well as can be, the others staying where they are.

        Returns:
            Whether it is certain that there is no better way.
        """
        descent, problem = self.descent, self.descent.problem
        free = {module for task in tasks for module in problem.timings[task].slots}
        affected = sorted({task for module in free for task in problem.users[module]})
        total = sum(descent.shares[task] for task in affected)
        try:
            least = {task: self._least(task, free) for task in affected}
            slack = total - sum(least.values())
            if slack <= GAIN * total:
                return self.certain
            ways = {task: self._ways(task, free, least[task] + slack) for task in affected}
        except TooManyWays:
            return False
        slots = {task: problem.timings[task].slots for task in affected}
        room = descent.room.copy()
        for module in {module for task in affected for module in slots[task]}:
            room[descent.where[module]] += problem.bytes[module]
        tree = Tree(slots, problem.bytes, room, best=total, units=units, budget=descent.budget)
        found = tree.search(ways)
        if found:
            descent.make(found)
        return self.certain and not tree.cut_short

    def _least(self, task: int, free: set[int]) -> float:
        """A task's least share while only these modules move."""
        if not free.issuperset(self.descent.problem.timings[task].slots):
            return float(self._ways(task, free, self.descent.shares[task]).costs[0])
        if task not in self.least:
            self.least[task] = float(self._ways(task, free, self.descent.shares[task]).costs[0])
        return self.least[task]

    def _ways(self, task: int, free: set[int], limit: float) -> Ways:
        """The ways of a task up to a limit. A module's penalty counts for the first of its tasks."""
        descent, problem = self.descent, self.descent.problem
        if descent.budget.over:
            raise TooManyWays
        timing = problem.timings[task]
        penalties: list[Floats | None] = []
        for module in timing.slots:
            penalty = None
            if problem.leaving[module] and problem.users[module][0] == task:
                penalty = problem.penalties(module)
            penalties.append(penalty)
        for module in free.intersection(timing.slots) - self.options.keys():
            self.options[module] = descent.promising(module)
        allowed = [
            self.options[module] if module in free else np.array([descent.where[module]]) for module in timing.slots
        ]
        sizes = [problem.bytes[module] for module in timing.slots]
        found = ways_of(timing, allowed, penalties, sizes, limit * (1 + GAIN))
        descent.budget.spend(_UNITS_OF_WAYS + (len(found.costs) + len(problem.fleet)) // _WAYS_A_UNIT)
        return found
