"""The ways to put one task's modules on devices that are quick enough to matter, each with what it costs.

Owns their enumeration: node by node, and a way is left as soon as a lower bound says that it is too slow. Knows nothing
of other tasks, nor of how one way a task is chosen.

Shapes: N ways, K slots of the task, D rows of the fleet. Costs are weighted seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.planner.fleet import Floats, Integers
from orchestrator.planner.timing import Timing

MOST_WAYS = 40_000
"""So many ways of one task are compared at most: some ten milliseconds."""


class TooManyWays(Exception):
    """One task has more ways than are compared."""


@dataclass(frozen=True)
class Ways:
    """Ways by rising cost."""

    rows: Integers  # (N, K)
    costs: Floats  # (N,)

    def only(self, which: Integers | slice | np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Ways:
        """Some of them."""
        return Ways(self.rows[which], self.costs[which])


def ways_of(
    timing: Timing, allowed: Sequence[Integers], penalties: Sequence[Floats | None], sizes: Sequence[int], limit: float
) -> Ways:
    """Every way whose cost is at most ``limit``, if its modules alone fit.

    Args:
        timing: the task.
        allowed: for each slot the rows that may have it.
        penalties: for each slot what each row costs besides, (D,), or None.
        sizes: bytes of each slot.
        limit: the cost beyond which nothing matters.

    Raises:
        TooManyWays: there are more than ``MOST_WAYS``.
    """
    weight, fleet = timing.task.weight, timing.fleet
    tails = _tails_s(timing, allowed)
    rows: dict[int, Integers] = {}  # by slot: (N,)
    finish: dict[int, Floats] = {}  # by node: (N,)
    for node in timing.order:
        slot = timing.slot_of[node]
        if slot not in rows:
            count, options = len(next(iter(rows.values()))) if rows else 1, allowed[slot]
            if count * len(options) > MOST_WAYS * 4:
                raise TooManyWays
            again = np.repeat(np.arange(count), len(options))
            rows = {known: there[again] for known, there in rows.items()}
            finish = {known: there[again] for known, there in finish.items()}
            rows[slot] = np.tile(options, count)
        at = rows[slot]
        ready = timing.entries_s(node, at)
        for need in timing.needs[node]:
            ready = np.maximum(ready, finish[need] + timing.hops_s(need, rows[timing.slot_of[need]], at))
        finish[node] = ready + fleet.compute_s(timing.names[node], timing.specs[node])[at]
        if node in tails:
            good = weight * (finish[node] + tails[node][at]) <= limit
            rows = {known: there[good] for known, there in rows.items()}
            finish = {known: there[good] for known, there in finish.items()}
    return _finished(timing, [rows[slot] for slot in range(len(timing.slots))], penalties, sizes, limit)


def _finished(
    timing: Timing, rows: Sequence[Integers], penalties: Sequence[Floats | None], sizes: Sequence[int], limit: float
) -> Ways:
    table = np.column_stack(rows)
    room = timing.fleet.memory_bytes
    fits = np.ones(len(table), dtype=np.bool_)
    for at in rows:
        used = np.zeros(len(table), dtype=np.int64)
        for there, size in zip(rows, sizes, strict=True):
            used += np.where(there == at, size, 0)
        fits &= used <= room[at]
    table = table[fits]
    if len(table) > MOST_WAYS:
        raise TooManyWays
    if not len(table):
        return Ways(table, np.zeros(0))
    costs = timing.task.weight * timing.latencies_s([table[:, slot] for slot in range(len(sizes))])
    for slot, penalty in enumerate(penalties):
        if penalty is not None:
            costs = costs + penalty[table[:, slot]]
    order = np.argsort(costs, kind="stable")
    return Ways(table[order], costs[order]).only(slice(int(np.searchsorted(costs[order], limit, "right"))))


def _tails_s(timing: Timing, allowed: Sequence[Integers]) -> dict[int, Floats]:
    """For each node that the answer waits for: the least seconds from its end on each row to the answer, (D,)."""
    every = np.arange(len(timing.fleet.specs))
    tails = {timing.output: timing.answers_s(every)}
    for node in reversed(timing.order):
        if node not in tails:
            continue
        options = allowed[timing.slot_of[node]]
        onward = timing.fleet.compute_s(timing.names[node], timing.specs[node]) + tails[node]
        if len(every) * len(options) > MOST_WAYS * 4:
            raise TooManyWays
        for need in timing.needs[node]:
            hop = timing.hops_s(need, every[:, None], options[None, :])
            least = (hop + onward[options]).min(axis=1)
            tails[need] = np.maximum(tails[need], least) if need in tails else least
    return tails
