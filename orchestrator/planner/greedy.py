"""The greedy rule: compute-heavy modules first, each where it adds least to the objective.

Owns ``PartialPlacement``, an unfinished placement with the memory left, and the rule. Knows nothing of improvements.

The modules that an unfinished placement still misses will cost something too. The rule estimates that:

- *expected cost*: each missing module of a task counts on the best of these devices for it: those that the task uses
  already, its source, and the device in question. In a fleet of more than ``FEW`` devices it counts as nothing;
- *look-ahead*: if at most ``ROLLOUTS`` placements are to be compared, the rule finishes each of them with expected
  costs, and compares the results (a rollout: Bertsekas, Tsitsiklis and Wu, "Rollout algorithms for combinatorial
  optimization", 1997). So it takes no device that would leave the other modules without room.

When the budget is spent, it looks at no costs any more: a module goes where it leaves the least room.

Source of the rule: "S2M3: Split-and-Share Multi-Modal Models for Distributed Multi-Task Inference on the Edge" (ICDCS
2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import product
from math import prod

import numpy as np

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceId, ModuleKey
from orchestrator.planner.budget import Budget
from orchestrator.planner.device_rows import NOWHERE, Row
from orchestrator.planner.fleet import Integers
from orchestrator.planner.packing import SearchLimitReached, packed
from orchestrator.planner.problem import Problem, Where

FEW = 12
"""Up to so many devices, a module's cost includes the missing modules of its tasks."""
ROLLOUTS = 300
"""Up to so many modules x devices, the rule looks ahead: some ten milliseconds."""
_COMPLETIONS = 64  # placements of one task's missing modules; beyond them, these count as nothing
_STEPS = 20_000  # of the search whether the missing modules can still be packed
_UNITS_OF_A_COMPLETION = 2
_UNITS_OF_A_TASK = 15  # what it costs to compare devices for one module of a task


class PartialPlacement:
    """A placement that may still miss modules. Change it with ``put``, which keeps ``room`` right."""

    def __init__(self, problem: Problem, homes: Mapping[ModuleKey, DeviceId] | None = None) -> None:
        """Keep modules at home, as far as those devices are there, not barred, and have the memory."""
        self.problem = problem
        self.where: Where = [NOWHERE] * len(problem.keys)
        self.room = problem.fleet.memory_bytes.copy()  # (D,) bytes left
        self.kept: set[int] = set()
        homes = homes or {}
        for module, key in enumerate(problem.keys):
            row = problem.fleet.rows.get(homes.get(key, ""), NOWHERE)
            is_able = row != NOWHERE and row not in problem.barred[module]
            if is_able and problem.sizes[module][row] <= self.room[row]:
                self.put(module, row)
                self.kept.add(module)

    def copy(self) -> PartialPlacement:
        """Another one of the same, for a trial."""
        draft = PartialPlacement(self.problem)
        draft.where, draft.room = list(self.where), self.room.copy()
        return draft

    def put_all(self, rows: Mapping[int, Row]) -> None:
        """``put`` for each of these modules."""
        for module, row in rows.items():
            self.put(module, row)

    def put(self, module: int, row: Row) -> None:
        """Place a module, or take it away: ``NOWHERE``."""
        if self.where[module] != NOWHERE:
            self.room[self.where[module]] += self.problem.sizes[module][self.where[module]]
        self.where[module] = row
        if row != NOWHERE:
            self.room[row] -= self.problem.sizes[module][row]

    @property
    def missing(self) -> list[int]:
        """The modules that have no device yet, in greedy order."""
        return [module for module, row in enumerate(self.where) if row == NOWHERE]

    def able(self, module: int) -> Integers:
        """The rows that have the memory for a module and may get it, ascending."""
        fits = self.room >= self.problem.sizes[module]
        fits[self.problem.barred[module]] = False
        return np.flatnonzero(fits)

    def packing(self, budget: Budget, *, steps: int) -> dict[int, Row] | None:
        """Rows for the missing modules, at any cost; None when no way to fit all exists.

        Raises:
            SearchLimitReached: the steps were not enough to tell.
        """
        missing = self.missing
        sizes = [self.problem.sizes[module].tolist() for module in missing]
        barred = [self.problem.barred[module] for module in missing]
        rows = packed(sizes, self.room.tolist(), barred, steps=steps, budget=budget)
        return None if rows is None else dict(zip(missing, rows, strict=True))

    def no_device_fits(self, module: int) -> NoDeviceFits:
        """The refusal of a module, with the bytes that each device is short of beside the placed modules."""
        fleet, barred, sizes = self.problem.fleet, set(self.problem.barred[module]), self.problem.sizes[module]
        short = {name: int(sizes[row] - self.room[row]) for name, row in fleet.rows.items() if row not in barred}
        own_bytes = self.problem.modules[self.problem.keys[module]][1].memory_bytes
        size_bytes = max((int(sizes[fleet.rows[name]]) for name in short), default=own_bytes)
        excluded = self.problem.exclusions(module)
        return NoDeviceFits(
            module=self.problem.names[module], memory_bytes=size_bytes, short_bytes=short, excluded=excluded
        )


def greedy(draft: PartialPlacement, budget: Budget | None = None) -> None:
    """Place the modules that have no device yet.

    Raises:
        NoDeviceFits: a module finds no device with enough memory left; those before it are placed.
    """
    missing, budget = draft.missing, budget or Budget()
    ahead = len(missing) * len(draft.problem.fleet) <= ROLLOUTS
    for module in missing:
        rows = draft.able(module)
        row = _best_ahead(draft, module, rows, budget) if ahead and len(rows) > 1 else None
        draft.put(module, _best(draft, module, rows, budget) if row is None else row)


def _best_ahead(draft: PartialPlacement, module: int, rows: Integers, budget: Budget) -> Row | None:
    """The row from which the rule itself ends best; None when it finds no end, wherever this module is."""
    ends: list[tuple[float, Row]] = []
    for row in rows.tolist():
        if budget.over:
            return None
        trial = draft.copy()
        trial.put(module, row)
        if _finish(trial, budget):
            ends.append((draft.problem.objective(trial.where), row))
    return min(ends)[1] if ends else None


def _finish(draft: PartialPlacement, budget: Budget) -> bool:
    """Place the missing modules by the rule, or by packing where the rule fails; tell whether all are placed."""
    missing, packing = draft.missing, None
    with suppress(SearchLimitReached):
        packing = draft.packing(budget, steps=_STEPS)
        if packing is None:
            return False
    try:
        for module in missing:
            draft.put(module, _best(draft, module, draft.able(module), budget))
    except NoDeviceFits:
        if packing is None:
            return False
        draft.put_all(packing)
    return True


def _best(draft: PartialPlacement, module: int, rows: Integers, budget: Budget) -> Row:
    """The row where this module's expected cost is least, or where it leaves the least room.

    Raises:
        NoDeviceFits: no row is left.
    """
    if not len(rows):
        raise draft.no_device_fits(module)
    if budget.over:
        return int(rows[draft.room[rows].argmin()])
    budget.spend(_UNITS_OF_A_TASK * len(draft.problem.users[module]))
    if len(draft.problem.fleet) > FEW:
        return draft.problem.cheapest(module, rows, draft.where)
    options: list[Row] = rows.tolist()
    return min(options, key=lambda row: (_expected(draft, module, row, budget), row))


def _expected(draft: PartialPlacement, module: int, row: Row, budget: Budget) -> float:
    """The expected share of this module's tasks in the objective, if it were on this row."""
    problem = draft.problem
    cost = problem.penalty(module, row)
    for task in problem.users[module]:
        schedule = problem.schedules[task]
        at = [row if slot == module else draft.where[slot] for slot in schedule.slots]
        near = sorted({*at, schedule.source_row} - {NOWHERE})
        options = []
        for slot, there in zip(schedule.slots, at, strict=True):
            if there == NOWHERE:
                taken = problem.sizes[module][row]
                roomy = [r for r in near if draft.room[r] - (taken if r == row else 0) >= problem.sizes[slot][r]]
                options.append(roomy or [int(draft.room.argmax())])
            else:
                options.append([there])
        completions = prod(map(len, options))
        budget.spend(_UNITS_OF_A_COMPLETION * (1 + min(completions, _COMPLETIONS)))
        if completions > _COMPLETIONS:
            cost += problem.tasks[task].weight * schedule.latency_s(tuple(at))
        else:
            cost += problem.tasks[task].weight * min(map(schedule.latency_s, product(*options)))
    return cost
