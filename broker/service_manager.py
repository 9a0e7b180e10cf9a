"""The messages of a process to systemd, which started it (`sd_notify(3)`): it serves, it does this, its loop runs.

Owns the socket and the rate of messages. Says nothing where no ``NOTIFY_SOCKET`` is set. Never waits, and never fails:
the service matters more than its supervisor. In a container, nobody supervises, and ``health`` listens for a while.

Invariants:
- only the thread of the service's main loop calls ``turn``, so that a loop that hangs is restarted;
- until the process is ready, the same turns extend the time that its start may take: a broker may be away for long.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

START_S = 120.0  # that each turn gives to a process that isn't ready
TURN, NOT_READY, STOPPING, STATUS = "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=", "STOPPING=1", "STATUS="


class ServiceManager:
    """The supervisor of this process.

    Args:
        environ: with its variables; empty: nobody started it so.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ)
        watched = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit = environ.get("WATCHDOG_USEC", "")
        self._watchdog_s = int(limit) / 1e6 if watched and limit.isascii() and limit.isdigit() else math.inf
        self._is_ready = False
        self._status = ""
        self._due_s = -math.inf
        self._unsent: list[str] = []  # systemd was busy: they go with the next message

    def wait_s(self, wanted_s: float | None) -> float | None:
        """The time that the loop may wait for an event; ``wanted_s``, None for ever, where nobody watches it."""
        if not self._address:
            return wanted_s
        longest_s = min(self._watchdog_s, START_S) / 8
        return longest_s if wanted_s is None else min(wanted_s, longest_s)

    def turn(self) -> None:
        """Say that the loop runs; four times in the watchdog's time at most, however often it is called."""
        now_s = time.monotonic()
        if not self._address or now_s < self._due_s:
            return
        self._due_s = now_s + min(self._watchdog_s, START_S) / 4
        self._send(TURN, *([] if self._is_ready else [f"{NOT_READY}{START_S * 1e6:.0f}"]))

    def ready(self, status: str) -> None:
        """Say, once, that the process serves; and what it does."""
        if not self._is_ready:
            self._is_ready, self._status = True, status
            self._send("READY=1", f"{STATUS}{status}", TURN)
        else:
            self.status(status)

    def status(self, status: str) -> None:
        """Say in one line what the process does, if that is new."""
        if status != self._status:
            self._status = status
            self._send(f"{STATUS}{status}")

    def stopping(self) -> None:
        """Say that the process ends."""
        self._send(STOPPING)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        tells_more = any(line.startswith(STATUS) for line in lines)
        waiting = [each for each in self._unsent if each not in lines and not (tells_more and each.startswith(STATUS))]
        self._unsent = [*waiting, *lines]  # each kind of line once
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(line.replace("\n", " ") for line in self._unsent).encode(), self._address)
            self._unsent = []


def health(environ: Mapping[str, str], wait_s: float) -> str | None:
    """Listen to the service that has this ``NOTIFY_SOCKET``, as its supervisor.

    Args:
        environ: with the variables of the service.
        wait_s: the longest time that its main loop may take to say something.

    Returns:
        None if it serves and its main loop runs; else the reason, for a person.

    Raises:
        OSError: nobody can listen there.
    """
    end_s, status = time.monotonic() + wait_s, ""
    with _listening(_address(environ)) as listener:
        while (left_s := end_s - time.monotonic()) > 0:
            listener.settimeout(left_s)
            try:
                lines = listener.recv(64 * 1024).decode(errors="replace").split("\n")
            except TimeoutError:
                break
            status = next((line.removeprefix(STATUS) for line in reversed(lines) if line.startswith(STATUS)), status)
            if STOPPING in lines:
                return "it ends"
            turns = [at for at, line in enumerate(lines) if line == TURN]  # those of earlier come with the newest
            if turns:
                is_ready = not any(line.startswith(NOT_READY) for line in lines[turns[-1] :])
                return None if is_ready else f"it isn't ready{status and f': it {status}'}"
    return f"it said nothing for {wait_s:g} s: its main loop hangs, or it doesn't run"


def _address(environ: Mapping[str, str]) -> str:
    """The address of the supervisor's socket; empty without one."""
    address = environ.get("NOTIFY_SOCKET", "")
    return f"\0{address[1:]}" if address.startswith("@") else address


@contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    """A socket at this address, in the place of one that an ended process has left; raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as listener:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            listener.connect(address)
            raise FileExistsError(errno.EADDRINUSE, "another program listens there")
        file = None if address.startswith("\0") else Path(address)
        if file:
            file.unlink(missing_ok=True)
        listener.bind(address)
        try:
            yield listener
        finally:
            if file:
                file.unlink(missing_ok=True)
