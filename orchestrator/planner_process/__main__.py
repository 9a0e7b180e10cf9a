"""The planner's program: ``python -m orchestrator.planner_process PROBLEMS ENDED``, started by the orchestrator only.

Owns the loop from problems to plans, and the seconds after which a search ends. Knows nothing of the orchestrator's
state. The arguments are file descriptors: a connection on which problems come and plans go, and a pipe with the numbers
of problems that must come to an end.

Invariant: it ends when the orchestrator does, whose ends of both are then closed, and by no signal before: a terminal
and a service manager send theirs to both processes, and the orchestrator still has to say goodbye.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection

from orchestrator.planner.plans import Plan, Problem, solve

NUMBER = struct.Struct("!Q")
DEEPEST = 50_000  # calls in one another: packing and branch and bound take one or two for each module or task


class Ends:
    """The highest number of a problem that must come to an end, as far as the orchestrator has said."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._highest = 0

    def covers(self, number: int) -> bool:
        """Whether this problem must come to an end."""
        while select.select([self._pipe], [], [], 0)[0]:
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


def main(arguments: Sequence[str]) -> None:
    """Solve one problem after the other, until the orchestrator ends."""
    sys.setrecursionlimit(DEEPEST)
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    problems, ends = Connection(int(arguments[0])), Ends(int(arguments[1]))
    try:
        while True:
            number, seconds, problem = problems.recv()
            problems.send((number, answer(problem, number, seconds, ends)))
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main(sys.argv[1:])
