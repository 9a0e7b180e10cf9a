"""The clock of the orchestrator's loop: time passes as messages are read, not while they wait to be read.

Owns the time at which an event counts, and the rule by which a pause of the process is noticed. A heartbeat counts from
its arrival, so a loop that is behind with its work takes no device for silent whose heartbeat waits in the mailbox.

Invariants:
- the time never goes back;
- it is that of the newest message that was read; the real one only if no message waits;
- after a pause of the process, in which nothing was received, it is the real one.
"""

from __future__ import annotations

import time


class LoopClock:
    """The clock of one term. Times are those of ``time.monotonic``."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s  # of one step of the loop; more was a pause
        self._looked_s = time.monotonic()
        self.now_s = self._looked_s
        """The time to which all messages were read."""

    def read(self, arrived_s: float) -> None:
        """Go on to the arrival of the message that is read now."""
        self.now_s = max(self.now_s, arrived_s)

    def catch_up(self) -> None:
        """Go on to the real time: no message waits."""
        self.now_s = max(self.now_s, time.monotonic())

    def has_paused(self, waited_s: float = 0.0, longest_s: float | None = None) -> bool:
        """Whether the process stood still since the last call, beyond the ``waited_s`` for which it meant to wait.

        A step may take ``longest_s``; as long as always, if None.
        """
        looked_s, self._looked_s = self._looked_s, time.monotonic()
        return self._looked_s > looked_s + waited_s + (self._longest_s if longest_s is None else longest_s)
