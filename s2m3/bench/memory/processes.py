"""A process's memory as the Linux kernel reports it in ``/proc/PID``.

Owns the fields and their meaning:
- ``uss_bytes`` (unique set size): pages that only this process maps; ending the process frees them. Weights that were
  read into its own memory are here, and the interpreter's data. The libraries' code is not, while another process on
  the machine maps it.
- ``pss_bytes`` (proportional set size): the unique pages, and one n-th of every page that n processes share. These add
  up over processes.
- ``rss_bytes`` (resident set size): all its pages, shared ones in full. A device that runs nothing else needs as much.
- ``anonymous_bytes``: pages without a file behind them, which can't be dropped and read again. Weights that are mapped
  and not copied would be in ``rss_bytes`` and not here.
- ``peak_rss_bytes``: the highest ``rss_bytes`` since the process started. Loading needs more than holding.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from broker.protocol.errors import BadFile

KIBIBYTE = 1024


@dataclass(frozen=True)
class Memory:
    """One process at one moment, or the sum of several."""

    uss_bytes: int
    pss_bytes: int
    rss_bytes: int
    anonymous_bytes: int
    peak_rss_bytes: int

    def __add__(self, other: Self) -> Memory:
        """Field by field."""
        return Memory(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


NOTHING = Memory(0, 0, 0, 0, 0)


def memory_of(pid: int, proc: Path = Path("/proc")) -> Memory:
    """A process's memory now.

    Raises:
        BadFile: the process doesn't exist, or the system has no ``smaps_rollup``.
    """
    try:
        rollup = _kibibytes((proc / str(pid) / "smaps_rollup").read_text(encoding="ascii"))
        status = _kibibytes((proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace"))
        return Memory(
            uss_bytes=rollup["Private_Clean"] + rollup["Private_Dirty"],
            pss_bytes=rollup["Pss"],
            rss_bytes=rollup["Rss"],
            anonymous_bytes=rollup["Anonymous"],
            peak_rss_bytes=status["VmHWM"],
        )
    except (OSError, KeyError) as error:
        raise BadFile(
            file=f"{proc}/{pid}",
            problem=f"its memory can't be read ({error})",
            fix="measure on Linux 4.14 or newer, as the user who runs the process",
        ) from error


def memory_with_children(pid: int, proc: Path = Path("/proc")) -> Memory:
    """A process's memory now, with all processes that it and they started, such as an orchestrator's planner.

    Raises:
        BadFile: as ``memory_of``.
    """
    memory = memory_of(pid, proc)
    for child in _children(pid, proc):
        with suppress(BadFile):  # it has ended since
            memory += memory_with_children(child, proc)
    return memory


def _children(pid: int, proc: Path) -> list[int]:
    found = []
    for status in proc.glob("[0-9]*/status"):
        with suppress(OSError):  # that process has ended
            parents = (
                line.split()[1] for line in status.read_text(errors="replace").splitlines() if line[:5] == "PPid:"
            )
            if next(parents, None) == str(pid):
                found.append(int(status.parent.name))
    return found


def _kibibytes(text: str) -> dict[str, int]:
    """``Name:   12 kB`` lines as bytes by name."""
    found = {}
    for line in text.splitlines():
        name, _, amount = line.partition(":")
        match amount.split():
            case [number, "kB"] if number.isdecimal():  # a process's name may have any text
                found[name] = int(number) * KIBIBYTE
    return found
