"""Steps of a computation, as a count: what a busy machine doesn't change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

LARGER = 4
MOST_TIMES = 6  # for four times the size: n log n gives 5 at most from 16 on, n squared 16


def steps_of(work: Callable[[], object]) -> int:
    """The lines of Python that some work runs, each turn of a loop counted."""
    count = 0

    def trace(_: FrameType, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def assert_about_linear(make: Callable[[int], Callable[[], object]], size: int) -> None:
    """Fail if work of four times the size takes more steps than n log n allows; ``make`` prepares work of a size."""
    small, large = steps_of(make(size)), steps_of(make(LARGER * size))
    assert large <= MOST_TIMES * small, f"{small} steps for {size}, {large} for {LARGER * size}"
