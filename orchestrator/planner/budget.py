"""How much work a search may do: a number of steps, which a caller's clock may end earlier.

Owns the counting of steps. Knows nothing of any search, nor of a clock.
"""

from __future__ import annotations

from collections.abc import Callable

GAIN = 1e-9
"""Relative: an improvement by less is rounding."""
ASK_EVERY = 64
"""So many units are spent between two looks at the caller's clock."""


class Budget:
    """The work that is left, in units of about 10 microseconds; the caller's clock may end it earlier."""

    def __init__(self, units: int, enough: Callable[[], bool]) -> None:
        self.left = units
        self._enough = enough
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
