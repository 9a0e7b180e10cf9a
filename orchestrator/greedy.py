"""The greedy rule: compute-heavy modules first, each where it adds least to the objective.

Owns ``Board``, a placement in the making with the memory left, and the rule. Knows nothing of what to do when the rule
finds no room.

Source: "S2M3: Split-and-Share Multi-Modal Models for Distributed Multi-Task Inference on the Edge" (ICDCS 2025).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from broker.errors import NoDeviceFits
from broker.specs import DeviceId, ModuleKey
from orchestrator.fleet import NOWHERE, Integers, Row
from orchestrator.problem import Problem, Where, nowhere

AT_HAND_SHARE = 0.1
"""A device without a module's weights gets it only if its tasks' latency is less there by more than this share."""


class Board:
    """A placement in the making. Put on it with ``put``: that keeps ``room``."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.where: Where = nowhere(problem)
        self.room = problem.fleet.memory_bytes.copy()  # (D,) bytes left
        self.kept: set[int] = set()

    def put(self, module: int, row: Row) -> None:
        """Place a module, or take it away: ``NOWHERE``."""
        if self.where[module] != NOWHERE:
            self.room[self.where[module]] += self.problem.bytes[module]
        self.where[module] = row
        if row != NOWHERE:
            self.room[row] -= self.problem.bytes[module]

    def able(self, module: int) -> Integers:
        """The rows that have the memory for a module and may get it, ascending."""
        fits = self.room >= self.problem.bytes[module]
        fits[self.problem.barred[module]] = False
        return np.flatnonzero(fits)

    def keep(self, homes: Mapping[ModuleKey, DeviceId]) -> None:
        """Put these modules where they are, as far as those devices are there, not barred, and have the memory."""
        for module, key in enumerate(self.problem.keys):
            row = self.problem.fleet.rows.get(homes.get(key, ""), NOWHERE)
            if row == NOWHERE or row in self.problem.barred[module]:
                continue
            if self.problem.bytes[module] <= self.room[row]:
                self.put(module, row)
                self.kept.add(module)

    def fill(self) -> None:
        """Place what has no device yet by the greedy rule.

        Raises:
            NoDeviceFits: a module finds no device with enough memory left; those before it are placed.
        """
        for module, row in enumerate(self.where):
            if row == NOWHERE:
                self.put(module, self.choose(module, self.able(module)))

    def choose(self, module: int, rows: Integers) -> Row:
        """The best of these rows for a module.

        Raises:
            NoDeviceFits: there is none.
        """
        if not len(rows):
            raise self.no_device_fits(module)
        best, cost_s = self.problem.cheapest(module, rows, self.where)
        near = self.problem.at_hand[module]
        if near and best not in near:
            near_rows = np.intersect1d(rows, np.array(near, dtype=np.int64))
            if len(near_rows):
                costs = self.problem.costs_s(module, near_rows, self.where)
                if costs.min() <= cost_s * (1 + AT_HAND_SHARE):
                    return int(near_rows[costs.argmin()])
        return best

    def no_device_fits(self, module: int) -> NoDeviceFits:
        """The refusal of a module, with the bytes that each device lacks beside what is placed."""
        fleet, barred = self.problem.fleet, set(self.problem.barred[module])
        size = self.problem.bytes[module]
        short = {name: int(size - self.room[row]) for name, row in fleet.rows.items() if row not in barred}
        return NoDeviceFits(module=self.problem.names[module], memory_bytes=size, short_bytes=short)
