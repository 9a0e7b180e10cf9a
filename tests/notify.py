"""A socket as systemd has it, which hears what a service tells its supervisor. Owns the socket, and the variables."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import PATIENCE_S

_END = b"the end of the test"


class Supervisor:
    """The messages of a service, each a list of lines, in ``heard``; a thread reads them, as systemd does, at once."""

    def __init__(self, listener: socket.socket, environ: dict[str, str]) -> None:
        self.environ = environ
        """The variables of the service."""
        self.heard: list[list[str]] = []
        self._arrived: queue.Queue[list[str]] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(listener,), daemon=True)
        self._thread.start()

    def _read(self, listener: socket.socket) -> None:
        while (message := listener.recv(4096)) != _END:
            self._arrived.put(message.decode().split("\n"))

    @property
    def statuses(self) -> list[str]:
        """Its lines of status, in order."""
        return [line.removeprefix("STATUS=") for lines in self.heard for line in lines if line.startswith("STATUS=")]

    def wait_for(self, line: str, times: int = 1) -> None:
        """Hear messages until this line came so many times from now on; the test fails when it doesn't in time."""
        end_s = time.monotonic() + PATIENCE_S
        while times:
            assert time.monotonic() < end_s, f"{line} didn't come; {self.heard[-10:]} did"
            times -= line in self.next()

    def next(self, timeout_s: float = PATIENCE_S) -> list[str]:
        """The lines of the next message; none when none comes in time."""
        try:
            lines = self._arrived.get(timeout=timeout_s) if timeout_s else self._arrived.get_nowait()
        except queue.Empty:
            return []
        self.heard.append(lines)
        return lines

    def end(self, address: str) -> None:
        """Read no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(_END, address)
        self._thread.join(PATIENCE_S)


@contextmanager
def supervisor(folder: Path | None, watchdog_s: float) -> Iterator[Supervisor]:
    """A supervisor that wants to hear of a service in time, at a socket in this folder; None: at an abstract one."""
    address = str(folder / "notify") if folder else f"@s2m3-test-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1))
        heard = Supervisor(listener, {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": f"{watchdog_s * 1e6:.0f}"})
        try:
            yield heard
        finally:
            heard.end(address.replace("@", "\0", 1))
