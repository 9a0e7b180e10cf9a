"""A search for any placement that fits into the devices' memory, however slow its tasks would be.

Owns the packing of sizes into rooms: complete for small problems, bounded by a number of steps for large ones. Knows
nothing of latency.

The search goes depth first, with the largest module first and the best fit first. It leaves a branch when the remaining
modules need more than the rooms that can still take one. It never tries two equal rooms, nor a state that failed
before. (After Martello and Toth, "Knapsack Problems", 1990, chapter 8.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate

from orchestrator.planner.budget import Budget

STEPS = 200_000
"""How many rooms are looked at before the search gives up; some tenths of a second."""
STEPS_FOR_A_CHANGE = 50_000
"""The same, for the smallest change that would make all fit."""
_STEPS_IN_ANY_CASE = 2_000  # a millisecond or two, though the budget is spent
_STEPS_A_UNIT = 10


class SearchLimitReached(Exception):
    """The search found neither a packing nor a proof that none exists within its steps."""


def packed(
    sizes: Sequence[Sequence[int]],
    rooms: Sequence[int],
    barred: Sequence[Collection[int]],
    *,
    steps: int = STEPS,
    budget: Budget | None = None,
) -> list[int] | None:
    """Put every size into a room.

    Args:
        sizes: for each module its bytes in each room.
        rooms: bytes of each device.
        barred: for each module the rooms that must not get it.
        steps: how long to search.
        budget: ends the search, too, but for a few steps.

    Returns:
        For each module its room, or None: no way to fit all exists.

    Raises:
        SearchLimitReached: the steps were not enough to tell.
    """
    if sum(min(each, default=0) for each in sizes) > sum(rooms):
        return None
    return _Search(sizes, rooms, barred, steps, budget or Budget()).run()


def least_extra(
    sizes: Sequence[Sequence[int]],
    rooms: Sequence[int],
    barred: Sequence[Collection[int]],
    *,
    budget: Budget | None = None,
) -> tuple[int, int] | None:
    """The smallest change that makes all fit: which room, and how many bytes more. The arguments are as in ``packed``.

    If ``STEPS_FOR_A_CHANGE`` or the budget are not enough, the change makes all fit, but may not be the smallest.

    Returns:
        None when more memory in one room is not enough: a module is barred everywhere, or there are no rooms; or when
        none was found in time.
    """
    budget = budget or Budget()
    best: tuple[int, int] | None = None
    steps = STEPS_FOR_A_CHANGE
    for room in sorted(range(len(rooms)), key=lambda room: -rooms[room]):
        low = 0  # not enough
        high = best[1] if best else sum(each[room] for each in sizes) + 1  # enough, or no better than what is known
        ask = high - 1  # first whether this room is better than the best at all: most aren't
        while high - low > 1 and steps > 0 and not budget.over:
            search = _Search(sizes, [*rooms[:room], rooms[room] + ask, *rooms[room + 1 :]], barred, steps, budget)
            try:
                found = search.run()
            except SearchLimitReached:
                found = None
            steps = search.steps
            if found is None:
                low = ask
            else:
                used = sum(each[room] for each, there in zip(sizes, found, strict=True) if there == room)
                high = max(low + 1, used - rooms[room])
                best = (room, high)
            ask = (low + high) // 2
    return best


class _Search:
    def __init__(
        self,
        sizes: Sequence[Sequence[int]],
        rooms: Sequence[int],
        barred: Sequence[Collection[int]],
        steps: int,
        budget: Budget,
    ) -> None:
        most, least = [max(each, default=0) for each in sizes], [min(each, default=0) for each in sizes]
        self.order = sorted(range(len(sizes)), key=lambda item: (-most[item], -len(barred[item]), item))
        self.sizes = [sizes[item] for item in self.order]
        self.barred = [frozenset(barred[item]) for item in self.order]
        in_order = [least[item] for item in self.order]
        self.left = [*reversed([*accumulate(reversed(in_order))]), 0]  # least bytes of this item and all after it
        self.least = [*reversed([*accumulate(reversed(in_order), min)])]  # of any of them
        self.rooms = list(rooms)
        alike = [in_order[item] == most[at] for item, at in enumerate(self.order)]  # whether all rooms are
        some = [
            (bars, same, each)
            for bars, same, each in zip(self.barred, alike, self.sizes, strict=True)
            if bars or not same
        ]
        kinds = [
            tuple((room in bars, 0 if same else each[room]) for bars, same, each in some) for room in range(len(rooms))
        ]
        number = {kind: position for position, kind in enumerate(dict.fromkeys(kinds))}
        self.kinds = [number[kind] for kind in kinds]  # rooms of one kind take the same modules in as many bytes
        self.steps, self.budget = steps, budget
        self.in_any_case = steps - _STEPS_IN_ANY_CASE  # what is left of the steps then
        self.failed: set[tuple[int, tuple[tuple[int, int], ...]]] = set()
        self.found = [-1] * len(sizes)  # in the order of the arguments

    def run(self) -> list[int] | None:
        return self.found if self._from(0) else None

    def _from(self, item: int) -> bool:
        """Put this item and all after it."""
        if item == len(self.sizes):
            return True
        self.steps -= len(self.rooms)
        self.budget.spend(1 + len(self.rooms) // _STEPS_A_UNIT)
        if self.steps < 0 or (self.steps < self.in_any_case and self.budget.over):
            raise SearchLimitReached
        least = self.least[item]
        if self.left[item] > sum(room for room in self.rooms if room >= least):
            return False
        state = (item, tuple(sorted(zip(self.kinds, self.rooms, strict=True))))
        if state in self.failed:
            return False
        sizes, bars = self.sizes[item], self.barred[item]
        choices = {
            (left - sizes[room], self.kinds[room]): room
            for room, left in reversed([*enumerate(self.rooms)])
            if left >= sizes[room] and room not in bars
        }
        for _, room in sorted(choices.items()):
            self.rooms[room] -= sizes[room]
            self.found[self.order[item]] = room
            if self._from(item + 1):
                return True
            self.rooms[room] += sizes[room]
        self.failed.add(state)
        return False
