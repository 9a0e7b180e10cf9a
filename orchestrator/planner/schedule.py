"""The latency of one task over a fleet, for one placement of its modules or for many at once.

Owns the task's schedule on the rows of a fleet: what the cost model (``broker.cost_model``) says, remembered; the same
schedule for arrays of placements; and lower bounds. Knows nothing of memory, of other tasks, or of how placements are
found.

Words: a task's *slots* are the distinct modules that its nodes use. A placement of a task is one row of the fleet for
each slot, or ``NOWHERE`` while that module isn't placed. Nodes are numbered in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache, reduce

import numpy as np

from broker.cost_model import Graph, Linked, answer_s, compute_s, finish_s
from broker.protocol.specs import ModuleKey, TaskSpec
from orchestrator.planner.device_rows import NOWHERE, Row
from orchestrator.planner.fleet import Fleet, Floats, Integers


class TaskSchedule:
    """One task over a fleet.

    ``source`` is where requests start and answers go; it need not be a device of the fleet. ``modules`` has the number
    that the plan gave each module.
    """

    def __init__(self, task: TaskSpec, fleet: Fleet, source: Linked, modules: Mapping[ModuleKey, int]) -> None:
        self.task, self.fleet, self.source, self.graph = task, fleet, source, Graph.of(task)
        self.source_row = fleet.rows.get(source.id, NOWHERE)
        self.specs = [task.module_of(name) for name in self.graph.names]  # by node, as all below
        self.names = [task.nodes[name].module for name in self.graph.names]
        self.keys = tuple(dict.fromkeys(spec.key for spec in self.specs))
        self.slots = tuple(modules[key] for key in self.keys)
        self.slot_of = [self.keys.index(spec.key) for spec in self.specs]
        self.order = [self.graph.names.index(name) for name in task.order]
        self.above: list[set[int]] = [set() for _ in self.specs]  # the nodes that each one waits for, however far
        for node in self.order:
            needs = self.graph.needs[node]
            self.above[node].update(needs, *(self.above[need] for need in needs))
        self.latency_s: Callable[[tuple[Row, ...]], float] = cache(self._latency_s)
        """Seconds from request to answer; takes the row of each slot."""
        self._compute_s: Callable[[int, Row], float] = cache(
            lambda node, row: compute_s(fleet.specs[row], self.names[node], self.specs[node])
        )

    def numbered(self, modules: Mapping[ModuleKey, int]) -> TaskSchedule:
        """The same schedule, with all that it remembers, for a plan that gives the modules other numbers."""
        other = copy(self)
        other.slots = tuple(modules[key] for key in self.keys)
        return other

    def _latency_s(self, rows: tuple[Row, ...]) -> float:
        at = {node: rows[slot] for node, slot in enumerate(self.slot_of) if rows[slot] != NOWHERE}
        devices = {node: self.fleet.specs[row] for node, row in at.items()}
        return answer_s(self.graph, self._finish_s(at), devices, self.source)

    def _finish_s(self, at: Mapping[int, Row]) -> dict[int, float]:
        devices = {node: self.fleet.specs[row] for node, row in at.items()}
        compute_s = {node: self._compute_s(node, row) for node, row in at.items()}
        return finish_s(self.graph, devices, compute_s, self.source)

    # --- many placements at once ---

    def latencies_s(self, rows: Sequence[Row | Integers]) -> Floats:
        """The latency of each of N placements: ``latency_s``, bit for bit.

        Args:
            rows: for each slot one row for all, or an array of N. A slot is placed in all of them or in none.

        Returns:
            (N,), or (1,) when every slot has one row.
        """
        slots = np.broadcast_arrays(*(np.atleast_1d(there) for there in rows))
        placed = [node for node, slot in enumerate(self.slot_of) if slots[slot][0] != NOWHERE]
        if not placed:
            return np.zeros(len(slots[0]))
        at = np.array([slots[self.slot_of[node]] for node in placed])  # (n, N), as all that follows
        finish = self._finishes_s(placed, at)
        return self._ends_s(dict(zip(placed, finish, strict=True)), dict(zip(placed, at, strict=True)))

    def _finishes_s(self, placed: Sequence[int], at: Integers) -> Floats:
        """``cost_model.finish_s`` of N placements, (n, N), in which these n nodes are on these rows, (n, N)."""
        start = np.array([self.arrivals_s(node, there) for node, there in zip(placed, at, strict=True)])
        compute = np.array([self.computes_s(node, there) for node, there in zip(placed, at, strict=True)])
        finish = np.full(at.shape, -np.inf)  # while a node isn't scheduled
        every = np.arange(at.shape[1])
        hops = [
            (need, user, self.hops_s(other, at[need], at[user]))
            for user, node in enumerate(placed)
            for need, other in enumerate(placed)
            if other in self.graph.needs[node]
        ]
        for _ in placed:
            able = finish < 0
            for need, user, hop_s in hops:
                able[user] &= finish[need] >= 0
                start[user] = np.maximum(start[user], finish[need] + hop_s)
            earliest = np.where(able, start, np.inf)
            longest = np.where(earliest == earliest.min(axis=0), compute, -1.0)
            first = longest.argmax(axis=0)  # ties: the smaller name
            end = start[first, every] + compute[first, every]
            finish[first, every] = end
            start = np.where(at == at[first, every], np.maximum(start, end), start)
        return finish

    def _ends_s(self, finish: Mapping[int, Floats], at: Mapping[int, Integers]) -> Floats:
        """``cost_model.answer_s`` of N placements, (N,)."""
        if self.graph.output not in finish:
            return reduce(np.maximum, finish.values())
        return finish[self.graph.output] + self.answers_s(at[self.graph.output])

    def computes_s(self, node: int, rows: Integers) -> Floats:
        """A node's compute time on each of these rows."""
        return self.fleet.compute_s(self.names[node], self.specs[node])[rows]

    def arrivals_s(self, node: int, rows: Integers) -> Floats:
        """Seconds until a node's raw inputs are on each of these rows."""
        size = self.graph.input_bytes[node]
        return np.zeros(len(rows)) if size is None else self.fleet.transfers_s(size, self.source)[rows]

    def hops_s(self, need: int, a: Integers | Row, b: Integers | Row) -> Floats:
        """From a node's end on rows ``a`` to the arrival of its output on rows ``b``."""
        crossing_s = self.fleet.crossings_s(self.graph.sent_bytes[need])
        return np.where(a == b, 0.0, crossing_s[a] + crossing_s[b])

    def answers_s(self, rows: Integers) -> Floats:
        """From the output's end on each of these rows to the answer at the source."""
        return self.fleet.transfers_s(self.graph.answer_bytes, self.source)[rows]

    def bounds_s(self, slot: int, rows: tuple[Row, ...]) -> tuple[Floats, bool]:
        """For every row a lower bound of the latency, were this slot there and the others as they are.

        If no placed node waits for the moved node and no other node is on its device, the bound is exact. Otherwise it
        is the longest path, which ignores busy devices.

        Args:
            slot: the slot that moves.
            rows: the row of each slot; this slot's is not looked at.

        Returns:
            (D,), and whether it is the latency itself on every row.
        """
        fixed = {
            node: rows[other] for node, other in enumerate(self.slot_of) if other != slot and rows[other] != NOWHERE
        }
        movers = [node for node, other in enumerate(self.slot_of) if other == slot]
        below = {node for node in fixed if not self.above[node].isdisjoint(movers)}
        exact = len(movers) == 1 and not below
        settled = fixed.keys() if exact else self.above[movers[0]] if len(movers) == 1 else set[int]()
        finish = self._finish_s({node: row for node, row in fixed.items() if node not in below}) if settled else {}
        at = {node: np.array([row]) for node, row in fixed.items()} | dict.fromkeys(movers, self.fleet.every)
        head: dict[int, Floats] = {}
        for node in self.order:
            if node in settled and node in finish:
                head[node] = np.array([finish[node]])
            elif node in at:
                ready = self.arrivals_s(node, at[node])
                for need in self.graph.needs[node]:
                    if need in head:
                        ready = np.maximum(ready, head[need] + self.hops_s(need, at[need], at[node]))
                head[node] = ready + self.computes_s(node, at[node])
        bounds = np.broadcast_to(self._ends_s(head, at), self.fleet.every.shape).copy()
        for row in set(fixed.values()):
            bounds[row] = self.latency_s((*rows[:slot], row, *rows[slot + 1 :]))
        return bounds, exact
