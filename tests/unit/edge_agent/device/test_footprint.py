"""The memory that the kernel reports, and the agent's figures from it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edge_agent.device.footprint import free_bytes, resident_bytes
from tests.patience import run_python

KIB, MIB = 1024, 1024**2


class Machine:
    """The files of one machine."""

    def __init__(self, root: Path) -> None:
        self.meminfo, self.cgroup, self.groups = root / "meminfo", root / "cgroup", root / "groups"
        self.groups.mkdir()
        self.meminfo.write_text("MemTotal:  99999999 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n")
        self.cgroup.write_text("0::/site/agent\n")

    def limit(self, group: str, limit: str, current: int, stat: str = "") -> None:
        directory = self.groups / group
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.max").write_text(f"{limit}\n")
        (directory / "memory.current").write_text(f"{current}\n")
        (directory / "memory.stat").write_text(stat)

    def free(self) -> int | None:
        return free_bytes(self.meminfo, self.cgroup, self.groups)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_free_is_what_the_kernel_calls_available(machine: Machine) -> None:
    assert machine.free() == 2048 * KIB


def test_a_containers_limit_counts_and_cached_files_in_it_are_free(machine: Machine) -> None:
    machine.limit("site/agent", str(MIB), 900 * KIB, "anon 1\ninactive_file 102400\nactive_file 7\n")
    assert machine.free() == 124 * KIB + 102400


def test_the_tightest_of_the_groups_around_counts(machine: Machine) -> None:
    machine.limit("site/agent", "max", 10)
    machine.limit("site", str(500 * KIB), 400 * KIB)
    assert machine.free() == 100 * KIB


def test_a_group_that_is_over_its_limit_leaves_nothing(machine: Machine) -> None:
    machine.limit("site/agent", "10", 20)
    assert machine.free() == 0


@pytest.mark.parametrize("group", ["memory", "memory/docker", "memory/docker/abc"])
def test_a_limit_of_version_1_counts_where_the_container_sees_its_group(machine: Machine, group: str) -> None:
    """The file names the group as the host does; in the container that path isn't there, and the root is its own."""
    machine.meminfo.write_text("MemAvailable: 3145728 kB\n")
    machine.cgroup.write_text("7:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n")
    directory = machine.groups / group
    directory.mkdir(parents=True)
    (directory / "memory.limit_in_bytes").write_text("536870912\n")
    (directory / "memory.usage_in_bytes").write_text("104857600\n")
    assert machine.free() == 432_013_312
    (directory / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 1000\n")
    assert machine.free() == 432_014_312


def test_a_group_of_version_1_without_a_limit_changes_nothing(machine: Machine) -> None:
    machine.cgroup.write_text("4:memory:/\n")
    (machine.groups / "memory").mkdir()
    (machine.groups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (machine.groups / "memory" / "memory.usage_in_bytes").write_text("104857600\n")
    assert machine.free() == 2048 * KIB


@pytest.mark.parametrize("text", ["", "1:name=systemd:/old\n", "0::/elsewhere\n"])
def test_no_limit_is_known_where_there_is_no_group_of_ours(machine: Machine, text: str) -> None:
    machine.cgroup.write_text(text)
    assert machine.free() == 2048 * KIB


@pytest.mark.parametrize("text", ["MemTotal: 1 kB\n", "MemAvailable: lots kB\n", None])
def test_a_system_that_does_not_say_is_not_guessed(machine: Machine, text: str | None) -> None:
    machine.meminfo.unlink()
    if text is not None:
        machine.meminfo.write_text(text)
    assert machine.free() is None


HOLDS_AND_LETS_GO = """
import numpy as np
from edge_agent.device.footprint import resident_bytes
print(resident_bytes())
held = np.ones(64 * 2**20, np.uint8)
print(resident_bytes())
del held
print(resident_bytes())
"""


def test_resident_memory_grows_with_what_is_held_and_shrinks_when_it_is_let_go() -> None:
    before, grown, after = (int(line) for line in run_python(HOLDS_AND_LETS_GO).split())
    assert 60 * MIB < grown - before < 68 * MIB
    assert after - before < 4 * MIB


def test_what_was_freed_here_counts_as_free(burst: Callable[[], int]) -> None:
    full = burst()
    assert free_bytes() is not None
    assert psutil.Process().memory_info().rss < full - 50 * MIB


def test_where_the_system_does_not_say_what_is_resident_nobody_knows(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path / "none") is None


THREADS_ALLOCATE = """
import ctypes, sys, threading
from edge_agent.device.footprint import share_one_heap
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
if sys.argv[1:] == ["one"]:
    share_one_heap()
together = threading.Barrier(4)
def allocate():
    together.wait()
    assert libc.malloc(60_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def test_threads_allocate_from_one_heap_once_that_is_asked_for() -> None:
    assert run_python(THREADS_ALLOCATE).count("<heap nr=") > 1
    assert run_python(THREADS_ALLOCATE, "one").count("<heap nr=") == 1


@pytest.mark.parametrize(("kind", "line"), [("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")])
def test_the_limits_of_the_process_itself_count(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, line: str
) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tagent\n{line}:\t    1024 kB\n")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    limits = {getattr(resource, kind): (1500 * KIB, unlimited[1])}
    monkeypatch.setattr(resource, "getrlimit", lambda limit: limits.get(limit, unlimited))
    assert free_bytes(machine.meminfo, machine.cgroup, machine.groups, status) == 476 * KIB
