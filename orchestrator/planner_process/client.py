"""The way to the planner: a process of its own, which is started, watched, and started again if it dies.

Owns that process, the pipes to it and the thread that waits for its plans. Decides nothing.

Invariants:
- ``request`` and ``end`` never wait for the process: the orchestrator's loop calls them;
- of two problems only the later one is sure to be answered;
- the process ends with this one, however this one ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Protocol

import structlog

from orchestrator.events import EndPlanning, PlanFound, RequestPlan, Ticket
from orchestrator.planner.plans import Plan, Problem
from orchestrator.planner_process import NUMBER

SEARCH_S = 0.5  # the longest search, on a machine on which its units take longer than they should
WATCH_S = 1.0  # between two looks whether the idle process lives: the next problem should find it ready
HUNG_S = 60.0  # after that: no search looks at the clock while it packs, and on a slow busy machine that takes long

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}  # numpy's: the planner multiplies no matrices, and makes copies of itself
_log = structlog.get_logger("orchestrator.planner")

Inbox = Callable[[PlanFound], None]


class Planner(Protocol):
    """The orchestrator's view of a planner. It calls the inbox with each plan, from any thread."""

    def request(self, action: RequestPlan) -> None:
        """Begin with a problem."""

    def end(self, action: EndPlanning) -> None:
        """Come to an end with a problem, with what was found."""

    def close(self) -> None:
        """End for good."""


MakePlanner = Callable[[Inbox], Planner]


@dataclass(frozen=True)
class _Job:
    number: int
    ticket: Ticket
    problem: Problem


class _Process:
    """One run of the planner's program."""

    def __init__(self) -> None:
        self.plans, theirs = Pipe()
        end_read, self.end_write = os.pipe()
        os.set_blocking(self.end_write, False)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.planner_process", str(theirs.fileno()), str(end_read)],
                pass_fds=(theirs.fileno(), end_read),
                stdin=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                process_group=0,  # its own, with the copies of it that solve problems
            )
        finally:
            theirs.close()
            os.close(end_read)

    def end(self, number: int) -> None:
        """Say that problems up to this number must come to an end."""
        with contextlib.suppress(OSError):  # it has died
            os.write(self.end_write, NUMBER.pack(number))

    def kill(self) -> None:
        """End it, and the copy that is at work."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> int:
        """End it; its exit status."""
        self.kill()
        status = self.process.wait()
        self.plans.close()
        os.close(self.end_write)
        return status


class PlannerProcess:
    """A planner in a process of its own; ``inbox`` is called from this planner's thread."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._number = 0  # of the newest problem
        self._closing = False
        self._lock = threading.Lock()  # around the change of the process
        self._process: _Process | None = None
        self._thread = threading.Thread(target=self._run, name="planner", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The process id, while there is a process."""
        with self._lock:
            return self._process.process.pid if self._process else None

    def request(self, action: RequestPlan) -> None:
        """Begin with a problem as soon as the one under way has come to its end."""
        self._tell_to_end()
        self._number += 1
        self._jobs.put(_Job(self._number, action.ticket, action.problem))

    def end(self, action: EndPlanning) -> None:  # noqa: ARG002 - there is only one
        """Let the newest problem come to an end."""
        self._tell_to_end()

    def close(self) -> None:
        """End the process and the thread."""
        self._closing = True
        self._jobs.put(None)
        with self._lock:
            if self._process is not None:
                self._process.kill()
        self._thread.join()

    def _tell_to_end(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.end(self._number)

    # --- the planner's thread ---

    def _run(self) -> None:
        self._start()
        while (job := self._next_job()) is not None and not self._closing:
            while not self._jobs.empty() and (newer := self._jobs.get()) is not None:
                job = newer  # the plan of an older one isn't waited for
            self._answer(job)
        self._stop()

    def _next_job(self) -> _Job | None:
        while True:
            try:
                return self._jobs.get(timeout=WATCH_S)
            except queue.Empty:
                process = self._process
                if not self._closing and process is not None and process.process.poll() is not None:
                    self._restart("it ended while it had no problem")

    def _restart(self, reason: str) -> None:
        status = self._stop()
        if not self._closing:
            _log.error("planner_ended", status=status, reason=reason)
            self._start()

    def _answer(self, job: _Job) -> None:
        """Have a problem solved; once more, if the process dies at it. What can't be solved has no plan."""
        for _ in range(2):
            if self._closing:
                return
            process = self._process or self._start()
            try:
                found = self._exchange(process, job)
            except (EOFError, OSError) as error:
                self._restart(str(error) or type(error).__name__)
                continue
            if isinstance(found, str):
                _log.error("planning_failed", kind=type(job.problem).__name__, exception=found)
                break
            self._inbox(PlanFound(job.ticket, found))
            return
        self._inbox(PlanFound(job.ticket, None))

    def _exchange(self, process: _Process, job: _Job) -> Plan | str:
        """Send a problem and wait for the answer.

        Raises:
            EOFError: the process has died.
            OSError: so it has, or it hangs.
        """
        process.plans.send((job.number, SEARCH_S, job.problem))
        until_s = time.monotonic() + SEARCH_S + HUNG_S
        while process.plans.poll(max(0.0, until_s - time.monotonic())):
            answered: tuple[int, Plan | str] = process.plans.recv()
            if answered[0] == job.number:
                return answered[1]
        raise TimeoutError(f"no answer after {SEARCH_S + HUNG_S:g} s")

    def _start(self) -> _Process:
        process = _Process()
        with self._lock:
            self._process = process
        return process

    def _stop(self) -> int | None:
        with self._lock:
            process, self._process = self._process, None
        return process.close() if process is not None else None
