"""What waits to be sent, with bounds: where the threads of a process leave messages for the network thread.

Owns the checks before a message is accepted (is there a connection, is it small enough, is there room) and the count of
what is not yet written (QoS 0) or acknowledged (QoS 1). Knows nothing of sockets. A message that was accepted is either
taken and done, or dropped when the connection goes: but for lasting ones, nothing is kept for the next one. Those are
kept until their expiry, counted from when they were put; without one, for ever.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from broker.protocol.errors import MessageTooLarge, NotConnected, QueueFull
from broker.transport.port import Outgoing

MOST_TRIES = 3  # connections on which a lasting message is written and not acknowledged


@dataclass(eq=False)
class _Waiting:
    message: Outgoing
    until_s: float  # not kept for a connection that comes later
    tries: int = 0  # connections that ended while it was under way


class Outbox:
    """A bounded queue that is open while there is a connection. Putting never waits.

    Args:
        max_messages: how many may wait.
        max_bytes: how many bytes may wait, unless it is a single message.
        clock: seconds of a steady clock.
    """

    def __init__(self, *, max_messages: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._taken: list[_Waiting] = []  # and not done
        self._waiting_bytes = 0  # of both
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
            What was kept for it and is larger, or whose time is over: that is forgotten.
        """
        with self._lock:
            self._limit_bytes, now_s = limit_bytes, self._clock()
            kept, forgotten = list[_Waiting](), list[Outgoing]()
            for waiting in self._queue:
                if waiting.message.packet_bytes <= limit_bytes and now_s < waiting.until_s:
                    kept.append(waiting)
                else:
                    forgotten.append(waiting.message)
            self._keep(kept)
            return forgotten

    def shut(self) -> None:
        """The connection is gone: accept only what is lasting, and forget all else that waits.

        What was under way on several connections that ended may be what ended them.
        """
        with self._lock:
            self._limit_bytes = None
            for waiting in self._taken:
                waiting.tries += 1
            both = (*self._taken, *self._queue)
            self._keep(each for each in both if each.message.lasting and each.tries < MOST_TRIES)

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
            until_s = math.inf if message.expiry_s is None else self._clock() + message.expiry_s
            self._queue.append(_Waiting(message, until_s))
            self._waiting_bytes += size_bytes

    def take(self) -> Outgoing | None:
        """The next message to write, or None, as while it is shut; it counts as waiting until it is done."""
        with self._lock:
            if self._limit_bytes is None or not self._queue:
                return None
            self._taken.append(self._queue.popleft())
            return self._taken[-1].message

    def done(self, message: Outgoing) -> None:
        """A message that was taken is written (QoS 0) or acknowledged (QoS 1)."""
        with self._lock:
            self._taken.remove(next(waiting for waiting in self._taken if waiting.message is message))
            self._waiting_bytes -= message.packet_bytes

    def _keep(self, kept: Iterable[_Waiting]) -> None:
        """Nothing else waits."""
        self._queue, self._taken = deque(kept), []
        self._waiting_bytes = sum(waiting.message.packet_bytes for waiting in self._queue)
