"""The mailbox of a process: network, heartbeat and compute threads leave events for the service thread.

Owns the bounds and the order of the lanes: the process's own events, control, data, requests. A lane never waits behind
a later one. Own events can't be refused: each one is the end of work that the service thread began. Data and requests
can't fill the memory: when a lane is full, an event is refused and counted. The sender of data retries; the caller
answers a refused request.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

E = TypeVar("E")

MAX_CONTROL_EVENTS = 10_000
MAX_WAITING_CONTROL_BYTES = 64 * 1024 * 1024  # 1,000 devices retain and say less than a tenth of that
MAX_DATA_EVENTS = 1_000
MAX_DATA_BYTES = 128 * 1024 * 1024
MAX_REQUESTS = 1_000  # one client alone gets half of them, and of the bytes
MAX_REQUEST_BYTES = 64 * 1024 * 1024


class _Lane(Generic[E]):
    """A queue with a bound on its events and on their bytes."""

    def __init__(self, most_events: int, most_bytes: int) -> None:
        self._most_events, self._most_bytes = most_events, most_bytes
        self._waiting: deque[tuple[E, int]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, event: E, size_bytes: int, *, certain: bool) -> bool:
        is_full = len(self._waiting) >= self._most_events or self._bytes + size_bytes > self._most_bytes
        if is_full and not certain:
            return False
        self._waiting.append((event, size_bytes))
        self._bytes += size_bytes
        return True

    def take(self) -> E:
        event, size_bytes = self._waiting.popleft()
        self._bytes -= size_bytes
        return event


class _FairLane(Generic[E]):
    """A lane in which clients take turns. Each may have as many events, and as many bytes, as all leave free."""

    def __init__(self, most_events: int, most_bytes: int) -> None:
        self._free_events, self._free_bytes = most_events, most_bytes
        self._waiting: dict[str, deque[tuple[E, int]]] = {}  # by client, the next one first
        self._bytes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, event: E, size_bytes: int, client: str) -> bool:
        own, own_bytes = self._waiting.get(client, deque()), self._bytes.get(client, 0)
        if len(own) >= self._free_events or own_bytes + size_bytes > self._free_bytes:
            return False
        own.append((event, size_bytes))
        self._waiting[client] = own
        self._bytes[client] = own_bytes + size_bytes
        self._free_events -= 1
        self._free_bytes -= size_bytes
        return True

    def take(self) -> E:
        client, own = next(iter(self._waiting.items()))
        event, size_bytes = own.popleft()
        self._bytes[client] -= size_bytes
        self._free_events += 1
        self._free_bytes += size_bytes
        del self._waiting[client]
        if own:
            self._waiting[client] = own  # behind the others
        else:
            del self._bytes[client]
        return event


class Mailbox(Generic[E]):
    """Bounded queues, and an unbounded one for the process's own events. Putting never blocks."""

    def __init__(self, *, max_data_bytes: int = MAX_DATA_BYTES) -> None:
        self._own: deque[E] = deque()
        self._control: _Lane[E] = _Lane(MAX_CONTROL_EVENTS, MAX_WAITING_CONTROL_BYTES)
        self._data: _Lane[E] = _Lane(MAX_DATA_EVENTS, max_data_bytes)
        self._requests: _FairLane[E] = _FairLane(MAX_REQUESTS, MAX_REQUEST_BYTES)
        self.dropped = 0
        """The number of refused events since the start."""
        self._changed = threading.Condition()

    def put_own(self, event: E) -> None:
        """Add an event of the process's own threads; there is always room."""
        with self._changed:
            self._own.append(event)
            self._changed.notify()

    def put_control(self, event: E, size_bytes: int = 0, *, certain: bool = False) -> bool:
        """Add a control event of this size; False when there are too many, or too many bytes.

        There is always room for a ``certain`` one.
        """
        return self._put(self._control, event, size_bytes, certain=certain)

    def put_data(self, event: E, size_bytes: int) -> bool:
        """Add a data event of this size; False when there are too many, or too many bytes."""
        return self._put(self._data, event, size_bytes)

    def put_request(self, event: E, size_bytes: int, *, client: str = "") -> bool:
        """Add a client's request of this size; False when it has as many, or as many bytes, as are left free."""
        with self._changed:
            if self._requests.put(event, size_bytes, client):
                self._changed.notify()
                return True
            self.dropped += 1
            return False

    def get(self, timeout_s: float | None) -> E | None:
        """Take the next event of the first lane that has one; None after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._own or self._control or self._data or self._requests, timeout_s)
            if self._own:
                return self._own.popleft()
            if self._control:
                return self._control.take()
            lane = self._data or self._requests
            return lane.take() if lane else None

    def get_all(self, timeout_s: float | None) -> list[E]:
        """Take all own and control events, in order, or else the next one of another lane; none after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._own or self._control or self._data or self._requests, timeout_s)
            if self._own or self._control:
                taken = [*self._own, *(self._control.take() for _ in range(len(self._control)))]
                self._own.clear()
                return taken
            lane = self._data or self._requests
            return [lane.take()] if lane else []

    def _put(self, lane: _Lane[E], event: E, size_bytes: int, *, certain: bool = False) -> bool:
        with self._changed:
            if lane.put(event, size_bytes, certain=certain):
                self._changed.notify()
                return True
            self.dropped += 1
            return False
