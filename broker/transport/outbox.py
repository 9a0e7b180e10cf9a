"""The outbox: a bounded queue in which the threads of a process leave messages for the network thread.

Owns the checks before a message is accepted: there is a connection, the message is small enough, and there is room.
Owns the messages that are not yet written (QoS 0) or acknowledged (QoS 1). Doesn't know sockets.

Invariants:
- An accepted message is completed, or dropped when the connection ends. Only lasting messages stay for the next one.
- A lasting message stays until its expiry, counted from ``put``; without an expiry, for ever.
- A small lasting message, such as the refusal of a request, has a reserve of its own: it is accepted when other
  messages fill the queue.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from broker.protocol.errors import MessageTooLarge, NotConnected, QueueFull
from broker.protocol.sizes import show_bytes, show_count
from broker.transport.port import Outgoing

SMALL_BYTES = 4096  # of a packet: a refusal has some 600
MOST_TRIES = 3  # connections on which a lasting message was written and not acknowledged


@dataclass(eq=False)
class _Waiting:
    message: Outgoing
    until_s: float  # dropped when a connection begins later
    tries: int = 0  # connections that ended before it was acknowledged


class Outbox:
    """A bounded queue of messages, open while there is a connection. ``put`` never waits.

    A single message may have more than ``max_bytes``. ``reserve`` is the number of further messages that small lasting
    ones may be. ``clock`` gives seconds and never goes back.
    """

    def __init__(
        self, *, max_messages: int, max_bytes: int, reserve: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_messages = max_messages
        self._reserve = reserve
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._taken: list[_Waiting] = []  # and not completed
        self._waiting_bytes = 0  # of both
        self._limit_bytes: int | None = None  # of one message; None while closed

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._limit_bytes is not None

    @property
    def is_empty(self) -> bool:
        """Whether every accepted message is completed."""
        return not self._queue and not self._taken

    def open(self, limit_bytes: int) -> list[Outgoing]:
        """Begin a connection that takes messages of at most ``limit_bytes``.

        Returns:
            The waiting messages that are larger or expired; they are dropped.
        """
        with self._lock:
            self._limit_bytes, now_s = limit_bytes, self._clock()
            kept, dropped = list[_Waiting](), list[Outgoing]()
            for waiting in self._queue:
                if waiting.message.packet_bytes <= limit_bytes and now_s < waiting.until_s:
                    kept.append(waiting)
                else:
                    dropped.append(waiting.message)
            self._keep(kept)
            return dropped

    def close(self) -> None:
        """End the connection: drop all but lasting messages, and accept only these.

        A lasting message is dropped after ``MOST_TRIES`` connections: it may be the reason why they ended.
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
            NotConnected: there is no connection, and the message isn't lasting.
            MessageTooLarge: the message has more bytes than the connection takes.
            QueueFull: too many messages or bytes wait; a single message always has room.
        """
        size_bytes = message.packet_bytes
        with self._lock:
            if self._limit_bytes is None and not message.lasting:
                raise NotConnected(f"no connection to the broker now, so {message.topic} was not published")
            if self._limit_bytes is not None and size_bytes > self._limit_bytes:
                raise MessageTooLarge(topic=message.topic, size_bytes=size_bytes, limit_bytes=self._limit_bytes)
            waiting = len(self._queue) + len(self._taken)
            too_many_bytes = waiting and self._waiting_bytes + size_bytes > self._max_bytes
            is_small = message.lasting and size_bytes <= SMALL_BYTES
            in_reserve = is_small and self._reserve > 0 and waiting < self._max_messages + self._reserve
            if (waiting >= self._max_messages or too_many_bytes) and not in_reserve:
                raise QueueFull(
                    f"{show_count(waiting, 'message')} of {show_bytes(self._waiting_bytes)} must be sent first: "
                    f"publish {message.topic} later"
                )
            until_s = math.inf if message.expiry_s is None else self._clock() + message.expiry_s
            self._queue.append(_Waiting(message, until_s))
            self._waiting_bytes += size_bytes

    def take(self) -> Outgoing | None:
        """The next message to write, or None, as while closed. It counts as waiting until it is completed."""
        with self._lock:
            if self._limit_bytes is None or not self._queue:
                return None
            self._taken.append(self._queue.popleft())
            return self._taken[-1].message

    def complete(self, message: Outgoing) -> None:
        """Remove a taken message that is written (QoS 0) or acknowledged (QoS 1)."""
        with self._lock:
            self._taken.remove(next(waiting for waiting in self._taken if waiting.message is message))
            self._waiting_bytes -= message.packet_bytes

    def _keep(self, kept: Iterable[_Waiting]) -> None:
        """Drop every message but these."""
        self._queue, self._taken = deque(kept), []
        self._waiting_bytes = sum(waiting.message.packet_bytes for waiting in self._queue)
