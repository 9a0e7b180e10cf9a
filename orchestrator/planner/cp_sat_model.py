"""An integer program that takes one candidate for every task, so that they agree on shared modules and all fits.

Owns the program and the solver, OR-Tools' CP-SAT. Knows nothing of latencies but that each candidate has a cost.

The program: a binary for each candidate of each task, exactly one of them true; a binary for each shared module and
device, equal to the sum of each task's candidates that put it there; on each device that could be filled up, the bytes
of what is true are at most its memory; the least sum of costs. Memory counts in bytes and time in whole steps, so the
proof holds without tolerances.

Why CP-SAT: measured against HiGHS (through scipy) on the 95 instances of ``benchmarks/placement``, one thread, the same
program, started from the refined placement, limit 60 s: CP-SAT proved all 95 in 7.8 s of processor time (median 1 ms,
worst 2.7 s), HiGHS 94 in 34 s (median 2 ms; the 95th not within the limit). Started from the greedy placement, HiGHS
also ended once with a placement 2.5 times too slow, 40 s after its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from broker.protocol.errors import S2M3Error
from broker.protocol.specs import DeviceId, ModuleKey, TaskName
from orchestrator.planner.candidates import Candidates
from orchestrator.planner.fleet import Flags, Integers

STEPS = 1e12
"""Steps of time in the objective: a thousand times finer than the 1e-9 to which plans are compared."""


@dataclass(frozen=True)
class Options:
    """The candidates of one task, and the modules that their columns place."""

    keys: Sequence[ModuleKey]
    candidates: Candidates

    def used_bytes(self, sizes: Mapping[ModuleKey, int], devices: int, of: Collection[ModuleKey]) -> Integers:
        """The memory that some of the modules take on each device, (N, D)."""
        rows = self.candidates.rows
        used = np.zeros((len(rows), devices), dtype=np.int64)
        for position, key in enumerate(self.keys):
            if key in of:
                used[np.arange(len(used)), rows[:, position]] += sizes[key]
        return used

    def cheapest(self, shared: Collection[ModuleKey], tight: Flags, sizes: Mapping[ModuleKey, int]) -> Options:
        """Of the candidates that are alike to all other tasks, the cheapest one.

        Args:
            shared: modules that other tasks use too: alike means that these are on the same devices.
            tight: (D,): the devices that could be filled up: alike means that these are filled by the same bytes.
            sizes: the modules' memory in bytes.
        """
        own = [key for key in self.keys if key not in shared]
        places = self.candidates.rows[:, [position for position, key in enumerate(self.keys) if key in shared]]
        traits = np.column_stack([places, self.used_bytes(sizes, len(tight), own)[:, tight]])
        _, first = np.unique(traits, axis=0, return_index=True)  # candidates rise in cost: the first is the cheapest
        return Options(self.keys, self.candidates.only(np.sort(first)))


@dataclass(frozen=True)
class Instance:
    """The candidates of all tasks, and what they have in common.

    ``shared``: modules that several tasks use. ``room``: each device's memory in bytes, (D,). ``devices``: their ids,
    in the order of the candidates' rows.
    """

    options: Mapping[TaskName, Options]
    shared: Collection[ModuleKey]
    sizes: Mapping[ModuleKey, int]
    room: Integers
    devices: Sequence[DeviceId]


@dataclass(frozen=True)
class Chosen:
    """The solver's answer: where the modules go (empty: nothing found), and what it knows of the least objective."""

    where: Mapping[ModuleKey, DeviceId]
    bound_s: float
    finished: bool  # this is the least; or, when nothing was found, there is nothing


def choose(instance: Instance, start: Mapping[ModuleKey, DeviceId] | None, left_s: Callable[[], float]) -> Chosen:
    """Take one candidate for every task, with the least sum of costs.

    Args:
        instance: the candidates.
        start: a placement to begin with.
        left_s: the time left, asked when the program is written; after it the best so far is returned.

    Raises:
        S2M3Error: the solver isn't installed.
    """
    if not all(len(found.candidates.costs) for found in instance.options.values()):
        return Chosen({}, np.inf, finished=True)
    cp_model = _cp_model()
    program = _Program(instance, cp_model.CpModel())
    program.hint(start or {})
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = left_s()
    solver.parameters.num_workers = 1  # the same answer every time, on one core
    solver.parameters.relative_gap_limit = 0.0
    solver.parameters.cp_model_probing_level = 0  # measured: the hardest of the 95 instances take a third less
    status = solver.solve(program.model)
    if status == cp_model.INFEASIBLE:
        return Chosen({}, np.inf, finished=True)
    where: dict[ModuleKey, DeviceId] = {}
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        for name, found in instance.options.items():
            row = next(row for row, taken in enumerate(program.taken[name]) if solver.boolean_value(taken))
            where |= {key: instance.devices[found.candidates.rows[row, k]] for k, key in enumerate(found.keys)}
    bound_s = program.least_s + max(0.0, solver.best_objective_bound - len(instance.options)) / program.steps_per_s
    return Chosen(where, bound_s, finished=status == cp_model.OPTIMAL)


class _Program:
    """The integer program of an instance."""

    def __init__(self, instance: Instance, model: Any) -> None:  # noqa: ANN401 - the solver is an extra
        self.instance, self.model = instance, model
        self.there = {key: [model.new_bool_var("") for _ in instance.devices] for key in sorted(instance.shared)}
        self.taken = {
            name: [model.new_bool_var("") for _ in found.candidates.costs] for name, found in instance.options.items()
        }
        for binaries in (*self.there.values(), *self.taken.values()):
            model.add_exactly_one(binaries)
        for name, found in instance.options.items():
            self._agree(found, self.taken[name])
        self._fit()
        self._cost()

    def hint(self, start: Mapping[ModuleKey, DeviceId]) -> None:
        """Begin the search at a placement."""
        for key, binaries in self.there.items():
            for device, binary in zip(self.instance.devices, binaries, strict=True):
                if key in start:
                    self.model.add_hint(binary, int(start[key] == device))

    def _agree(self, found: Options, taken: Sequence[Any]) -> None:
        """Let a task's candidates put a shared module where it is."""
        for position, key in enumerate(found.keys):
            for device, binary in enumerate(self.there.get(key, ())):
                rows = np.flatnonzero(found.candidates.rows[:, position] == device).tolist()
                self.model.add(sum(taken[row] for row in rows) == binary)

    def _fit(self) -> None:
        """Limit each device that could be filled up: the shared modules there, and each task's own of what is taken."""
        sizes, room = self.instance.sizes, self.instance.room
        own = {
            name: found.used_bytes(sizes, len(room), set(found.keys) - set(self.there))
            for name, found in self.instance.options.items()
        }
        for device in np.flatnonzero(room < sum(sizes.values())).tolist():
            bytes_of = [(binaries[device], sizes[key]) for key, binaries in self.there.items()]
            for name, used in own.items():
                bytes_of += [
                    (self.taken[name][row], int(used[row, device])) for row in np.flatnonzero(used[:, device]).tolist()
                ]
            if bytes_of:
                self.model.add(sum(binary * size for binary, size in bytes_of) <= int(room[device]))

    def _cost(self) -> None:
        """Minimise the sum of what each task costs more than it could, in steps."""
        costs = {name: found.candidates.costs for name, found in self.instance.options.items()}
        self.least_s = float(sum(known[0] for known in costs.values()))
        most_s = max((float(known[-1] - known[0]) for known in costs.values()), default=0.0)
        self.steps_per_s = STEPS / max(self.least_s, most_s, 1e-300)
        self.model.minimize(
            sum(
                binary * round(float(cost - costs[name][0]) * self.steps_per_s)
                for name, taken in self.taken.items()
                for binary, cost in zip(taken, costs[name], strict=True)
            )
        )


def fits(sizes: Sequence[int], room: Sequence[int]) -> bool:
    """Whether modules of these sizes can be put on devices with this memory, all in bytes.

    Raises:
        S2M3Error: the solver isn't installed.
    """
    cp_model = _cp_model()
    model = cp_model.CpModel()
    held = [[model.new_bool_var("") for _ in room] for _ in sizes]
    for binaries in held:
        model.add_exactly_one(binaries)
    for device, capacity in enumerate(room):
        model.add(sum(binaries[device] * size for binaries, size in zip(held, sizes, strict=True)) <= capacity)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    return bool(solver.solve(model) == cp_model.OPTIMAL)


def _cp_model() -> Any:  # noqa: ANN401 - the solver is an extra
    try:
        from ortools.sat.python import cp_model  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as error:
        raise S2M3Error("the exact solver needs OR-Tools, which isn't installed: pip install 's2m3[exact]'") from error
    return cp_model
