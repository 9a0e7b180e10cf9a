"""The times at which heartbeats are due, and whether heartbeats left in time. Pure.

Owns the order of due items, and the rule by which a run is valid. The simulator shares a core with the broker: if it
sends heartbeats late, the orchestrator suspects devices without a fault of its own.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from s2m3.testbed.percentiles import percentile

LATE_INTERVALS = 0.5
"""A heartbeat is late when it leaves later than this many intervals after it was due: a quarter of the two intervals
after which the orchestrator suspects a device."""

T = TypeVar("T")


class Agenda(Generic[T]):
    """Items that are due at some time; each item has at most one."""

    def __init__(self) -> None:
        self._due_s: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0  # orders equal times, so that items needn't be comparable

    def set(self, item: T, at_s: float) -> None:
        """Make an item due at this time, and not at any other."""
        self._due_s[item] = at_s
        self._count += 1
        heapq.heappush(self._heap, (at_s, self._count, item))

    def discard(self, item: T) -> None:
        """Make an item not due any more; nothing happens if it wasn't."""
        self._due_s.pop(item, None)

    @property
    def next_s(self) -> float | None:
        """The time of the first item; None when nothing is due."""
        while self._heap and self._due_s.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_s: float) -> tuple[T, float] | None:
        """Take the first item that is due, with its time; None when none is."""
        at_s = self.next_s
        if at_s is None or at_s > now_s:
            return None
        item = heapq.heappop(self._heap)[2]
        del self._due_s[item]
        return item, at_s


@dataclass
class Punctuality:
    """How late the simulator's own heartbeats left."""

    interval_s: float
    late_s: list[float] = field(default_factory=list)  # of each heartbeat

    def note(self, late_s: float) -> None:
        """Count a heartbeat that was handed to the system so long after it was due."""
        self.late_s.append(max(0.0, late_s))

    @property
    def bound_s(self) -> float:
        """The lateness that is allowed."""
        return LATE_INTERVALS * self.interval_s

    @property
    def late(self) -> int:
        """The number of heartbeats that left too late."""
        return sum(each > self.bound_s for each in self.late_s)

    @property
    def valid(self) -> bool:
        """Whether heartbeats were sent, and none too late."""
        return bool(self.late_s) and self.late == 0

    def document(self) -> dict[str, object]:
        """The figures, as the report has them."""
        return {
            "sent": len(self.late_s),
            "late": self.late,
            "late_above_s": self.bound_s,
            "worst_s": max(self.late_s, default=None),
            "p99_s": percentile(self.late_s, 99),
        }
