"""Wakes a thread that waits for a socket.

Owns a pair of sockets: one end is rung, the other is waited for together with the connection. Knows nothing of MQTT.
"""

from __future__ import annotations

import contextlib
import selectors
import socket


class Alarm:
    """Rung by any thread, heard by the one that waits. The owner keeps ``ring`` from racing with ``close``."""

    def __init__(self) -> None:
        self._bell, self._ear = socket.socketpair()
        for end in (self._bell, self._ear):
            end.setblocking(False)

    def ring(self) -> None:
        """Wake the thread that waits, now or the next time it does."""
        with contextlib.suppress(BlockingIOError):  # it rings already
            self._bell.send(b"\0")

    def wait(self, sock: socket.socket, *, for_room: bool, timeout_s: float) -> tuple[bool, bool]:
        """Wait for a ring or for bytes on the socket, and for room to write when asked.

        Returns:
            Whether the socket has bytes, and whether it has room.
        """
        with selectors.PollSelector() as selector:  # poll: no limit to the number of a socket, and nothing to open
            selector.register(sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if for_room else 0))
            selector.register(self._ear, selectors.EVENT_READ)
            ready = {key.fd: events for key, events in selector.select(timeout_s)}
        if self._ear.fileno() in ready:
            self._ear.recv(4096)
        events = ready.get(sock.fileno(), 0)
        return bool(events & selectors.EVENT_READ), bool(events & selectors.EVENT_WRITE)

    def close(self) -> None:
        """Let the sockets go."""
        self._bell.close()
        self._ear.close()
