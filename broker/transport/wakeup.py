"""The wakeup pipe: any thread wakes the network thread while it waits for a socket.

Owns a pair of connected sockets; the network thread waits for one end and for the broker's socket together. Doesn't
know MQTT.
"""

from __future__ import annotations

import contextlib
import selectors
import socket


class Wakeup:
    """A self-pipe. The owner makes sure that ``notify`` and ``close`` are not called at the same time."""

    def __init__(self) -> None:
        self._writer, self._reader = socket.socketpair()
        for end in (self._writer, self._reader):
            end.setblocking(False)

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
        with selectors.PollSelector() as selector:  # poll: no limit to the number of a socket, and nothing to open
            if wanted := (selectors.EVENT_READ if for_bytes else 0) | (selectors.EVENT_WRITE if for_room else 0):
                selector.register(sock, wanted)
            selector.register(self._reader, selectors.EVENT_READ)
            ready = {key.fd: events for key, events in selector.select(timeout_s)}
        if self._reader.fileno() in ready:
            self._reader.recv(4096)
        events = ready.get(sock.fileno(), 0)
        return bool(events & selectors.EVENT_READ), bool(events & selectors.EVENT_WRITE)

    def close(self) -> None:
        """Close both sockets."""
        self._writer.close()
        self._reader.close()
