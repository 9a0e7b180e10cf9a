"""The latency of one task over a fleet, for one placement of its modules or for many at once.

Owns the task's schedule on the rows of a fleet: what the cost model (``broker.cost_model``) says, remembered, and lower
bounds of it. Knows nothing of memory, of other tasks, or of how placements are found.

Words: a task's *slots* are the distinct modules that its nodes use. A placement of a task is one row of the fleet for
each slot, or ``NOWHERE`` while that module isn't placed. Nodes are numbered in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import cast

import numpy as np

from broker.cost_model import ONE, Floats, Graph, Integers, Link, Linked, Many, Placed, compute_s, finish_s
from broker.protocol.specs import ModuleKey, TaskSpec
from orchestrator.planner.fleet import NOWHERE, Fleet, Row

ARRAYS = Many(1)
"""For seconds that no order decides."""


class _Remembered(dict[tuple[int, ...], float]):
    """Seconds by the arguments of a function, which is called once for each."""

    def __init__(self, work: Callable[..., float]) -> None:
        super().__init__()
        self._work = work

    def __missing__(self, arguments: tuple[int, ...]) -> float:
        self[arguments] = seconds = self._work(*arguments)
        return seconds


class TaskSchedule:
    """One task over a fleet."""

    def __init__(self, task: TaskSpec, fleet: Fleet, source: Linked[float], modules: Mapping[ModuleKey, int]) -> None:
        """Prepare.

        Args:
            task: the graph.
            fleet: the devices that rows refer to.
            source: where requests start and answers go; it need not be a device of the fleet.
            modules: the number that the plan gave each module.
        """
        self.task, self.fleet, self.graph = task, fleet, Graph.of(task)
        self.source_row = fleet.rows.get(str(source.id), NOWHERE)
        self.source = Link(self.source_row, source.latency_s, source.bandwidth_bits_per_s)
        self._sources = cast("Link[Floats]", self.source)  # numpy takes a number for an array of one
        self.specs = [task.module_of(name) for name in self.graph.names]  # by node, as all below
        self.names = [task.nodes[name].module for name in self.graph.names]
        keys = tuple(dict.fromkeys(spec.key for spec in self.specs))
        self.slots = tuple(modules[key] for key in keys)
        self.slot_of = [keys.index(spec.key) for spec in self.specs]
        self.order = [self.graph.number[name] for name in task.order]
        self.above: list[set[int]] = [set() for _ in self.specs]  # the nodes that each one waits for, however far
        for node in self.order:
            needs = self.graph.needs[node]
            self.above[node].update(needs, *(self.above[need] for need in needs))
        self._latency_s = _Remembered(self._latency)
        self._compute_s, self._arrival_s = _Remembered(self._compute), _Remembered(self._arrival)
        self._hop_s = _Remembered(self._hop)

    # --- one placement ---

    def latency_s(self, rows: tuple[Row, ...]) -> float:
        """Seconds from request to answer.

        Args:
            rows: the row of each slot.
        """
        return self._latency_s[rows]

    def _latency(self, *rows: Row) -> float:
        at = {node: rows[slot] for node, slot in enumerate(self.slot_of) if rows[slot] != NOWHERE}
        finish = finish_s(self.graph, self._placed(at), ONE)
        if self.graph.output not in finish:
            return max(finish.values(), default=0.0)
        return finish[self.graph.output] + self._answer_s(at[self.graph.output])

    def _placed(self, at: Mapping[int, Row]) -> Placed[float]:
        return Placed(
            at=at,
            compute_s={node: self._compute_s[node, row] for node, row in at.items()},
            arrival_s={node: self._arrival_s[node, row] for node, row in at.items()},
            hop_s=lambda need, node: self._hop_s[need, at[need], at[node]],
        )

    def _compute(self, node: int, row: Row) -> float:
        return compute_s(self.fleet.specs[row], self.names[node], self.specs[node])

    def _arrival(self, node: int, row: Row) -> float:
        return self.graph.arrival_s(node, self.source, self.fleet.link(row), ONE)

    def _hop(self, need: int, a: Row, b: Row) -> float:
        return self.graph.hop_s(need, self.fleet.link(a), self.fleet.link(b), ONE)

    def _answer_s(self, row: Row) -> float:
        return self.graph.answer_s(self.fleet.link(row), self.source, ONE)

    # --- many placements at once ---

    def latencies_s(self, rows: Sequence[Row | Integers]) -> Floats:
        """The latency of each of N placements: ``latency_s``, bit for bit.

        Args:
            rows: for each slot one row for all, or an array of N. A slot is placed in all of them or in none.

        Returns:
            (N,), or (1,) when every slot has one row.
        """
        slots = [np.atleast_1d(np.asarray(there, dtype=np.int64)) for there in rows]
        at = {node: slots[slot] for node, slot in enumerate(self.slot_of) if slots[slot][0] != NOWHERE}
        latency = np.zeros(max((len(there) for there in at.values()), default=1))
        left = np.arange(len(latency))
        while at and len(left):
            many = Many(len(left))
            there = {node: known[left] if len(known) > 1 else known for node, known in at.items()}
            found = self._end_s(finish_s(self.graph, self._many_placed(there), many), there)
            latency[left[many.alike]] = np.broadcast_to(found, left.shape)[many.alike]
            left = left[~many.alike]
        return latency

    def _many_placed(self, at: Mapping[int, Integers]) -> Placed[Floats]:
        return Placed(
            at=at,
            compute_s={node: self.computes_s(node, rows) for node, rows in at.items()},
            arrival_s={node: self.arrivals_s(node, rows) for node, rows in at.items()},
            hop_s=lambda need, node: self.hops_s(need, at[need], at[node]),
        )

    def computes_s(self, node: int, rows: Integers) -> Floats:
        """A node's compute time on each of these rows."""
        if len(rows) == 1:
            return np.array([self._compute_s[node, int(rows[0])]])
        seconds = self.fleet.compute_s(self.names[node], self.specs[node])
        return seconds if rows is self.fleet.every else seconds[rows]

    def arrivals_s(self, node: int, rows: Integers) -> Floats:
        """Seconds until a node's raw inputs are on each of these rows."""
        if len(rows) == 1:
            return np.array([self._arrival_s[node, int(rows[0])]])
        return self.graph.arrival_s(node, self._sources, self.fleet.links(rows), ARRAYS)

    def hops_s(self, need: int, a: Integers, b: Integers) -> Floats:
        """From a node's end on rows ``a`` to the arrival of its output on rows ``b``."""
        if len(a) == len(b) == 1:
            return np.array([self._hop_s[need, int(a[0]), int(b[0])]])
        return self.graph.hop_s(need, self.fleet.links(a), self.fleet.links(b), ARRAYS)

    def answers_s(self, rows: Integers) -> Floats:
        """From the output's end on each of these rows to the answer at the source."""
        if len(rows) == 1:
            return np.array([self._answer_s(int(rows[0]))])
        return self.graph.answer_s(self.fleet.links(rows), self._sources, ARRAYS)

    def _end_s(self, finish: Mapping[int, Floats], at: Mapping[int, Integers]) -> Floats:
        """From the nodes' ends to the latency."""
        if self.graph.output not in finish:
            return reduce(np.maximum, finish.values())
        return finish[self.graph.output] + self.answers_s(at[self.graph.output])

    def bounds_s(self, slot: int, rows: tuple[Row, ...]) -> tuple[Floats, bool]:
        """For every row a lower bound of the latency, were this slot there and the others as they are.

        A node that no placed node waits for, alone on its device, delays no other: then the bound is the latency.
        Otherwise it is the longest path, without waiting for busy devices; up to the node itself even that is exact.

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
        above = {node: row for node, row in fixed.items() if node not in below}
        finish = finish_s(self.graph, self._placed(above), ONE) if settled else {}
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
        bounds = np.broadcast_to(self._end_s(head, at), self.fleet.every.shape).copy()
        for row in set(fixed.values()):
            bounds[row] = self.latency_s((*rows[:slot], row, *rows[slot + 1 :]))
        return bounds, exact
