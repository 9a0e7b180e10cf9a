"""Freed memory of the orchestrator's process, returned to the system: some time after work, and rarely.

Owns the times. A site that powers up leaves some megabytes that are free, and that the C library would keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from broker.process import return_freed_memory

AFTER_S = 10.0  # after the first work since the last time; it takes 3 to 10 ms


class FreedMemory:
    """The freed memory of this process; times are those of ``time.monotonic``."""

    def __init__(self, return_it: Callable[[], None] = return_freed_memory) -> None:
        self._return = return_it
        self._due_s = math.inf

    def on_work(self, now_s: float) -> None:
        """Note that memory was used: it is returned ``AFTER_S`` later."""
        self._due_s = min(self._due_s, now_s + AFTER_S)

    def return_if_due(self, now_s: float) -> None:
        """Return the memory that is free, if it is time."""
        if now_s >= self._due_s:
            self._due_s = math.inf
            self._return()
