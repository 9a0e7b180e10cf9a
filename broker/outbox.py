"""What waits to be sent, with bounds: where the threads of a process leave messages for the network thread.

Owns the checks before a message is accepted (is there a connection, is it small enough, is there room) and the count of
what is not yet written (QoS 0) or acknowledged (QoS 1). Knows nothing of sockets. A message that was accepted is either
taken and done, or dropped when the connection goes: but for lasting ones, nothing is kept for the next one.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable

from broker.errors import MessageTooLarge, NotConnected, QueueFull
from broker.transport import Outgoing

MOST_TRIES = 3  # connections on which a lasting message is written and not acknowledged


class Outbox:
    """A bounded queue that is open while there is a connection. Putting never waits."""

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._queue: deque[Outgoing] = deque()
        self._taken: list[Outgoing] = []  # and not done
        self._waiting_bytes = 0  # of both
        self._tried: Counter[Outgoing] = Counter()  # lasting ones that were under way when a connection ended
        self._limit_bytes: int | None = None  # of one message; set while open

    @property
    def is_open(self) -> bool:
        """Whether a message has a chance now."""
        return self._limit_bytes is not None

    @property
    def is_empty(self) -> bool:
        """Whether everything accepted is done."""
        return not self._queue and not self._taken

    def open(self, limit_bytes: int) -> list[Outgoing]:
        """A connection is there, which takes messages of at most so many bytes.

        Returns:
            What was kept for it and is larger: that is forgotten.
        """
        with self._lock:
            self._limit_bytes = limit_bytes
            too_large = [message for message in self._queue if message.packet_bytes > limit_bytes]
            self._keep(message for message in self._queue if message.packet_bytes <= limit_bytes)
            return too_large

    def shut(self) -> None:
        """The connection is gone: accept only what is lasting, and forget all else that waits.

        What was under way on several connections that ended may be what ended them.
        """
        with self._lock:
            self._limit_bytes = None
            self._tried.update(message for message in self._taken if message.lasting)
            waiting = (*self._taken, *self._queue)
            self._keep(each for each in waiting if each.lasting and self._tried[each] < MOST_TRIES)

    def put(self, message: Outgoing) -> None:
        """Accept a message.

        Raises:
            NotConnected: it is not open, and the message isn't lasting.
            MessageTooLarge: the message has more bytes than the connection takes.
            QueueFull: too many messages, or too many bytes, wait; a single message always has room.
        """
        size_bytes = message.packet_bytes
        with self._lock:
            if self._limit_bytes is None and not message.lasting:
                raise NotConnected(f"no connection to the broker now, so {message.topic} was not published")
            if self._limit_bytes is not None and size_bytes > self._limit_bytes:
                raise MessageTooLarge(topic=message.topic, size_bytes=size_bytes, limit_bytes=self._limit_bytes)
            waiting = len(self._queue) + len(self._taken)
            too_many_bytes = waiting and self._waiting_bytes + size_bytes > self._max_bytes
            if waiting >= self._max_messages or too_many_bytes:
                raise QueueFull(
                    f"{waiting} messages of {self._waiting_bytes} bytes wait for the broker: "
                    f"publish {message.topic} later"
                )
            self._queue.append(message)
            self._waiting_bytes += size_bytes

    def take(self) -> Outgoing | None:
        """The next message to write, or None; it counts as waiting until it is done."""
        with self._lock:
            if not self._queue:
                return None
            message = self._queue.popleft()
            self._taken.append(message)
            return message

    def done(self, message: Outgoing) -> None:
        """A message that was taken is written (QoS 0) or acknowledged (QoS 1)."""
        with self._lock:
            self._taken.remove(message)
            self._tried.pop(message, None)
            self._waiting_bytes -= message.packet_bytes

    def _keep(self, messages: Iterable[Outgoing]) -> None:
        """Nothing else waits."""
        self._queue, self._taken = deque(messages), []
        self._waiting_bytes = sum(message.packet_bytes for message in self._queue)
        self._tried = Counter({message: times for message, times in self._tried.items() if message in self._queue})
