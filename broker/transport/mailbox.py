"""The mailbox of a process: network, heartbeat and compute threads leave events for the service thread.

Owns the bounds. Control events never wait behind data events. Data events can't fill the memory: when their share is
full, an event is refused and counted, and its sender retries.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

E = TypeVar("E")

MAX_CONTROL_EVENTS = 10_000
MAX_DATA_EVENTS = 1_000
MAX_DATA_BYTES = 128 * 1024 * 1024


class Mailbox(Generic[E]):
    """A bounded queue with a fast lane for control events. Putting never blocks."""

    def __init__(self, *, max_data_bytes: int = MAX_DATA_BYTES) -> None:
        self._max_data_bytes = max_data_bytes
        self._control: deque[E] = deque()
        self._data: deque[tuple[E, int]] = deque()
        self._data_bytes = 0
        self.dropped = 0
        """The number of refused events since the start."""
        self._changed = threading.Condition()

    def put_control(self, event: E) -> bool:
        """Add a control event; False when there are too many."""
        with self._changed:
            if len(self._control) >= MAX_CONTROL_EVENTS:
                self.dropped += 1
                return False
            self._control.append(event)
            self._changed.notify()
            return True

    def put_data(self, event: E, size_bytes: int) -> bool:
        """Add a data event of this size; False when there are too many, or too many bytes."""
        with self._changed:
            if len(self._data) >= MAX_DATA_EVENTS or self._data_bytes + size_bytes > self._max_data_bytes:
                self.dropped += 1
                return False
            self._data.append((event, size_bytes))
            self._data_bytes += size_bytes
            self._changed.notify()
            return True

    def get(self, timeout_s: float | None) -> E | None:
        """Take the next event, control events first; None after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self._control or self._data, timeout_s)
            if self._control:
                return self._control.popleft()
            if self._data:
                event, size_bytes = self._data.popleft()
                self._data_bytes -= size_bytes
                return event
            return None
