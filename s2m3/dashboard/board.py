"""The entries that a page shows, each with the version at which it changed last: a browser gets what changed since.

Owns versions and removals. Doesn't know what an entry says. Pure: no clock, no thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

MOST_REMOVED = 1_000  # removals that are remembered for browsers that are behind


@dataclass(frozen=True)
class Update:
    """The changes: entries by key, None for those that are gone. ``reset`` means: forget all others first."""

    version: int
    reset: bool
    entries: dict[str, JsonValue]

    @property
    def document(self) -> dict[str, JsonValue]:
        """The update as a browser gets it."""
        return {"reset": self.reset, "entries": self.entries}


class Board:
    """Entries by key. An entry that is put again with an equal value didn't change."""

    def __init__(self) -> None:
        self.version = 0
        """The number of changes so far."""
        self._entries: dict[str, JsonValue] = {}
        self._changed: dict[str, int] = {}  # key -> version, in the order of the versions; of removed ones, too
        self._removed: dict[str, None] = {}
        self._forgotten = 0  # the version of the last removal that isn't remembered any more

    def __getitem__(self, key: str) -> JsonValue:
        return self._entries.get(key)

    def put(self, key: str, value: JsonValue) -> None:
        """Set an entry; None removes it."""
        if self._entries.get(key) == value:
            return
        self.version += 1
        self._changed.pop(key, None)
        self._changed[key] = self.version
        self._removed.pop(key, None)
        if value is not None:
            self._entries[key] = value
            return
        del self._entries[key]
        self._removed[key] = None
        if len(self._removed) > MOST_REMOVED:
            oldest = next(iter(self._removed))
            del self._removed[oldest]
            self._forgotten = max(self._forgotten, self._changed.pop(oldest))

    def since(self, version: int | None) -> Update:
        """The changes after this version; everything for None, and for a version that is too old."""
        if version is None or version < self._forgotten:
            return Update(self.version, True, self._entries.copy())
        entries: dict[str, JsonValue] = {}
        for key in reversed(self._changed):
            if self._changed[key] <= version:
                break
            entries[key] = self._entries.get(key)
        return Update(self.version, False, entries)
