"""Free memory of the machine and memory of this process, from Linux's own files; None on other systems.

Owns the places where the kernel keeps these numbers. Knows no module.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from broker.process import return_freed_memory

MEMORY_FILE = Path("/proc/meminfo")
STATUS_FILE = Path("/proc/self/status")
CGROUP_FILE = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
_FIELDS = 3  # of a line of the file of control groups: number, controllers, path
M_ARENA_MAX = -8  # glibc's malloc.h


def share_one_heap() -> None:
    """Make all threads allocate from one heap. Call it before the first thread starts.

    By default each thread gets its own heap, and glibc returns the free end of the first heap only. So a pass on the
    loader's thread would leave its activations' memory behind (22 MB for an EfficientNet of 13 MB), and a pass on the
    compute thread as much again. Does nothing with another C library.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def free_bytes(
    memory: Path = MEMORY_FILE, cgroup: Path = CGROUP_FILE, cgroups: Path = CGROUPS, status: Path = STATUS_FILE
) -> int | None:
    """The bytes that this process may still take, by the kernel's estimate, its container's limits and its own.

    None when the system doesn't say. Freed memory is returned to the system first, as in ``resident_bytes``.
    """
    return_freed_memory()
    free = _kilobytes(memory, "MemAvailable")
    if free is None:
        return None
    return max(0, min([free, *_left_in_groups(cgroup, cgroups), *_left_to_process(status)]))


def resident_bytes(status: Path = STATUS_FILE) -> int | None:
    """The bytes of this process that the system can't reclaim; None when the system doesn't say.

    Freed memory is returned to the system first, so that short-lived memory of a load or a
    pass doesn't count. Pages of files, such as a library's code, don't count either: they can be read again.
    """
    return_freed_memory()
    return _kilobytes(status, "RssAnon")


def _kilobytes(file: Path, wanted: str) -> int | None:
    """The bytes of a named line in a file with lines such as ``MemAvailable:   123 kB``."""
    found = _number(file, f"{wanted}:")
    return None if found is None else found * 1024


def _number(file: Path, wanted: str) -> int | None:
    """The number of the line in a file that starts with this word."""
    with suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if words[:1] == [wanted]:
                return int(words[1])
    return None


def _left_to_process(status: Path) -> Iterable[int]:
    """The bytes that the limits of this process leave (``ulimit -d`` and ``-v``, systemd's LimitDATA and LimitAS)."""
    for limit, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most, taken = resource.getrlimit(limit)[0], _kilobytes(status, used)
        if most != resource.RLIM_INFINITY and taken is not None:
            yield most - taken


def _left_in_groups(cgroup: Path, cgroups: Path) -> Iterable[int]:
    """The bytes that the limits of this process's control groups (versions 1 and 2) and of their parents leave.

    The kernel counts cached files as used. Those not used lately count as free here: the kernel drops them first.
    A container with version 1 often sees its own group as the root, under another path than its file says.
    """
    try:
        named = [line.split(":", 2) for line in cgroup.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return
    for controllers, own in (line[1:] for line in named if len(line) == _FIELDS):
        if not controllers:
            root, names = cgroups, ("max", "current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / own.lstrip("/")
        for each in (group, *group.parents):
            with suppress(OSError, ValueError):  # no limit here, or none at all
                limit, used = (int((each / f"memory.{name}").read_text()) for name in names[:2])
                yield limit - used + (_number(each / "memory.stat", names[2]) or 0)
            if each == root:
                break
