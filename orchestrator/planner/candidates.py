"""The ways to put one task's modules on devices that can belong to an optimal plan, each with its exact latency.

Owns the enumeration behind ``exact``: partial assignments grow module by module, and one is dropped as soon as its
lower bound says that no optimum holds it, or its modules alone exceed a device's memory. Knows nothing of how one
assignment a task is then chosen.

Invariants:
- ``latencies`` equals ``costs.latency_s`` bit for bit: the same additions in the same order, for many at once;
- a lower bound is never above the exact latency of any completion: it is the longest path of the graph, with every
  module that isn't assigned yet where that path is shortest, and no waiting for a busy device.

Shapes: N assignments, K modules of the task, D devices (by id, in order). Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, NodeName, TaskSpec
from orchestrator.planner.costs import compute_s, transfer_s

Seconds = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int16]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MOST_ROWS = 1_000_000  # assignments of one task: about 100 MB while they are timed


class TooMany(Exception):
    """More assignments of one task may be optimal than are enumerated."""


@dataclass(frozen=True)
class Candidates:
    """What one task may choose from: row n puts the task's module k on device ``devices[n, k]``."""

    keys: tuple[ModuleKey, ...]  # K
    devices: Indices  # (N, K)
    latency_s: Seconds  # (N,)

    def used_bytes(self, sizes: Mapping[ModuleKey, int], devices: int, of: Collection[ModuleKey]) -> Integers:
        """The memory that some of the modules take on each device, (N, D)."""
        used = np.zeros((len(self.devices), devices), dtype=np.int64)
        for position, key in enumerate(self.keys):
            if key in of:
                used[np.arange(len(used)), self.devices[:, position]] += sizes[key]
        return used

    def best(self, shared: Collection[ModuleKey], tight: Flags, sizes: Mapping[ModuleKey, int]) -> Candidates:
        """Of the rows that are alike to all other tasks, the fastest one.

        Args:
            shared: modules that other tasks use too: alike means that these are on the same devices.
            tight: (D,): the devices that could be filled up: alike means that these are filled by the same bytes.
            sizes: the modules' memory in bytes.
        """
        own = [key for key in self.keys if key not in shared]
        places = self.devices[:, [position for position, key in enumerate(self.keys) if key in shared]]
        traits = np.column_stack([places.astype(np.int64), self.used_bytes(sizes, len(tight), own)[:, tight]])
        by_latency = self.kept(np.argsort(self.latency_s, kind="stable"))
        _, first = np.unique(traits[np.argsort(self.latency_s, kind="stable")], axis=0, return_index=True)
        return by_latency.kept(np.sort(first))

    def kept(self, rows: Flags | npt.NDArray[np.intp]) -> Candidates:
        """Only these rows."""
        return Candidates(self.keys, self.devices[rows], self.latency_s[rows])


class Graph:
    """One task over some devices, as arrays: what each node costs where, and each transfer between two devices."""

    def __init__(
        self,
        task: TaskSpec,
        devices: Sequence[DeviceSpec],
        source: DeviceSpec,
        barred: Mapping[ModuleKey, Container[DeviceId]],
    ) -> None:
        """Take the times from ``costs``.

        Args:
            task: the graph.
            devices: in the order that rows refer to.
            source: where the task's requests start; it may be none of the devices.
            barred: devices that must not get a module.
        """
        self.nodes = task.order
        self.output = task.output
        self.keys = tuple(dict.fromkeys(task.module_of(node).key for node in task.order))
        self.position = {node: self.keys.index(task.module_of(node).key) for node in task.order}
        self.needs = {node: [need for need in task.nodes[node].needs if need in task.nodes] for node in task.order}
        self.allowed = [
            np.array([device.id not in barred.get(key, ()) for device in devices], dtype=np.bool_) for key in self.keys
        ]
        self.compute_s: dict[NodeName, Seconds] = {}  # (D,)
        self.from_source_s: dict[NodeName, Seconds] = {}  # (D,): when all raw inputs are there
        self.hop_s: dict[NodeName, Seconds] = {}  # (D, D): from the node's device, to another
        for node in task.order:
            module = task.module_of(node)
            raw = [task.inputs[need].bytes for need in task.nodes[node].needs if need in task.inputs]
            self.compute_s[node] = np.array([compute_s(device, task.nodes[node].module, module) for device in devices])
            self.from_source_s[node] = np.array(
                [max((transfer_s(size, source, device) for size in raw), default=0.0) for device in devices]
            )
            self.hop_s[node] = np.array([[transfer_s(module.output_bytes, a, b) for b in devices] for a in devices])
        self.leading = {task.output}  # the nodes that the output waits for, and itself
        for node in reversed(task.order):
            if node in self.leading:
                self.leading.update(self.needs[node])
        last = task.module_of(task.output)
        self.to_source_s = np.array([transfer_s(last.output_bytes, device, source) for device in devices])

    def latencies(self, rows: Indices) -> Seconds:
        """The latency of each complete assignment by list scheduling, as ``costs.latency_s`` has it: (N, K) to (N,)."""
        count, everyone = len(rows), np.arange(len(rows))
        finish = {node: np.full(count, np.nan) for node in self.nodes}  # nan: not scheduled yet
        free = np.zeros((count, len(self.to_source_s)))
        at = {node: rows[:, self.position[node]] for node in self.nodes}
        for _ in self.nodes:
            best_start, best_compute = np.full(count, np.inf), np.full(count, -np.inf)
            chosen = np.full(count, -1)
            for number, node in enumerate(sorted(self.nodes)):
                ready = self.from_source_s[node][at[node]]
                for need in self.needs[node]:
                    ready = np.maximum(ready, finish[need] + self.hop_s[need][at[need], at[node]])  # nan spreads
                start = np.maximum(ready, free[everyone, at[node]])
                compute = self.compute_s[node][at[node]]
                better = (start < best_start) | ((start == best_start) & (compute > best_compute))
                better &= np.isnan(finish[node])
                best_start, best_compute = np.where(better, start, best_start), np.where(better, compute, best_compute)
                chosen = np.where(better, number, chosen)
            end = best_start + best_compute
            for number, node in enumerate(sorted(self.nodes)):
                mine = chosen == number
                finish[node] = np.where(mine, end, finish[node])
                free[everyone[mine], at[node][mine]] = end[mine]
        where = rows[:, self.position[self.output]]
        latency: Seconds = finish[self.output] + self.to_source_s[where]
        return latency

    def heads_and_tails(self) -> tuple[dict[NodeName, Seconds], dict[NodeName, Seconds]]:
        """For each node and device: the least time to its finish there, and from its finish to the answer; (D,) each.

        A node from which no way leads to the output has no tail: it doesn't bound the latency.
        """
        heads: dict[NodeName, Seconds] = {}
        for node in self.nodes:
            ready = self.from_source_s[node]
            for need in self.needs[node]:
                ready = np.maximum(ready, (heads[need][:, None] + self.hop_s[need]).min(axis=0))
            allowed = self.allowed[self.position[node]]
            heads[node] = np.where(allowed, ready + self.compute_s[node], np.inf)
        tails = {node: np.zeros_like(self.to_source_s) for node in self.leading}
        tails[self.output] = self.to_source_s
        for node in reversed([node for node in self.nodes if node in self.leading]):
            onward = np.where(self.allowed[self.position[node]], self.compute_s[node] + tails[node], np.inf)
            for need in self.needs[node]:
                if need != self.output:
                    tails[need] = np.maximum(tails[need], (self.hop_s[need] + onward[None, :]).min(axis=1))
        return heads, tails

    def least_s(self) -> float:
        """A lower bound of the latency, whatever the assignment; infinite when a module is barred everywhere."""
        heads, tails = self.heads_and_tails()
        return max(float((heads[node] + tails[node]).min()) for node in self.nodes if node in self.leading)

    def candidates(self, limit_s: float, room: Integers, sizes: Mapping[ModuleKey, int]) -> Candidates:
        """Every assignment whose latency is at most ``limit_s`` and whose modules alone fit.

        Args:
            limit_s: the latency beyond which no optimum has this task.
            room: the devices' memory in bytes, (D,).
            sizes: the modules' memory in bytes.

        Raises:
            TooMany: they don't fit into ``MOST_ROWS``.
        """
        heads, tails = self.heads_and_tails()
        devices = len(room)
        rows = np.zeros((1, 0), dtype=np.int16)
        left = room[None, :].copy()  # (N, D)
        for position, key in enumerate(self.keys):
            options = np.flatnonzero(self.allowed[position]).astype(np.int16)
            if len(rows) * len(options) > MOST_ROWS * 4:
                raise TooMany
            added = np.tile(options, len(rows))
            rows = np.column_stack([np.repeat(rows, len(options), axis=0), added])
            left = np.repeat(left, len(options), axis=0)
            left[np.arange(len(rows)), added] -= sizes[key]
            good = (left >= 0).all(axis=1) & (self._bound(rows, heads, tails) <= limit_s)
            rows, left = rows[good], left[good]
            if len(rows) * max(devices, 8) > MOST_ROWS * 8:
                raise TooMany
        latency = self.latencies(rows)
        within = latency <= limit_s
        return Candidates(self.keys, rows[within], latency[within])

    def _bound(self, rows: Indices, heads: dict[NodeName, Seconds], tails: dict[NodeName, Seconds]) -> Seconds:
        """A lower bound of the latency of each partial assignment: (N, k) to (N,)."""
        known = rows.shape[1]
        finish: dict[NodeName, Seconds] = {}
        bound = np.zeros(len(rows))
        for node in self.nodes:
            if self.position[node] >= known:
                continue
            at = rows[:, self.position[node]]
            ready = self.from_source_s[node][at]
            for need in self.needs[node]:
                if need in finish:
                    there = finish[need] + self.hop_s[need][rows[:, self.position[need]], at]
                else:
                    there = (heads[need][:, None] + self.hop_s[need]).min(axis=0)[at]
                ready = np.maximum(ready, there)
            finish[node] = ready + self.compute_s[node][at]
            if node in self.leading:
                bound = np.maximum(bound, finish[node] + tails[node][at])
        return bound
