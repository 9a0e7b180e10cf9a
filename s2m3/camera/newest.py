"""A place for one value between two threads, in which a newer value replaces an older one.

Owns that nothing queues: at most one value waits, whatever the speeds of both threads.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """One value, the newest. ``replaced`` counts those that nobody took."""

    def __init__(self) -> None:
        self.replaced = 0
        self._changed = threading.Condition()
        self._value: T | None = None
        self._busy = False  # the taken value isn't done yet
        self._closed = False

    def put(self, value: T) -> None:
        """Put a value in place of the one that waits."""
        with self._changed:
            self.replaced += self._value is not None
            self._value = value
            self._changed.notify_all()

    def put_when_free(self, value: T) -> None:
        """Put a value when the one before was taken and is done; nothing is replaced. Returns early when closed."""
        with self._changed:
            self._changed.wait_for(self._is_free)
            self._value = value
            self._changed.notify_all()

    def take(self) -> T | None:
        """Wait for a value, and take it; the one before is done then. None: there will be no more."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._value is not None or self._closed)
            value, self._value = self._value, None
            self._busy = value is not None
            return value

    def close(self) -> None:
        """Let the waiting threads go on; a value that waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_free(self) -> bool:
        return self._closed or (self._value is None and not self._busy)
