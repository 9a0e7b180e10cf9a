"""When to ping, and when a connection is dead; pure.

Owns keepalive, instead of the MQTT client's own: that one takes a connection for dead while a message longer than the
keepalive passes, because its ping, or the answer, waits behind. Knows nothing of sockets and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pulse:
    """The signs of life of one connection. Anything that comes is one, and so is room for more of what is being sent.

    Times are seconds of a clock that never goes back.
    """

    heard_s: float
    pinged_s: float

    def hear(self, now_s: float) -> None:
        """The other end sent something, or took something."""
        self.heard_s = now_s

    def wants_ping(self, now_s: float, keepalive_s: int) -> bool:
        """Whether to ping now: twice in each keepalive, so that one may be late."""
        if now_s - self.pinged_s < max(keepalive_s, 1) / 2:
            return False
        self.pinged_s = now_s
        return True

    def is_dead(self, now_s: float, keepalive_s: int) -> bool:
        """Whether nothing came for twice the keepalive: four pings without an answer."""
        return now_s - self.heard_s >= 2 * max(keepalive_s, 1)
