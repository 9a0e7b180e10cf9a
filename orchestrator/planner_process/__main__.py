"""The planner's program: ``python -m orchestrator.planner_process PROBLEMS ENDED``, started by the orchestrator only.

Owns the loop from problems to plans, and the seconds after which a search ends. Knows nothing of the orchestrator's
state. The arguments are file descriptors: a connection on which problems come and plans go, and a pipe with the numbers
of problems that must come to an end.

Invariants:
- it ends when the orchestrator does, whose ends of both are then closed, and by no signal before: a service manager
  sends its signal to both processes, and the orchestrator still has to say goodbye;
- it doesn't grow: a forked copy solves each problem, and the memory for that goes with the copy. With 1,000 devices
  this is 8 of 55 MB, and a copy takes 1.5 ms (measured on 2026-11-26). If a copy dies, so does the program;
- where both want the same core, the orchestrator gets one and a half times as much of it as a search.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

from orchestrator.planner.plans import Plan, Problem
from orchestrator.planner.solve import solve
from orchestrator.planner_process import NUMBER

NICENESS = 2  # Linux gives a process of this niceness two thirds of what one of niceness 0 gets
DEEPEST = 50_000  # calls in one another: packing and branch and bound take one or two for each module or task


class Ends:
    """The highest number of a problem that must come to an end, as far as the orchestrator has said."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._highest = 0

    def covers(self, number: int) -> bool:
        """Whether this problem must come to an end. The numbers of later problems are left to their copies."""
        while number > self._highest and select.select([self._pipe], [], [], 0)[0]:
            said = os.read(self._pipe, NUMBER.size)
            if len(said) < NUMBER.size:
                return True  # the orchestrator has ended
            self._highest = max(self._highest, NUMBER.unpack(said)[0])
        return number <= self._highest


def answer(problem: Problem, number: int, seconds: float, ends: Ends) -> Plan | str:
    """The plan, or what went wrong."""
    until_s = time.monotonic() + seconds
    try:
        return solve(problem, lambda: time.monotonic() > until_s or ends.covers(number))
    except Exception:  # noqa: BLE001 - a bug met by one problem must not end the planner
        return traceback.format_exc()


def answer_in_copy(message: bytes, problems: Connection, ends: Ends) -> int:
    """Solve a problem and send the plan, in a copy of this process; returns the copy's exit status."""
    copy = os.fork()
    if copy:
        return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    status = 1
    try:
        number, seconds, problem = pickle.loads(message)  # noqa: S301 - from the orchestrator that started this process
        problems.send((number, answer(problem, number, seconds, ends)))
        status = 0
    finally:
        os._exit(status)


def main(arguments: Sequence[str]) -> int:
    """Solve one problem after the other, until the orchestrator ends; returns 1 if a copy died."""
    sys.setrecursionlimit(DEEPEST)
    os.nice(NICENESS)
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    problems, ends = Connection(int(arguments[0])), Ends(int(arguments[1]))
    gc.freeze()  # so that copies share the memory of what is there now
    try:
        while True:
            if answer_in_copy(problems.recv_bytes(), problems, ends):
                return 1
    except (EOFError, OSError):
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
