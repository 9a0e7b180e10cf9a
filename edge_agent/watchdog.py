"""The end of a process in which no Python thread can run, because a forward pass keeps the interpreter's lock.

Owns a timer of the operating system. The heartbeat thread resets it at each of its turns. If it expires, the system
writes the stacks of all threads to standard error and ends the process by SIGPROF: no thread of this process is needed
for that, so it can't restart itself, as it does for other hung passes (``restart``). The timer counts the process's
processor time: a process that is stopped, or a machine that sleeps, uses none.
"""

from __future__ import annotations

import faulthandler
import signal
import sys

LIMIT_S = 60.0  # of one processor: passes that compute on several use more
INTERVALS = 3.0  # of heartbeats, beside that: the other threads compute meanwhile


class Watchdog:
    """Ends this process if nobody resets it, while the process computes. It begins with the first ``reset``.

    Args:
        interval_s: the longest time between two resets while all is well.
        threads: of a forward pass.
        file: the descriptor of one for the stacks, instead of standard error.
    """

    def __init__(self, interval_s: float, threads: int = 1, file: int | None = None) -> None:
        self._limit_s = (LIMIT_S + INTERVALS * interval_s) * threads
        faulthandler.register(signal.SIGPROF, sys.stderr if file is None else file, chain=True)

    def reset(self) -> None:
        """Give the process the full time again. Any thread may call it."""
        signal.setitimer(signal.ITIMER_PROF, self._limit_s)

    def stop(self) -> None:
        """Let the process compute as long as it likes. A timer would outlive ``exec``."""
        signal.setitimer(signal.ITIMER_PROF, 0)
