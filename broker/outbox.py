"""What waits to be sent, with bounds: where the threads of a process leave messages for the network thread.

Owns the checks before a message is accepted (is there a connection, is it small enough, is there room) and the count of
what is not yet written (QoS 0) or acknowledged (QoS 1). Knows nothing of sockets. A message that was accepted is either
taken and done, or dropped when the connection goes: nothing is kept for the next one.
"""

from __future__ import annotations

import threading
from collections import deque

from broker.errors import MessageTooLarge, NotConnected, QueueFull
from broker.transport import Outgoing


class Outbox:
    """A bounded queue that is open while there is a connection. Putting never waits."""

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._queue: deque[Outgoing] = deque()
        self._waiting = 0  # in the queue, or taken and not done
        self._waiting_bytes = 0
        self._limit_bytes: int | None = None  # of one message; set while open

    @property
    def is_open(self) -> bool:
        """Whether a message has a chance now."""
        return self._limit_bytes is not None

    @property
    def is_empty(self) -> bool:
        """Whether everything accepted is done."""
        return self._waiting == 0

    def open(self, limit_bytes: int) -> None:
        """A connection is there, which takes messages of at most so many bytes."""
        with self._lock:
            self._limit_bytes = limit_bytes

    def shut(self) -> None:
        """The connection is gone: accept nothing, and forget what waits."""
        with self._lock:
            self._limit_bytes = None
            self._queue.clear()
            self._waiting = self._waiting_bytes = 0

    def put(self, message: Outgoing) -> None:
        """Accept a message.

        Raises:
            NotConnected: it is not open.
            MessageTooLarge: the message has more bytes than the connection takes.
            QueueFull: too many messages, or too many bytes, wait; a single message always has room.
        """
        size_bytes = message.packet_bytes
        with self._lock:
            if self._limit_bytes is None:
                raise NotConnected(f"no connection to the broker now, so {message.topic} was not published")
            if size_bytes > self._limit_bytes:
                raise MessageTooLarge(topic=message.topic, size_bytes=size_bytes, limit_bytes=self._limit_bytes)
            too_many_bytes = self._waiting and self._waiting_bytes + size_bytes > self._max_bytes
            if self._waiting >= self._max_messages or too_many_bytes:
                raise QueueFull(
                    f"{self._waiting} messages of {self._waiting_bytes} bytes wait for the broker: "
                    f"publish {message.topic} later"
                )
            self._queue.append(message)
            self._waiting += 1
            self._waiting_bytes += size_bytes

    def take(self) -> Outgoing | None:
        """The next message to write, or None; it counts as waiting until it is done."""
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def done(self, message: Outgoing) -> None:
        """A message that was taken is written (QoS 0) or acknowledged (QoS 1)."""
        with self._lock:
            self._waiting -= 1
            self._waiting_bytes -= message.packet_bytes
