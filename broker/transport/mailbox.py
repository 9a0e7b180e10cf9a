"""One process, one mailbox: where network, heartbeat and compute threads leave events for the service thread.

Owns the bounds. Control events never wait behind data, and data can't fill the memory: when its share is full a
message is refused and counted, and whoever asked for it retries.
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
    """A bounded queue with a fast lane. Putting never blocks."""

    def __init__(self, *, max_data_bytes: int = MAX_DATA_BYTES) -> None:
        self._max_data_bytes = max_data_bytes
        self._control: deque[E] = deque()
        self._data: deque[tuple[E, int]] = deque()
        self._data_bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()

    @property
    def dropped(self) -> int:
        """Events refused because their share was full, since the start."""
        return self._dropped

    def put_control(self, event: E) -> bool:
        """Leave a control event; False when even these are too many."""
        with self._changed:
            if len(self._control) >= MAX_CONTROL_EVENTS:
                self._dropped += 1
                return False
            self._control.append(event)
            self._changed.notify()
            return True

    def put_data(self, event: E, size_bytes: int) -> bool:
        """Leave a data event of this size; False when the share of data is full."""
        with self._changed:
            full = len(self._data) >= MAX_DATA_EVENTS or self._data_bytes + size_bytes > self._max_data_bytes
            if full:
                self._dropped += 1
                return False
            self._data.append((event, size_bytes))
            self._data_bytes += size_bytes
            self._changed.notify()
            return True

    def get(self, timeout_s: float | None) -> E | None:
        """Take the next event, control first; None when the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._control or self._data, timeout_s)
            if self._control:
                return self._control.popleft()
            if self._data:
                event, size_bytes = self._data.popleft()
                self._data_bytes -= size_bytes
                return event
            return None
