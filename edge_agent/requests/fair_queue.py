"""Who computes next: fair between tasks, the most urgent first within one. Pure.

Owns the work that waits for the compute thread. Knows nothing of requests, modules and threads: an item is whatever
its owner says it is, and seconds are told to it.

Between tasks this is start-time fair queueing (Goyal, Vin and Cheng 1996): the task that has had the least compute time
goes next, so a task that asks ten times as much as another gets no more of the device while both wait. Who returns
after a pause starts level with the others: idle time is no credit. Within a task the item whose deadline comes first
goes first, so that a request that was begun is finished before a later one is begun.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

from broker.protocol.specs import TaskName

Item = TypeVar("Item", bound=Hashable)


class Turns(Generic[Item]):
    """Work that waits, by task."""

    def __init__(self) -> None:
        self._waiting: dict[TaskName, dict[Item, float]] = {}  # -> its deadline
        self._used_s: dict[TaskName, float] = {}  # compute time had, of tasks that wait or are ahead of the others
        self._level_s = 0.0  # what the task that went last had used by then: who returns starts here

    @property
    def waiting(self) -> Mapping[TaskName, Mapping[Item, float]]:
        """Every task that waits -> its items and their deadlines."""
        return self._waiting

    def add(self, task: TaskName, item: Item, deadline_s: float) -> None:
        """Something to compute."""
        if not self._waiting:  # nobody is behind anybody any more
            self._level_s = max(self._used_s.values(), default=self._level_s)
            self._used_s = {}
        if task not in self._waiting:
            self._used_s[task] = max(self._level_s, self._used_s.get(task, 0.0))
            self._waiting[task] = {}
        self._waiting[task][item] = deadline_s

    def discard(self, task: TaskName, item: Item) -> bool:
        """It needn't be computed any more; whether it waited."""
        items = self._waiting.get(task, {})
        found = items.pop(item, None) is not None
        if found and not items:
            del self._waiting[task]
        return found

    def take(self) -> tuple[TaskName, Item] | None:
        """The next one, or None when nothing waits. The caller says with ``charge`` what it took."""
        if not self._waiting:
            return None
        task = min(self._waiting, key=lambda name: (self._used_s[name], name))
        item = min(self._waiting[task].items(), key=lambda pair: pair[1])[0]
        self._level_s = self._used_s[task]
        self.discard(task, item)
        ahead = {name: used_s for name, used_s in self._used_s.items() if used_s > self._level_s}
        self._used_s = ahead | {name: self._used_s[name] for name in (*self._waiting, task)}
        return task, item

    def charge(self, task: TaskName, seconds: float) -> None:
        """A task had this much compute time; negative when less than it was charged before."""
        self._used_s[task] = max(self._level_s, self._used_s.get(task, self._level_s)) + seconds


def fair_wait_s(waiting_s: Mapping[TaskName, float], task: TaskName, more_s: float) -> float:
    """How long ``more_s`` seconds of work of a task will take where turns are taken, with what waits of each task.

    All of its own work comes before, and of each other task at most as much as it gets itself until then.

    Returns:
        The seconds until it begins.
    """
    own_s = waiting_s.get(task, 0.0)
    return own_s + sum(min(seconds, own_s + more_s) for other, seconds in waiting_s.items() if other != task)
