"""The refusals of the broker that a process has logged: each once, not for every request or heartbeat. Pure."""

from __future__ import annotations

from broker.protocol.topics import read
from broker.transport.port import Denied

MAX_KNOWN = 1_000  # then all are logged once more
_NUMBERED = ("request", "node")  # levels in which messages of one kind, sender and receiver differ


class Denials:
    """The known refusals, by topic and reason."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._known: set[tuple[str, ...]] = set()

    def is_new(self, denied: Denied) -> bool:
        """Whether this one differs from all before."""
        incoming = read(self._prefix, denied.topic, b"")
        levels = [level for name, level in incoming.ids.items() if name not in _NUMBERED] if incoming else []
        known = (incoming.topic.template if incoming else denied.topic, *levels, denied.reason)
        if known in self._known:
            return False
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(known)
        return True
