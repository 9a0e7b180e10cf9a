"""A clock of the time in which this process ran. Pure.

Owns one figure. When a machine sleeps or a process is stopped, all its work stands still together: such time says
nothing about a pass or a load that seems to take long.
"""

from __future__ import annotations

LONGEST_STEP_S = 1.0  # the service's loop turns twice as often; a longer step means that the process stood still


class AwakeClock:
    """Seconds since its start without those in which the process stood still."""

    def __init__(self, now_s: float) -> None:
        self._seen_s = now_s
        self.awake_s = 0.0

    def tick(self, now_s: float) -> float:
        """Take in the present time, and return the awake seconds. The loop calls this at each turn."""
        self.awake_s += min(max(0.0, now_s - self._seen_s), LONGEST_STEP_S)
        self._seen_s = now_s
        return self.awake_s
