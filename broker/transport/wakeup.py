"""The wakeup pipe: any thread wakes the network thread while it waits for a socket.

Owns a pair of connected sockets; the network thread waits for one end and for the broker's socket together. Doesn't
know MQTT.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket


class Wakeup:
    """A self-pipe. The owner makes sure that ``notify`` and ``close`` are not called at the same time."""

    def __init__(self) -> None:
        self._writer, self._reader = socket.socketpair()
        for end in (self._writer, self._reader):
            end.setblocking(False)
        self._poll = select.poll()  # no limit to the number of a socket, and nothing to open
        self._poll.register(self._reader, select.POLLIN)

    def notify(self) -> None:
        """Wake the waiting thread, now or at its next wait."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full: the thread wakes anyway
            self._writer.send(b"\0")

    def wait(
        self, sock: socket.socket, *, for_bytes: bool = True, for_room: bool, timeout_s: float
    ) -> tuple[bool, bool]:
        """Wait for a notification, and on request for bytes on the socket or for room to write.

        Returns:
            Whether the socket has bytes, and whether it has room.
        """
        number = sock.fileno()
        if wanted := (select.POLLIN if for_bytes else 0) | (select.POLLOUT if for_room else 0):
            self._poll.register(number, wanted)
        try:
            ready = dict(self._poll.poll(math.ceil(timeout_s * 1000)))
        finally:
            if wanted:
                self._poll.unregister(number)
        if self._reader.fileno() in ready:
            self._reader.recv(4096)
        events = ready.get(number, 0)  # an error is both
        return for_bytes and bool(events & ~select.POLLOUT), for_room and bool(events & ~select.POLLIN)

    def close(self) -> None:
        """Close both sockets."""
        self._writer.close()
        self._reader.close()
