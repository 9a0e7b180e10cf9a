"""The budget of a plan: how much work all its searches together may do.

Owns the count. A unit is about 10 microseconds of one core, so that a plan takes about as long everywhere, and equal
problems have equal plans; the caller's clock may end the work earlier. What must be done in any case, to place each
module somewhere and to give each refusal, is cheap, and goes on when the budget is spent.
"""

from __future__ import annotations

from collections.abc import Callable

ASK_EVERY = 64
"""So many units are spent between two looks at the caller's clock."""
_ENDLESS = 10**12


def never() -> bool:
    """False: the clock of a caller without a time limit."""
    return False


class Budget:
    """The work that is left; ``enough`` tells whether the caller's time is over."""

    def __init__(self, units: int = _ENDLESS, enough: Callable[[], bool] = never, whole: Budget | None = None) -> None:
        self.left = units
        self._enough, self._whole = enough, whole
        self._ask_at = units

    @property
    def over(self) -> bool:
        """Whether to stop."""
        if 0 < self.left <= self._ask_at:
            self._ask_at = self.left - ASK_EVERY
            if self._enough():
                self.left = 0
        return self.left <= 0

    def spend(self, units: int = 1) -> None:
        """Count work that was done."""
        self.left -= units
        if self._whole is not None:
            self._whole.spend(units)

    def part(self, units: int) -> Budget:
        """At most so many units of what is left, for one step of the plan."""
        return Budget(max(0, min(units, self.left)), self._enough, self)
