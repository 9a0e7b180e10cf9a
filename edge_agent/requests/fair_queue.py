"""A start-time fair queue: fair between tasks, and earliest deadline first within a task. Pure.

Owns the work that waits for the compute thread. Knows no requests, modules or threads: its user chooses the items and
charges the seconds.

Between tasks this is start-time fair queueing (Goyal, Vin and Cheng 1996). The task that has used the least compute
time goes next: a task that asks ten times as much gets no larger share while both wait. A task that returns after a
pause starts level with the others: idle time earns no credit. Within a task the earliest deadline goes first, so that a
begun request finishes before a later one begins.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

from broker.protocol.specs import TaskName

Item = TypeVar("Item", bound=Hashable)


class FairQueue(Generic[Item]):
    """The items that wait, by task."""

    def __init__(self) -> None:
        self.waiting: dict[TaskName, dict[Item, float]] = {}  # -> its deadline; the queue's users only read it
        self._used_s: dict[TaskName, float] = {}  # compute time of tasks that wait or are ahead of the virtual time
        self._virtual_time_s = 0.0  # used time of the task that was served last; a returning task starts here

    def add(self, task: TaskName, item: Item, deadline_s: float) -> None:
        """Put an item into the queue."""
        if not self.waiting:  # no task is behind another one any more
            self._virtual_time_s = max(self._used_s.values(), default=self._virtual_time_s)
            self._used_s = {}
        if task not in self.waiting:
            self._used_s[task] = max(self._virtual_time_s, self._used_s.get(task, 0.0))
            self.waiting[task] = {}
        self.waiting[task][item] = deadline_s

    def discard(self, task: TaskName, item: Item) -> None:
        """Remove an item, if it waits."""
        items = self.waiting.get(task, {})
        items.pop(item, None)
        if not items:
            self.waiting.pop(task, None)

    def take(self) -> tuple[TaskName, Item] | None:
        """Remove and return the next item; None when the queue is empty. The caller then charges its seconds."""
        if not self.waiting:
            return None
        task = min(self.waiting, key=lambda name: (self._used_s[name], name))
        item = min(self.waiting[task].items(), key=lambda pair: pair[1])[0]
        self._virtual_time_s = self._used_s[task]
        self.discard(task, item)
        ahead = {name: used_s for name, used_s in self._used_s.items() if used_s > self._virtual_time_s}
        self._used_s = ahead | {name: self._used_s[name] for name in (*self.waiting, task)}
        return task, item

    def charge(self, task: TaskName, seconds: float) -> None:
        """Add compute time to a task's account; negative seconds correct an earlier charge that was too high."""
        used_s = self._used_s.get(task, self._virtual_time_s)
        self._used_s[task] = max(self._virtual_time_s, used_s) + seconds


def fair_wait_s(waiting_s: Mapping[TaskName, float], task: TaskName, new_work_s: float) -> float:
    """Seconds until ``new_work_s`` seconds of new work of a task begin, behind the waiting seconds of each task.

    All earlier work of the task comes first. Of each other task comes at most as much as this task gets until then.
    """
    own_s = waiting_s.get(task, 0.0)
    return own_s + sum(min(seconds, own_s + new_work_s) for other, seconds in waiting_s.items() if other != task)
