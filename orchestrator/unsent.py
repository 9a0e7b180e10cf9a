"""The messages that the orchestrator's loop has made and that its control connection hasn't taken yet, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import structlog

from broker.protocol import errors
from broker.transport.port import Outgoing, Transport

_log = structlog.get_logger("orchestrator")


class Unsent:
    """A queue of messages; true while it has any."""

    def __init__(self) -> None:
        self._waiting: deque[Outgoing] = deque()
        self.too_large: dict[str, errors.MessageTooLarge] = {}
        """The topics whose last message had more bytes than the broker takes."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, messages: Iterable[Outgoing]) -> None:
        """Add messages at the end."""
        self._waiting.extend(messages)

    def clear(self) -> None:
        """Drop all messages."""
        self._waiting.clear()
        self.too_large.clear()

    def hand_over(self, control: Transport | None) -> None:
        """Hand over the messages as far as the connection takes them."""
        while self._waiting and control:
            try:
                control.publish(self._waiting[0])
                self.too_large.pop(self._waiting[0].topic, None)
            except errors.NotConnected:
                self._waiting.clear()  # all is published again when the link is up
                return
            except errors.QueueFull:
                return
            except errors.MessageTooLarge as error:
                self.too_large[error.topic] = error
                _log.error("message_too_large", topic=error.topic, reason=str(error))
            self._waiting.popleft()
