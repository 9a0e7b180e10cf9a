"""Machines of a test's own, joined by cables that can be cut: network namespaces of Linux, made with ``ip``.

Owns the namespaces and their links. A thread that is ``inside`` one opens its sockets there, and so do the processes
and threads that it starts, for good. Needs root and the program ``ip``; ``why_not`` says what is missing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

PLACE = Path("/run/netns")
_NETWORK = 0x4000_0000  # CLONE_NEWNET
_SBIN = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def why_not() -> str | None:
    """The reason why there can't be namespaces on this machine; None if there can."""
    if shutil.which("ip", path=_SBIN) is None:
        return "needs network namespaces: the program ip isn't there (apt-get install iproute2)"
    if os.geteuid() != 0:
        return "needs network namespaces: run it as root"
    trial = f"s2m3-{os.getpid()}-try"
    made = subprocess.run(_command("netns", "add", trial), capture_output=True, text=True, check=False)
    if made.returncode:
        return f"needs network namespaces: {made.stderr.strip()}"
    _ip("netns", "del", trial)
    return None


class Machines:
    """Namespaces of these names, as a context manager. The first one is in the middle: each other has a cable to it.

    The middle has the address 10.203.0.1, the others reach it there.
    """

    middle_address = "10.203.0.1"

    def __init__(self, middle: str, *others: str) -> None:
        self._names = {name: f"s2m3-{os.getpid()}-{name}" for name in (middle, *others)}
        self._middle, self._others = middle, others

    def __enter__(self) -> Self:
        try:
            for full in self._names.values():
                _ip("netns", "add", full)
                _ip("-n", full, "link", "set", "lo", "up")
            middle = self._names[self._middle]
            _ip("-n", middle, "addr", "add", f"{self.middle_address}/32", "dev", "lo")
            for number, name in enumerate(self._others, 1):
                full, net = self._names[name], f"10.203.{number}"
                _ip("link", "add", "uplink", "netns", full, "type", "veth", "peer", "name", name, "netns", middle)
                _ip("-n", full, "addr", "add", f"{net}.2/30", "dev", "uplink")
                _ip("-n", middle, "addr", "add", f"{net}.1/30", "dev", name)
                _ip("-n", full, "link", "set", "uplink", "up")
                self.plug(name)
                _ip("-n", full, "route", "add", f"{self.middle_address}/32", "via", f"{net}.1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for full in self._names.values():
            subprocess.run(_command("netns", "del", full), capture_output=True, check=False)

    def address(self, name: str) -> str:
        """The address of a machine."""
        return self.middle_address if name == self._middle else f"10.203.{self._others.index(name) + 1}.2"

    def unplug(self, name: str) -> None:
        """Cut a machine's cable to the middle."""
        _ip("-n", self._names[self._middle], "link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Mend it."""
        _ip("-n", self._names[self._middle], "link", "set", name, "up")

    def carried_bytes(self, name: str) -> int:
        """The bytes that a machine's cable carried so far, both ways."""
        command = ("netns", "exec", self._names[name], "cat", "/sys/class/net/uplink/statistics/rx_bytes")
        sent = (*command[:-1], "/sys/class/net/uplink/statistics/tx_bytes")
        return sum(int(_ip(*each)) for each in (command, sent))

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Be on this machine, with the thread that asks."""
        with Path("/proc/thread-self/ns/net").open("rb") as own, (PLACE / self._names[name]).open("rb") as other:
            _enter(other.fileno())
            try:
                yield
            finally:
                _enter(own.fileno())


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _NETWORK):
        raise OSError(ctypes.get_errno(), "setns")


def _command(*arguments: str) -> list[str]:
    return [shutil.which("ip", path=_SBIN) or "ip", *arguments]


def _ip(*arguments: str) -> str:
    done = subprocess.run(_command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout
