"""The assignments of one task's modules to devices that are fast enough to matter, each with what it costs.

Owns their enumeration: partial assignments grow module by module, and one is dropped as soon as its lower bound is too
slow, or its modules alone exceed a device's memory. Knows nothing of other tasks, nor of how one assignment a task is
chosen.

Invariant: a lower bound is never above the cost of any completion. It is the longest path of the graph, with every node
that isn't placed yet where that path is shortest, and no waiting for a busy device.

Shapes: N candidates, K slots of the task, D rows of the fleet. Costs are weighted seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.planner.fleet import Flags, Floats, Integers
from orchestrator.planner.schedule import TaskSchedule

MOST_CANDIDATES = 40_000
"""So many candidates of one task are compared at most: some ten milliseconds."""


class TooManyCandidates(Exception):
    """One task has more candidates than are compared."""


@dataclass(frozen=True)
class Candidates:
    """The assignments of one task, by rising cost."""

    rows: Integers  # (N, K)
    costs: Floats  # (N,)

    def only(self, which: Integers | Flags | slice) -> Candidates:
        """Some of them."""
        return Candidates(self.rows[which], self.costs[which])

    def up_to(self, limit: float) -> Candidates:
        """Those whose cost is at most ``limit``."""
        return self.only(slice(int(np.searchsorted(self.costs, limit, "right"))))


def candidates_of(
    schedule: TaskSchedule,
    allowed: Sequence[Integers],
    penalties: Sequence[Floats | None],
    sizes: Sequence[Integers],
    limit: float,
    *,
    most: int = MOST_CANDIDATES,
) -> Candidates:
    """Every assignment whose cost is at most ``limit``, if its modules alone fit.

    Args:
        schedule: the task's.
        allowed: for each slot the rows that may have it.
        penalties: for each slot what each row costs besides, (D,), or None.
        sizes: bytes of each slot on each row, (D,).
        limit: the cost beyond which nothing matters.
        most: how many there may be.

    Raises:
        TooManyCandidates: there are more.
    """
    tails, weight = tails_s(schedule, allowed), schedule.task.weight
    rows: dict[int, Integers] = {}  # by slot: (N,)
    finish: dict[int, Floats] = {}  # by node: (N,)
    for node in schedule.order:
        slot = schedule.slot_of[node]
        if slot not in rows:
            count, options = len(next(iter(rows.values()))) if rows else 1, allowed[slot]
            if count * len(options) > most * 4:
                raise TooManyCandidates
            again = np.repeat(np.arange(count), len(options))
            rows = {known: there[again] for known, there in rows.items()}
            finish = {known: there[again] for known, there in finish.items()}
            rows[slot] = np.tile(options, count)
            rows, finish = _narrowed(rows, finish, _fitting(schedule.fleet.memory_bytes, rows, sizes))
        at = rows[slot]
        ready = schedule.arrivals_s(node, at)
        for need in schedule.graph.needs[node]:
            ready = np.maximum(ready, finish[need] + schedule.hops_s(need, rows[schedule.slot_of[need]], at))
        finish[node] = ready + schedule.computes_s(node, at)
        if node in tails:
            rows, finish = _narrowed(rows, finish, weight * (finish[node] + tails[node][at]) <= limit)
    table = np.column_stack([rows[slot] for slot in range(len(sizes))])
    if len(table) > most:
        raise TooManyCandidates
    return _by_cost(schedule, table, penalties).up_to(limit)


def least_s(schedule: TaskSchedule, allowed: Sequence[Integers]) -> float:
    """A lower bound of the latency, whatever the assignment; infinite when a module is allowed nowhere.

    ``allowed`` has for each slot the rows that may have it.
    """
    latest = 0.0
    for node, tail in tails_s(schedule, allowed).items():
        there = allowed[schedule.slot_of[node]]
        through = schedule.arrivals_s(node, there) + schedule.computes_s(node, there) + tail[there]
        latest = max(latest, float(through.min(initial=np.inf)))
    return latest


def tails_s(schedule: TaskSchedule, allowed: Sequence[Integers]) -> dict[int, Floats]:
    """For each node that the answer waits for: the least seconds from its end on each row to the answer, (D,)."""
    graph, every = schedule.graph, schedule.fleet.every
    tails = {graph.output: schedule.answers_s(every)}
    for node in reversed(schedule.order):
        if node not in tails:
            continue
        onward = np.full(len(every), np.inf)  # from the arrival of all that the node needs
        there = allowed[schedule.slot_of[node]]
        onward[there] = (schedule.computes_s(node, every) + tails[node])[there]
        for need in graph.needs[node]:
            crossing = schedule.fleet.crossings_s(graph.sent_bytes[need])
            least = np.minimum(
                onward, crossing + (crossing + onward).min(initial=np.inf)
            )  # on the same row, or another
            tails[need] = np.maximum(tails[need], least) if need in tails else least
    return tails


def _narrowed(
    rows: dict[int, Integers], finish: dict[int, Floats], good: Flags
) -> tuple[dict[int, Integers], dict[int, Floats]]:
    return {slot: at[good] for slot, at in rows.items()}, {node: ends[good] for node, ends in finish.items()}


def _fitting(room: Integers, rows: dict[int, Integers], sizes: Sequence[Integers]) -> Flags:
    """The partial assignments whose modules alone fit, (N,)."""
    fits = np.ones(len(next(iter(rows.values()))), dtype=np.bool_)
    for at in rows.values():
        used = np.zeros(len(at), dtype=np.int64)
        for slot, there in rows.items():
            used += np.where(there == at, sizes[slot][at], 0)
        fits &= used <= room[at]
    return fits


def _by_cost(schedule: TaskSchedule, table: Integers, penalties: Sequence[Floats | None]) -> Candidates:
    if not len(table):
        return Candidates(table, np.zeros(0))
    costs = schedule.task.weight * schedule.latencies_s([*table.T])
    for slot, penalty in enumerate(penalties):
        if penalty is not None:
            costs = costs + penalty[table[:, slot]]
    order = np.argsort(costs, kind="stable")
    return Candidates(table[order], costs[order])
