"""The room that a process has for a site's messages that it keeps: how many, and how many bytes together. Pure."""

from __future__ import annotations

from broker.protocol.topics import Topic

MESSAGES = 100_000  # kept at most of a site: ten topics of 10,000 devices
MESSAGES_BYTES = 64 * 1024 * 1024  # 3,000 devices with their tasks have less than half of that


class MessageRoom:
    """Counts the messages that are kept, one a topic and name."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[Topic, str], int] = {}
        self.kept_bytes = 0

    def take(self, topic: Topic, name: str, size_bytes: int) -> bool:
        """Count a message in place of an earlier one of its topic and name; returns whether there is room for it."""
        before = self._sizes.get((topic, name), 0)
        is_one_more = not before and len(self._sizes) >= MESSAGES
        if size_bytes > before and (is_one_more or self.kept_bytes - before + size_bytes > MESSAGES_BYTES):
            return False
        self.kept_bytes += size_bytes - before
        self._sizes[topic, name] = size_bytes
        if not size_bytes:
            del self._sizes[topic, name]
        return True
