"""The counters of a coordinator, by task: requests, answers, errors and latencies. Pure.

Owns the numbers and the sampler of traces. Knows no request: ``coordinate`` says what happened.

Invariants:
- Counters are never sampled. They only grow while the process runs, except that the counters of undeployed tasks are
  dropped when there are more than ``MAX_TASKS``.
- A request that was counted ends as one answer or one error, or is still in flight.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from broker.protocol.errors import ErrorCode
from broker.protocol.reports import TaskCounters
from broker.protocol.specs import TaskName

LATENCY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, math.inf)
"""The upper bounds of the latency buckets: from a small model on one device to the default deadline, and beyond."""
MAX_TASKS = 256  # in a summary: about 150 kB at most
REQUESTS, ANSWERED = "requests", "answered"

_Counted = Mapping[TaskName, Counter[str | float]]
"""By task: requests, answers, errors by code, and answers by the upper bound of their bucket."""


@dataclass
class Counters:
    """The counters of all tasks, and those of the last two snapshots."""

    _counted: defaultdict[TaskName, Counter[str | float]] = field(default_factory=lambda: defaultdict(Counter))
    _refused: Mapping[TaskName, int] = field(default_factory=dict)  # that were counted, since the start
    _snapshots: deque[_Counted] = field(default_factory=lambda: deque(maxlen=2))

    def count_request(self, task: TaskName) -> None:
        """Count a request that arrived; a copy of one in flight doesn't count."""
        self._counted[task][REQUESTS] += 1

    def count_answer(self, task: TaskName, latency_s: float) -> None:
        """Count an answer, and the seconds since its request arrived."""
        counted = self._counted[task]
        counted[ANSWERED] += 1
        counted[LATENCY_BOUNDS_S[bisect_left(LATENCY_BOUNDS_S, latency_s)]] += 1

    def count_error(self, task: TaskName, code: ErrorCode) -> None:
        """Count a request that ended with an error."""
        self._counted[task][code] += 1

    def count_refused(self, refused: Mapping[TaskName, int]) -> None:
        """Count the requests that were refused without being read; ``refused`` has all since the start."""
        for task, number in refused.items():
            if not (new := number - self._refused.get(task, 0)):
                continue  # the counters of an undeployed task may be dropped
            self._counted[task].update({REQUESTS: new, ErrorCode.OVERLOADED: new})
        self._refused = refused

    def total(self) -> dict[TaskName, TaskCounters]:
        """The counters since the start of the process."""
        return {task: _message(counted) for task, counted in sorted(self._counted.items())}

    def since_two_snapshots(self) -> dict[TaskName, TaskCounters]:
        """The counts since the snapshot before the last one, or since the start; tasks without any are left out."""
        earlier = self._snapshots[0] if len(self._snapshots) == self._snapshots.maxlen else {}
        new = {task: counted - earlier.get(task, Counter()) for task, counted in sorted(self._counted.items())}
        return {task: _message(counted) for task, counted in new.items() if counted}

    def take_snapshot(self, deployed: Collection[TaskName]) -> None:
        """Remember the present counters. Beyond ``MAX_TASKS`` tasks, drop those of tasks that aren't deployed."""
        if len(self._counted) > MAX_TASKS:
            for task in [task for task in self._counted if task not in deployed]:
                del self._counted[task]
        self._snapshots.append({task: counted.copy() for task, counted in self._counted.items()})


@dataclass
class Sampler:
    """Lets at most ``limit`` values through in any second."""

    limit: int
    _taken_s: deque[float] = field(default_factory=deque)  # when the last ones went through

    def take(self, now_s: float) -> bool:
        """Whether a value may go through now; it counts if so."""
        while self._taken_s and now_s - self._taken_s[0] >= 1.0:
            self._taken_s.popleft()
        if len(self._taken_s) >= self.limit:
            return False
        self._taken_s.append(now_s)
        return True


def _message(counted: Counter[str | float]) -> TaskCounters:
    return TaskCounters(
        requests=counted[REQUESTS],
        answered=counted[ANSWERED],
        errors={code.value: counted[code] for code in ErrorCode if counted[code]},
        latency_s={bound_s: counted[bound_s] for bound_s in LATENCY_BOUNDS_S if counted[bound_s]},
    )
