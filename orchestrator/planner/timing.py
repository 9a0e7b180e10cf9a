"""The latency of one task over a fleet, for one placement of its modules or for many at once.

Owns list scheduling on arrays: the model of ``costs.latency_s`` (DESIGN section 6), bit for bit, made quick. Knows
nothing of memory, of other tasks, or of how placements are found.

Words: a task's ``slots`` are the distinct modules that its nodes use; a placement of a task is one row of the fleet for
each slot, ``NOWHERE`` while that module isn't placed. Nodes are counted in the order of their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from broker.cost_model import transfer_s
from broker.protocol.specs import DeviceSpec, ModuleKey, TaskSpec
from orchestrator.planner.costs import compute_s
from orchestrator.planner.fleet import NOWHERE, Fleet, Floats, Integers, Row

_UNSCHEDULED = -1.0


class Timing:
    """One task over a fleet."""

    def __init__(self, task: TaskSpec, fleet: Fleet, source: DeviceSpec, modules: Mapping[ModuleKey, int]) -> None:
        """Prepare.

        Args:
            task: the graph.
            fleet: the devices that rows refer to.
            source: where requests start and answers go; it may be no device of the fleet.
            modules: the number that the plan gave each module.
        """
        self.task, self.fleet, self.source = task, fleet, source
        self.source_row = fleet.rows.get(source.id, NOWHERE)
        names = sorted(task.nodes)
        number = {name: node for node, name in enumerate(names)}
        self.specs = [task.module_of(name) for name in names]
        self.names = [task.nodes[name].module for name in names]
        keys = tuple(dict.fromkeys(spec.key for spec in self.specs))
        self.slots = tuple(modules[key] for key in keys)
        self.slot_of = [keys.index(spec.key) for spec in self.specs]  # by node
        self.inputs = [
            [task.inputs[need].bytes for need in task.nodes[name].needs if need in task.inputs] for name in names
        ]
        self.needs = [[number[need] for need in task.nodes[name].needs if need in number] for name in names]
        self.output = number[task.output]
        self.order = [number[name] for name in task.order]
        self.above: list[set[int]] = [set() for _ in names]  # the nodes that each one waits for, however far
        for node in self.order:
            self.above[node].update(self.needs[node], *(self.above[need] for need in self.needs[node]))
        self._known: dict[tuple[Row, ...], float] = {}
        self._compute_s: list[dict[Row, float]] = [{} for _ in names]
        self._entry_s: list[dict[Row, float]] = [{} for _ in names]

    def latency_s(self, rows: tuple[Row, ...]) -> float:
        """Seconds from request to answer: ``costs.latency_s``, bit for bit.

        Args:
            rows: the row of each slot.
        """
        known = self._known.get(rows)
        if known is None:
            finish = self._finish_s([rows[slot] for slot in self.slot_of])
            if finish[self.output] == _UNSCHEDULED:
                known = max(0.0, *finish)
            else:
                known = finish[self.output] + self._answer_s(rows[self.slot_of[self.output]])
            self._known[rows] = known
        return known

    def _compute(self, node: int, row: Row) -> float:
        seconds = self._compute_s[node].get(row)
        if seconds is None:
            seconds = compute_s(self.fleet.specs[row], self.names[node], self.specs[node])
            self._compute_s[node][row] = seconds
        return seconds

    def _entry(self, node: int, row: Row) -> float:
        """When the node's raw inputs are there."""
        seconds = self._entry_s[node].get(row)
        if seconds is None:
            device = self.fleet.specs[row]
            seconds = max((transfer_s(size, self.source, device) for size in self.inputs[node]), default=0.0)
            self._entry_s[node][row] = seconds
        return seconds

    def _hop(self, node: int, a: Row, b: Row) -> float:
        """From the end of a node on one device to the arrival of its output at another."""
        if a == b:
            return 0.0
        return transfer_s(self.specs[node].output_bytes, self.fleet.specs[a], self.fleet.specs[b])

    def _answer_s(self, row: Row) -> float:
        return transfer_s(self.specs[self.output].output_bytes, self.fleet.specs[row], self.source)

    def _finish_s(self, at: Sequence[Row]) -> list[float]:
        """When each node finishes, given the row of each; ``_UNSCHEDULED`` for one that is nowhere."""
        finish = [_UNSCHEDULED] * len(at)
        ready = list(finish)
        free: dict[Row, float] = {}
        todo = [node for node, row in enumerate(at) if row != NOWHERE]
        while todo:
            first, best = -1, (0.0, 0.0)
            for node in todo:
                row = at[node]
                if ready[node] == _UNSCHEDULED:
                    if any(need in todo for need in self.needs[node]):
                        continue
                    latest = self._entry(node, row)
                    for need in self.needs[node]:
                        if at[need] != NOWHERE:
                            latest = max(latest, finish[need] + self._hop(need, at[need], row))
                    ready[node] = latest
                start = max(ready[node], free.get(row, 0.0))
                if first < 0 or (start, -self._compute(node, row)) < best:  # names ascend: of equals the first stays
                    first, best = node, (start, -self._compute(node, row))
            todo.remove(first)
            finish[first] = free[at[first]] = best[0] - best[1]
        return finish

    # --- many placements at once ---

    def bounds_s(self, slot: int, rows: tuple[Row, ...]) -> tuple[Floats, bool]:
        """For every row a lower bound of the latency, were this slot there and the others as they are.

        Alone on its device, a node that nothing placed waits for delays nobody: then the bound is the latency. Else it
        is the longest path, which waits for no busy device; up to the node itself even that is exact.

        Args:
            slot: which one.
            rows: the row of each slot; this slot's is not looked at.

        Returns:
            (D,), and whether it is the latency itself on every row.
        """
        at = [NOWHERE if other == slot else rows[other] for other in self.slot_of]
        movers = [node for node, other in enumerate(self.slot_of) if other == slot]
        placed = [node for node in self.order if at[node] != NOWHERE]
        below = {node for node in placed if not self.above[node].isdisjoint(movers)}
        exact = len(movers) == 1 and not below
        settled = set(placed) if exact else self.above[movers[0]] if len(movers) == 1 else set[int]()
        finish = self._finish_s([NOWHERE if node in below else row for node, row in enumerate(at)]) if settled else []
        head: dict[int, Floats | float] = {}
        for node in self.order:
            if node in settled and at[node] != NOWHERE:
                head[node] = finish[node]
            elif node in movers:
                head[node] = self._head_s(node, at, head)
            elif at[node] != NOWHERE:
                ready: Floats | float = self._entry(node, at[node])
                for need in self.needs[node]:
                    if need in head:
                        ready = np.maximum(ready, head[need] + self._to_s(need, at[need], at[node]))
                head[node] = ready + self._compute(node, at[node])
        bound: Floats | float
        if self.output in movers:
            answers = self.fleet.transfer_s(self.specs[self.output].output_bytes, self.source, self.source_row)
            bound = head[self.output] + answers
        elif self.output in head:
            bound = head[self.output] + self._answer_s(at[self.output])
        else:
            bound = reduce(np.maximum, list(head.values()))
        bounds = np.broadcast_to(bound, self.fleet.latency_s.shape).copy()
        for row in {at[node] for node in placed}:
            bounds[row] = self.latency_s((*rows[:slot], row, *rows[slot + 1 :]))
        return bounds, exact

    def _head_s(self, node: int, at: Sequence[Row], head: Mapping[int, Floats | float]) -> Floats:
        """When a node would finish on each row at the earliest."""
        ready = np.zeros(len(self.fleet.latency_s))
        for size in self.inputs[node]:
            np.maximum(ready, self.fleet.transfer_s(size, self.source, self.source_row), out=ready)
        for need in self.needs[node]:
            if need in head:
                np.maximum(ready, head[need] + self._to_s(need, at[need], NOWHERE), out=ready)
        ready += self.fleet.compute_s(self.names[node], self.specs[node])
        return ready

    def _to_s(self, node: int, a: Row, b: Row) -> Floats | float:
        """From a node on one device to another; either, not both, may be nowhere yet: then for every row of it."""
        if NOWHERE not in {a, b}:
            return self._hop(node, a, b)
        if a == b:
            return 0.0  # two nodes of one module
        there = max(a, b)
        return self.fleet.transfer_s(self.specs[node].output_bytes, self.fleet.specs[there], there)

    def latencies_s(self, rows: Sequence[Row | Integers]) -> Floats:
        """The latency of each of N placements: ``latency_s``, bit for bit.

        Args:
            rows: for each slot one row for all, or an array of N. A slot is placed in all of them or in none.

        Returns:
            (N,), or (1,) when every slot has one row.
        """
        at = [np.atleast_1d(np.asarray(rows[slot], dtype=np.int64)) for slot in self.slot_of]  # per node: (1,) or (N,)
        placed = [node for node in self.order if at[node][0] != NOWHERE]
        if not placed:
            return np.zeros(1)
        count = max(len(rows) for rows in at)
        compute = {node: self.fleet.compute_s(self.names[node], self.specs[node])[at[node]] for node in placed}
        entry = {node: self.entries_s(node, at[node]) for node in placed}
        hop = {
            (need, node): self.hops_s(need, at[need], at[node])
            for node in placed
            for need in self.needs[node]
            if need in compute
        }
        finish = {node: np.full(count, np.inf) for node in placed}
        free = {node: np.zeros(count) for node in placed}  # when the node's device is free
        todo = {node: np.ones(count, dtype=np.bool_) for node in placed}
        for _ in placed:
            best, longest, first = np.full(count, np.inf), np.zeros(count), np.full(count, -1)
            for node in sorted(placed):
                ready = entry[node]
                for need in self.needs[node]:
                    if need in compute:
                        ready = np.maximum(ready, finish[need] + hop[need, node])
                start = np.maximum(ready, free[node])
                better = todo[node] & (
                    (start < best) | ((start == best) & (compute[node] > longest) & (start < np.inf))
                )
                best = np.where(better, start, best)
                longest = np.where(better, compute[node], longest)
                first = np.where(better, node, first)
            end = best + longest
            for node in placed:
                mine = first == node
                if not mine.any():
                    continue
                finish[node] = np.where(mine, end, finish[node])
                todo[node] &= ~mine
                for other in placed:
                    free[other] = np.where(mine & (at[other] == at[node]), end, free[other])
        if self.output not in finish:
            return np.asarray(reduce(np.maximum, finish.values()))
        return finish[self.output] + self.answers_s(at[self.output])

    def entries_s(self, node: int, rows: Integers) -> Floats:
        """When a node's raw inputs are on each of these rows."""
        seconds = np.zeros(len(rows))
        for size in self.inputs[node]:
            seconds = np.maximum(seconds, self._source_s(size, rows))
        return seconds

    def answers_s(self, rows: Integers) -> Floats:
        """From the output's end on each of these rows to the answer at the source."""
        return self._source_s(self.specs[self.output].output_bytes, rows)

    def _source_s(self, size_bytes: int, rows: Integers) -> Floats:
        fleet = self.fleet
        narrow = np.minimum(fleet.bandwidth_bits_per_s[rows], self.source.bandwidth_bits_per_s)
        seconds: Floats = (fleet.latency_s[rows] + self.source.latency_s) + float(8 * size_bytes) / narrow
        return np.where(rows == self.source_row, 0.0, seconds)

    def hops_s(self, node: int, a: Integers, b: Integers) -> Floats:
        """From a node's end on rows ``a`` to the arrival of its output on rows ``b``."""
        fleet = self.fleet
        narrow = np.minimum(fleet.bandwidth_bits_per_s[a], fleet.bandwidth_bits_per_s[b])
        bits = float(8 * self.specs[node].output_bytes)
        return np.where(a == b, 0.0, (fleet.latency_s[a] + fleet.latency_s[b]) + bits / narrow)
