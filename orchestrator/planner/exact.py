"""The optimal placement, with a proof: what the heuristics are measured against.

Owns the search for it. Each task's assignments that can belong to an optimum come from ``candidates``, timed by list
scheduling as ``costs`` has it; ``choice`` then takes one of them for every task, so that all tasks put a shared module
on one device and no device's memory is exceeded.

Invariants:
- ``proven`` is true only if no placement is cheaper by more than ``TOLERANCE``;
- ``bound_s`` is never above the optimum, proven or not;
- the objective is that of ``costs`` at the placement returned.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from broker.protocol.errors import NoDeviceFits, Refusal
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskName, TaskSpec
from orchestrator.planner.candidates import Candidates, Graph, Integers, TooMany
from orchestrator.planner.choice import Chosen, Instance, choose
from orchestrator.planner.costs import objective_s, source_of
from orchestrator.planner.placement import Bars, distinct_modules
from orchestrator.planner.refine import refined

TOLERANCE = 1e-10
"""Of the objective: plans are compared to 1e-9, and sums of floats lose less than this."""
LEAST_S = 0.1
"""What the solver gets even when the time is over: a small instance is solved by then."""


class Undecided(Refusal):
    """The time was over before a placement was found, or shown not to exist."""

    def __init__(self, time_limit_s: float, bound_s: float) -> None:
        self.time_limit_s = time_limit_s
        self.bound_s = bound_s
        super().__init__(
            f"no placement was found in {time_limit_s:g} s, nor that there is none; if there is one, its objective "
            f"is at least {bound_s:.6g} s: give it more time, or use the refined solver"
        )


@dataclass(frozen=True)
class Optimum:
    """The best placement found, in seconds; ``bound_s``: no placement is cheaper; ``proven``: this is the optimum."""

    where: Mapping[ModuleKey, DeviceId]
    objective_s: float
    bound_s: float
    proven: bool


def exact(
    devices: Sequence[DeviceSpec],
    tasks: Sequence[TaskSpec],
    *,
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    time_limit_s: float = 60.0,
) -> Optimum:
    """Find the cheapest placement of every module of every task.

    The refined placement is the start: what would make one task so slow that, with every other task as fast as it can
    be, the sum were worse than that, is left out.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        default_source: where requests of a task start that names no listed source.
        barred: devices that must not get a module.
        time_limit_s: then the best so far is returned, with the bound that is proven.

    Raises:
        NoDeviceFits: no placement exists.
        Undecided: none was found in that time.
        S2M3Error: the solver isn't installed.
    """
    until_s = time.monotonic() + time_limit_s

    def over() -> bool:
        return time.monotonic() > until_s

    search = _Search(devices, tasks, default_source, barred or {})
    best: Mapping[ModuleKey, DeviceId] | None = None
    upper_s = np.inf
    refusal: NoDeviceFits | None = None
    try:
        best = refined(devices, tasks, default_source=default_source, barred=barred, enough=over).where
        upper_s = search.objective_s(best)
    except NoDeviceFits as error:
        refusal = error
    finished = False
    while not finished:
        if not search.enumerate(upper_s, over):
            break
        chosen = search.choose(best, lambda: max(until_s - time.monotonic(), LEAST_S))
        if not chosen.where and chosen.finished and refusal is not None:
            raise refusal
        finished = chosen.finished and best is not None
        search.bound_s = max(search.bound_s, chosen.bound_s * (1 - TOLERANCE))
        if chosen.where and (cost_s := search.objective_s(chosen.where)) < upper_s:
            best, upper_s, refusal = chosen.where, cost_s, None
        if not chosen.finished:
            break
    if best is None:
        raise Undecided(time_limit_s, search.bound_s)
    return Optimum(best, upper_s, upper_s if finished else min(search.bound_s, upper_s), finished)


class _Search:
    """One instance, and what each of its tasks may still choose from."""

    def __init__(
        self, devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], default_source: DeviceSpec | None, barred: Bars
    ) -> None:
        self.devices = {device.id: device for device in sorted(devices, key=lambda device: device.id)}
        self.tasks = {task.task: task for task in sorted(tasks, key=lambda task: task.task)}
        self.sources = {name: source_of(task, self.devices, default_source) for name, task in self.tasks.items()}
        self.sizes = {key: module.memory_bytes for key, (_, module) in distinct_modules(tasks).items()}
        self.room: Integers = np.array([device.memory_bytes for device in self.devices.values()], dtype=np.int64)
        self.graphs = {
            name: Graph(task, list(self.devices.values()), self.sources[name], barred)
            for name, task in self.tasks.items()
        }
        self.options: dict[TaskName, Candidates] = {}
        self.least_s = {name: task.weight * self.graphs[name].least_s() for name, task in self.tasks.items()}
        self.bound_s = sum(self.least_s.values()) * (1 - TOLERANCE)

    def objective_s(self, where: Mapping[ModuleKey, DeviceId]) -> float:
        """The objective of a placement, as everybody counts it."""
        return objective_s(
            self.tasks.values(), {key: self.devices[device] for key, device in where.items()}, self.sources
        )

    def enumerate(self, upper_s: float, over: Callable[[], bool]) -> bool:
        """List what each task may choose from; False if that is too much, or the time is over."""
        try:
            for name, graph in self.graphs.items():
                if over():
                    return False
                found = graph.candidates(self._limit_s(name, upper_s), self.room, self.sizes)
                self._keep(name, found)
        except TooMany:
            return False
        before = -1
        while before != (before := sum(len(found.latency_s) for found in self.options.values())):
            for name, found in self.options.items():
                self._keep(name, found.kept(found.latency_s <= self._limit_s(name, upper_s)))
        self.bound_s = max(self.bound_s, sum(self.least_s.values()) * (1 - TOLERANCE))
        return True

    def _keep(self, name: TaskName, found: Candidates) -> None:
        self.options[name] = found
        if len(found.latency_s):
            self.least_s[name] = self.tasks[name].weight * float(found.latency_s.min())

    def _limit_s(self, name: TaskName, upper_s: float) -> float:
        """The latency beyond which the other tasks, each as fast as it can be, don't make up for this one."""
        others_s = sum(least_s for other, least_s in self.least_s.items() if other != name)
        return float((upper_s * (1 + TOLERANCE) - others_s) / self.tasks[name].weight)

    def choose(self, start: Mapping[ModuleKey, DeviceId] | None, left_s: Callable[[], float]) -> Chosen:
        """Take one of its options for every task."""
        users = Counter(key for found in self.options.values() for key in found.keys)
        shared = {key for key, count in users.items() if count > 1}
        tight = self.room < sum(self.sizes.values())
        options = {name: found.best(shared, tight, self.sizes) for name, found in self.options.items()}
        weights = {name: task.weight for name, task in self.tasks.items()}
        return choose(Instance(options, weights, shared, self.sizes, self.room, list(self.devices)), start, left_s)
