"""The processes of the measurement: Mosquitto and an orchestrator.

Owns their start and end, the cores on which they run, and the reading of their processor time and memory. Where the
system can't pin a process to a core, they share all cores.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from broker.protocol.errors import BadFile
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import VARIABLES
from s2m3.testbed.site import GOODBYE_S, SiteFailed

COUNT_INTERVAL = "sys_interval 1"  # Mosquitto's own counts come once a second
FILES_BESIDE = 256  # open files of a process beside one for each device
MEGABYTE = 1e6


@dataclass(frozen=True)
class Cores:
    """The processor cores of the orchestrator, and those of the broker and the simulator."""

    orchestrator: frozenset[int]
    others: frozenset[int]

    @property
    def apart(self) -> bool:
        """Whether the orchestrator has a core for itself."""
        return not self.orchestrator & self.others


def divide(cores: Sequence[int]) -> Cores:
    """One core for the orchestrator and the others for the rest; a single core is shared."""
    first, *others = sorted(cores)
    return Cores(frozenset({first}), frozenset(others or [first]))


def available_cores() -> list[int]:
    """The cores that this process may use; those of the machine where the system can't pin."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Run the block, and the processes that it starts, on these cores; nothing happens where the system can't pin."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_files(devices: int) -> None:
    """Allow this process, and those that it starts, an open file for each device.

    Raises:
        BadFile: the system's limit is too low.
    """
    needed = devices + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        problem = f"{devices} devices need {needed} open files, and this process may have {hard}"
        raise BadFile(file="--devices", problem=problem, fix="raise the limit (`ulimit -n`), or simulate fewer")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@dataclass(frozen=True)
class Usage:
    """The processor time of a process and its children since its start, and their memory now."""

    at_s: float
    processor_s: float
    waited_s: float  # its threads were ready to run, and other processes had the core
    resident_mb: float

    def share_since(self, earlier: Usage) -> float:
        """The share of a core that it used since an earlier look."""
        return (self.processor_s - earlier.processor_s) / (self.at_s - earlier.at_s)

    def waited_since(self, earlier: Usage) -> float:
        """The share of the time since an earlier look that its threads waited for a core."""
        return (self.waited_s - earlier.waited_s) / (self.at_s - earlier.at_s)


def usage(pid: int) -> Usage:
    """The processor time and the memory of a process, with all of its threads and children.

    Raises:
        SiteFailed: it has ended.
    """
    try:
        process = psutil.Process(pid)
        times, memory = process.cpu_times(), process.memory_info().rss
        processor_s = times.user + times.system + times.children_user + times.children_system
        waited_s = _waited_s(pid)
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended since
                child_times = child.cpu_times()
                processor_s += child_times.user + child_times.system
                processor_s += child_times.children_user + child_times.children_system
                memory += child.memory_info().rss
                waited_s += _waited_s(child.pid)
    except psutil.Error as error:
        raise SiteFailed(f"process {pid} has ended") from error
    return Usage(time.monotonic(), processor_s, waited_s, memory / MEGABYTE)


def _waited_s(pid: int) -> float:
    """The seconds that the threads of a process waited for a core; 0 where the system doesn't count them."""
    waited_ns = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended since
            waited_ns += int(file.read_text(encoding="ascii").split()[1])
    return waited_ns / 1e9


class Processes:
    """A Mosquitto and an orchestrator, as a context manager; both end with the block.

    Args:
        cores: where they run.
        directory: for the orchestrator's state and log.
        interval_s: how often the orchestrator expects heartbeats.
    """

    def __init__(self, cores: Cores, directory: Path, interval_s: float) -> None:
        self._cores, self._directory, self._interval_s = cores, directory, interval_s
        self._broker = MosquittoBroker(settings=[COUNT_INTERVAL])
        self._orchestrator: subprocess.Popen[bytes] | None = None
        self.url = self._broker.url

    def __enter__(self) -> Self:
        self.start_broker()
        self.start_orchestrator()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill_orchestrator()
        self._broker.stop()

    def start_broker(self) -> None:
        """Start the broker, or start it again with an empty memory."""
        with on_cores(self._cores.others):
            self._broker.start()

    def kill_broker(self) -> None:
        """End the broker, with all that it keeps in memory."""
        self._broker.kill()

    def start_orchestrator(self) -> None:
        """Start the orchestrator, or start it again with the same state directory."""
        arguments = ["--broker", self.url, "--state-dir", str(self._directory / "state")]
        arguments += ["--heartbeat-interval", f"{self._interval_s:g}", "--until-stdin-closes"]
        with on_cores(self._cores.orchestrator), self._log.open("ab") as output:
            self._orchestrator = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only us, and we end it
                env={name: value for name, value in os.environ.items() if name not in VARIABLES},
            )

    def kill_orchestrator(self) -> None:
        """End the orchestrator without warning."""
        if (process := self._orchestrator) is not None:
            self._orchestrator = None
            with process:
                process.kill()
                process.wait(GOODBYE_S)

    def orchestrator_usage(self) -> Usage:
        """The orchestrator's processor time and memory.

        Raises:
            SiteFailed: it has ended; with the last lines that it printed.
        """
        if self._orchestrator is None or self._orchestrator.poll() is not None:
            text = self._log.read_text(encoding="utf-8", errors="replace")
            raise SiteFailed("the orchestrator ended by itself: " + "\n".join(text.splitlines()[-12:]))
        return usage(self._orchestrator.pid)

    def broker_usage(self) -> Usage:
        """The broker's processor time and memory."""
        return usage(self._broker.pid)

    @property
    def _log(self) -> Path:
        return self._directory / "orchestrator.log"
