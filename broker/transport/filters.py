"""The filters that a transport subscribes to, remembered over its connections.

Owns the filters and the changes that a connection has still to send. Any thread may use it. Doesn't know MQTT.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Filters to subscribe, or else to unsubscribe."""

    subscribe: bool
    filters: tuple[str, ...]
    confirm: bool = False  # report with ``port.Subscribed``


class Filters:
    """The wanted filters, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the fields below
        self._wanted: dict[str, None] = {}
        self._accepted = False  # the broker accepted the connection: changes must be sent
        self._changes: deque[Change] = deque()

    def add(self, filters: tuple[str, ...], *, confirm: bool = False) -> None:
        """Want these, too."""
        with self._lock:
            new = tuple(name for name in dict.fromkeys(filters) if name not in self._wanted)
            self._wanted.update(dict.fromkeys(new))
            self._change(Change(True, new, confirm))

    def remove(self, filters: tuple[str, ...]) -> None:
        """Want these no more."""
        with self._lock:
            gone = tuple(name for name in dict.fromkeys(filters) if name in self._wanted)
            for name in gone:
                del self._wanted[name]
            self._change(Change(False, gone))

    def begin(self) -> tuple[str, ...]:
        """All filters, for a connection that the broker has accepted; from now on ``take`` has the changes."""
        with self._lock:
            self._accepted = True
            return tuple(self._wanted)

    @property
    def wanted(self) -> tuple[str, ...]:
        """All filters."""
        with self._lock:
            return tuple(self._wanted)

    def take(self) -> tuple[Change, ...]:
        """The changes since the last call."""
        with self._lock:
            changes = tuple(self._changes)
            self._changes.clear()
            return changes

    def end(self) -> None:
        """The connection ended: the next one begins with all filters."""
        with self._lock:
            self._accepted = False
            self._changes.clear()

    def _change(self, change: Change) -> None:
        if self._accepted and change.filters:
            self._changes.append(change)
