"""What the kernel says of a process's memory (Linux, ``/proc/PID``).

Owns the fields and their meaning:
- ``uss_bytes`` (unique set size): pages that only this process has, written to or not; what ending it gives back.
  Weights that were read into the process's own memory are here, and so is the interpreter's own data. The libraries'
  code is not, as long as a second process on the machine has mapped it.
- ``pss_bytes`` (proportional): the former, and of every page that n processes share, one n-th: these add up.
- ``rss_bytes``: all its pages, shared ones in full: what a device that runs nothing else has to have.
- ``anonymous_bytes``: pages without a file behind them, which can't be dropped and read again. A file of weights that
  is mapped and not copied would be in ``rss_bytes`` and not here.
- ``peak_rss_bytes``: the highest ``rss_bytes`` since its start: loading needs more than holding.
"""

from __future__ import annotations

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
    """Read a process's memory.

    Raises:
        BadFile: there is no such process, or the system has no ``smaps_rollup``.
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


def _kibibytes(text: str) -> dict[str, int]:
    """``Name:   12 kB`` lines as bytes by name."""
    found = {}
    for line in text.splitlines():
        name, _, amount = line.partition(":")
        match amount.split():
            case [number, "kB"] if number.isdecimal():  # a process may have any name
                found[name] = int(number) * KIBIBYTE
    return found
