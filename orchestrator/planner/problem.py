"""The planner's question and its answer: modules to put on devices, and the placement that was found.

Owns the numbering of modules, which tasks use them, the cost of a placement, and ``Placement``. Knows nothing of how a
placement is searched for, nor of liveness, epochs or messages.

Invariants:
- a module is placed once however many tasks need it, and its memory counts once; a further copy (``copies``) is a
  module of its own here;
- modules are numbered in greedy order, tasks by name, devices by id: the order in which they came changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from broker.cost_model import source_of
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskName, TaskSpec
from orchestrator.planner.copies import (
    AT_HAND_SHARE,
    AtHand,
    Bars,
    FurtherCopies,
    Homes,
    copy_number,
    original_key,
    separate,
    where_copies_may_be,
    why_cannot_run,
    why_may_not_run,
    with_further_copies,
)
from orchestrator.planner.device_rows import NOWHERE, Row
from orchestrator.planner.fleet import Fleet, Floats, Integers
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.schedule import TaskSchedule

Where = list[Row]
"""For each module, by number, its device's row; ``NOWHERE`` while it has none."""
_FEW = 24  # so many placements are timed one by one as quickly as all at once
_ROUNDING = 1e-9  # relative: far above what sums in another order change, far below what a person notices


class Problem:
    """Tasks to place on a fleet."""

    def __init__(
        self,
        devices: Sequence[DeviceSpec] | Fleet,
        tasks: Sequence[TaskSpec],
        *,
        homes: Homes | None = None,
        barred: Bars | None = None,
        at_hand: AtHand | None = None,
        known: dict[TaskName, TaskSchedule] | None = None,
        sole: bool = True,
    ) -> None:
        """Number the modules and prepare the tasks' schedules.

        The arguments are those of ``placement.place``; ``homes``, where copies of modules stand; the schedules that
        another problem of this fleet prepared: new ones are added; and whether each copy is the only one of its module.
        """
        self.fleet = devices if isinstance(devices, Fleet) else Fleet(devices)
        self.bars = barred or {}
        self.further, self.homes = separate(tasks, self.fleet, homes or {}, self.bars)
        self.tasks = sorted(with_further_copies(tasks, self.further), key=lambda task: task.task)
        self.modules = distinct_modules(self.tasks)
        self.keys = list(self.modules)
        self.names = [name for name, _ in self.modules.values()]
        largest = distinct_modules(tasks) if self.further else self.modules
        self.sizes = [self.fleet.sizes_bytes(largest[original_key(key)][1]) for key in self.keys]  # by module: (D,)
        self.bytes = [max(sizes.tolist(), default=0) for sizes in self.sizes]  # the most that a module needs anywhere
        self.number = {key: module for module, key in enumerate(self.keys)}
        self.schedules: list[TaskSchedule] = []
        self.users: list[list[int]] = [[] for _ in self.keys]  # by module: its tasks, by number
        specs = {spec.id: spec for spec in self.fleet.specs}
        for number, task in enumerate(self.tasks):
            schedule = known.get(task.task) if known is not None else None
            if schedule is not None and schedule.task is task:
                schedule = schedule.numbered(self.number)
            else:
                schedule = TaskSchedule(task, self.fleet, source_of(task, specs), self.number)
            if known is not None:
                known[task.task] = schedule
            self.schedules.append(schedule)
            for module in schedule.slots:
                self.users[module].append(number)
        rows, originals = self.fleet.rows, [original_key(key) for key in self.keys]
        self.may_be = where_copies_may_be(self.tasks, self.fleet, self.homes)
        self.barred = [self._barred(key) for key in self.keys]
        self.at_hand = [[rows[name] for name in (at_hand or {}).get(key, ()) if name in rows] for key in originals]
        self.relocation_penalty_s = cache(self._relocation_penalty_s)
        """The weighted seconds that count for a module on a device without its weights, if another device has them."""
        self.sole_s = self._longest_s() if sole and self.fleet.sometimes.any() else 0.0
        """The weighted seconds that count for a module whose only copy is on a device that is on only sometimes: more
        than the objective of any placement, so that every other device comes first."""
        self.penalised: list[list[int]] = [[] for _ in self.tasks]  # by task: the modules whose first one it is
        for module, near in enumerate(self.at_hand):
            if near or self.sole_s:
                self.penalised[self.users[module][0]].append(module)

    def _barred(self, key: ModuleKey) -> list[Row]:
        """The rows that must not get a module: by its bars, and by what its tasks and the devices allow."""
        bars = self.bars.get(original_key(key), ())
        if key not in self.may_be:
            return [self.fleet.rows[name] for name in bars if name in self.fleet.rows]
        barred = self.fleet.all & ~self.may_be[key] | self.fleet.set_of(bars)
        return [*np.flatnonzero(self.fleet.flags(barred)).tolist()]

    def exclusions(self, module: int) -> dict[DeviceId, str]:
        """The devices that must not get a module, each with the reason."""
        bars = self.bars.get(original_key(self.keys[module]), {})
        ids = [(row, self.fleet.specs[row].id) for row in self.barred[module]]
        return {name: bars[name] if name in bars else self.why_may_not_hold(module, row) for row, name in ids}

    def why_may_not_hold(self, module: int, row: Row) -> str:
        """The reason why a device may not hold a module, though no bar says so."""
        device, (name, spec) = self.fleet.specs[row], self.modules[self.keys[module]]
        reasons = (why_may_not_run(self.tasks[task], device) for task in self.users[module])
        why = next((why for why in reasons if why), None) or why_cannot_run(name, spec, device)
        return why or "another copy of it is there"

    def _relocation_penalty_s(self, module: int) -> float:
        if not self.at_hand[module]:
            return 0.0
        alone = np.zeros(len(self.fleet))
        for task in self.users[module]:
            schedule = self.schedules[task]
            alone += self.tasks[task].weight * schedule.latencies_s([self.fleet.every] * len(schedule.slots))
        return AT_HAND_SHARE * float(alone.min())

    def _longest_s(self) -> float:
        """An upper bound of the objective: one node after the other, each where it takes longest."""
        every, total_s = self.fleet.every, 0.0
        for task, schedule in zip(self.tasks, self.schedules, strict=True):
            longest_s = float(schedule.answers_s(every).max())
            for node, needs in enumerate(schedule.graph.needs):
                longest_s += float(schedule.arrivals_s(node, every).max() + schedule.computes_s(node, every).max())
                for need in needs:
                    longest_s += 2 * float(self.fleet.crossings_s(schedule.graph.sent_bytes[need]).max())
            total_s += task.weight * longest_s
        return total_s

    def penalty(self, module: int, row: Row) -> float:
        """The seconds that a module costs on this row beside its tasks': ``relocation_penalty_s`` and ``sole_s``."""
        near_s = 0.0 if row in self.at_hand[module] else self.relocation_penalty_s(module)
        return near_s + self.sole_s if self.sole_s and row != NOWHERE and self.fleet.sometimes[row] else near_s

    def penalties(self, module: int) -> Floats:
        """``penalty`` on every row, (D,)."""
        penalties = np.full(len(self.fleet), self.relocation_penalty_s(module))
        penalties[self.at_hand[module]] = 0.0
        return penalties + self.sole_s * self.fleet.sometimes if self.sole_s else penalties

    def latency_s(self, task: int, where: Where) -> float:
        """Seconds of one request of this task alone."""
        schedule = self.schedules[task]
        return schedule.latency_s(tuple([where[module] for module in schedule.slots]))

    def share(self, task: int, where: Where) -> float:
        """The share of a task in the objective, with the penalties, in weighted seconds."""
        share = self.tasks[task].weight * self.latency_s(task, where)
        for module in self.penalised[task]:
            share += self.penalty(module, where[module])
        return share

    def objective(self, where: Where) -> float:
        """The objective with the penalties, in weighted seconds, which solvers compare."""
        return sum(self.share(task, where) for task in range(len(self.tasks)))

    def cost_s(self, module: int, row: Row, where: Where) -> float:
        """The share of the tasks that use this module, if it were on this row; ``NOWHERE`` is allowed."""
        there = where.copy()
        there[module] = row
        return sum(self.tasks[task].weight * self.latency_s(task, there) for task in self.users[module])

    def costs_s(self, module: int, rows: Integers, where: Where) -> Floats:
        """``cost_s`` for each of these rows, bit for bit."""
        if len(rows) <= _FEW:
            return np.array([self.cost_s(module, int(row), where) for row in rows])
        costs = np.zeros(len(rows))
        for task in self.users[module]:
            schedule = self.schedules[task]
            slots = [rows if slot == module else where[slot] for slot in schedule.slots]
            costs += self.tasks[task].weight * schedule.latencies_s(slots)
        return costs

    def bounds(self, module: int, where: Where) -> tuple[Floats, bool]:
        """For every row a lower bound of ``cost_s``, with the penalty; and whether each is the cost itself."""
        bounds, exact = np.zeros(len(self.fleet)), True
        for task in self.users[module]:
            schedule = self.schedules[task]
            slots = tuple([where[slot] for slot in schedule.slots])
            bound, known = schedule.bounds_s(schedule.slots.index(module), slots)
            bounds += self.tasks[task].weight * bound
            exact &= known
        return bounds + self.penalties(module), exact

    def cheapest(self, module: int, rows: Integers, where: Where) -> Row:
        """The row among these where the module costs least, penalty and all; ties go to the smaller id.

        Lower bounds for all rows come first: only where one is below the cost of the most promising are requests timed.
        """
        bounds, exact = self.bounds(module, where)
        bounds = bounds[rows]
        best = int(rows[bounds.argmin()])
        if exact:
            return best
        least = self.cost_s(module, best, where) + self.penalty(module, best)
        if least <= bounds.min() * (1 + _ROUNDING):
            return best  # no row can be cheaper
        rows = rows[bounds <= least]
        return int(rows[(self.costs_s(module, rows, where) + self.penalties(module)[rows]).argmin()])

    def placement(self, where: Where, kept: Collection[int] = ()) -> Placement:
        """The result, once every module has a row; ``kept`` are the modules that were not to move."""
        homes = [(key, self.fleet.specs[row].id) for key, row in zip(self.keys, where, strict=True)]
        at = [int(sizes[row]) for sizes, row in zip(self.sizes, where, strict=True)]
        latency_s = {task.task: self.latency_s(number, where) for number, task in enumerate(self.tasks)}
        return Placement(
            where=dict(sorted(homes, key=lambda home: copy_number(home[0]))),  # the order counts when they are kept
            objective_s=sum(task.weight * latency_s[task.task] for task in self.tasks),
            latency_s=latency_s,
            shared_bytes=sum(at),
            unshared_bytes=sum(size * len(users) for size, users in zip(at, self.users, strict=True)),
            kept=frozenset(self.keys[module] for module in kept),
            problem=self,
        )


@dataclass(frozen=True)
class Placement:
    """Where each module is and what that costs. ``unshared_bytes``: the sum if each task had modules of its own.

    ``where`` has each copy of a module, by its key (``copies``); ``further`` has the tasks that use a further copy.
    ``kept`` are the modules that were not to move. ``explain`` says why each module is where it is.
    """

    where: Mapping[ModuleKey, DeviceId]
    objective_s: float
    latency_s: Mapping[TaskName, float]
    shared_bytes: int
    unshared_bytes: int
    kept: frozenset[ModuleKey]
    problem: Problem = field(compare=False, repr=False)

    @property
    def further(self) -> FurtherCopies:
        """For each task the modules of which it uses a further copy."""
        return self.problem.further

    def devices_of(self, task: TaskName) -> set[DeviceId]:
        """The devices that a task uses."""
        number = next(number for number, spec in enumerate(self.problem.tasks) if spec.task == task)
        return {self.where[self.problem.keys[module]] for module in self.problem.schedules[number].slots}

    @cached_property
    def used_bytes(self) -> Mapping[DeviceId, int]:
        """The memory that modules need on each device, by id."""
        used = dict.fromkeys(self.problem.fleet.rows, 0)
        for key, sizes in zip(self.problem.keys, self.problem.sizes, strict=True):
            used[self.where[key]] += int(sizes[self.problem.fleet.rows[self.where[key]]])
        return used
