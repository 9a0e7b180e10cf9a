"""A start-time fair queue: fair between tasks, and within a task between its clients. Pure.

Owns the work that waits for the compute thread. Knows no requests, modules or threads: its user chooses the items and
charges the seconds.

Between tasks this is start-time fair queueing (Goyal, Vin and Cheng 1996). The task that has used the least compute
time goes next: a task that asks ten times as much gets no larger share while both wait. A task that returns after a
pause starts level with the others: idle time earns no credit. The same holds for the clients of a task: a sensor that
asks ten times as much delays the others by no more than they delay it. Requests that name no client share one account.
Of one client's items the earliest deadline goes first, so that a begun request finishes before a later one begins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from broker.protocol.specs import ClientName, TaskName

Item = TypeVar("Item", bound=Hashable)


class _Accounts:
    """The compute time of flows, tasks or clients, that wait or are ahead of the virtual time."""

    def __init__(self) -> None:
        self._used_s: dict[str, float] = {}
        self._virtual_time_s = 0.0  # used time of the flow that was served last; a returning flow starts here

    def __len__(self) -> int:
        return len(self._used_s)

    def begin(self, flow: str, *, alone: bool) -> None:
        """A flow begins to wait; ``alone``: no other waits, so none is behind another one any more."""
        if alone:
            self._virtual_time_s = max(self._used_s.values(), default=self._virtual_time_s)
            self._used_s = {}
        self._used_s[flow] = max(self._virtual_time_s, self._used_s.get(flow, 0.0))

    def first(self, waiting: Collection[str]) -> str:
        """The waiting flow that has used the least."""
        return min(waiting, key=lambda name: (self._used_s[name], name))

    def serve(self, flow: str, waiting: Collection[str]) -> None:
        """A flow is served; ``waiting`` are those that wait after that."""
        served_s = self._virtual_time_s = self._used_s[flow]
        used_s = self._used_s.items()
        self._used_s = {name: s for name, s in used_s if s > served_s or name == flow or name in waiting}

    def charge(self, flow: str, seconds: float) -> None:
        """Add compute time to an account; negative seconds correct an earlier charge that was too high."""
        used_s = self._used_s.get(flow, self._virtual_time_s)
        self._used_s[flow] = max(self._virtual_time_s, used_s) + seconds


class FairQueue(Generic[Item]):
    """The items that wait, by task."""

    def __init__(self) -> None:
        self.waiting: dict[TaskName, dict[ClientName, dict[Item, float]]] = {}  # -> deadlines; its users only read it
        self._tasks = _Accounts()
        self._clients: defaultdict[TaskName, _Accounts] = defaultdict(_Accounts)

    def add(self, task: TaskName, item: Item, deadline_s: float, *, client: ClientName = "") -> None:
        """Put an item into the queue."""
        if task not in self.waiting:
            if not self.waiting:
                self._clients.clear()
            self._tasks.begin(task, alone=not self.waiting)
            self.waiting[task] = {}
        clients = self.waiting[task]
        if client not in clients:
            self._clients[task].begin(client, alone=not clients)
            clients[client] = {}
        clients[client][item] = deadline_s

    def discard(self, task: TaskName, item: Item, *, client: ClientName = "") -> None:
        """Remove an item, if it waits."""
        clients = self.waiting.get(task, {})
        items = clients.get(client, {})
        items.pop(item, None)
        if not items:
            clients.pop(client, None)
        if not clients:
            self.waiting.pop(task, None)

    def take(self) -> tuple[TaskName, Item] | None:
        """Remove and return the next item; None when the queue is empty. The caller then charges its seconds."""
        if not self.waiting:
            return None
        task = self._tasks.first(self.waiting)
        client = self._clients[task].first(self.waiting[task])
        item = min(self.waiting[task][client].items(), key=lambda pair: pair[1])[0]
        self.discard(task, item, client=client)
        self._tasks.serve(task, self.waiting)
        self._clients[task].serve(client, self.waiting.get(task, ()))
        return task, item

    def company(self, fits: Callable[[Item], bool]) -> Iterator[tuple[TaskName, ClientName, Item, float]]:
        """The waiting items that fit, with their deadlines, in the order in which each would be next of them.

        They stay in the queue: the caller discards each that it takes along with another item, and charges its seconds
        before it asks for the next one. Whoever isn't taken along comes no later for that.
        """
        fitting = {
            task: {client: [each for each in items.items() if fits(each[0])] for client, items in clients.items()}
            for task, clients in self.waiting.items()
        }
        left = {task: {client: items for client, items in each.items() if items} for task, each in fitting.items()}
        left = {task: clients for task, clients in left.items() if clients}
        for clients in left.values():
            for items in clients.values():
                items.sort(key=lambda pair: pair[1], reverse=True)
        while left:
            task = self._tasks.first(left)
            client = self._clients[task].first(left[task])
            item, deadline_s = left[task][client].pop()
            if not left[task][client]:
                del left[task][client]
            if not left[task]:
                del left[task]
            yield task, client, item, deadline_s

    def charge(self, task: TaskName, seconds: float, *, client: ClientName = "") -> None:
        """Add compute time to the accounts of a task and its client; negative seconds correct an earlier charge."""
        self._tasks.charge(task, seconds)
        self._clients[task].charge(client, seconds)


Flow = tuple[TaskName, ClientName]
"""Work of one task for one client."""


def fair_wait_s(waiting_s: Mapping[Flow, float], flow: Flow, new_work_s: float) -> float:
    """Seconds until ``new_work_s`` seconds of new work of a flow begin, behind the waiting seconds of each flow.

    All earlier work of the flow comes first. Of each other client of the task comes at most as much as this one gets
    until then, and of each other task at most as much as this task gets.
    """
    task, own_s = flow[0], waiting_s.get(flow, 0.0)
    tasks_s: dict[TaskName, float] = {}
    of_clients_s = own_s
    for other, seconds in waiting_s.items():
        if other[0] != task:
            tasks_s[other[0]] = tasks_s.get(other[0], 0.0) + seconds
        elif other != flow:
            of_clients_s += min(seconds, own_s + new_work_s)
    return of_clients_s + sum(min(seconds, of_clients_s + new_work_s) for seconds in tasks_s.values())
