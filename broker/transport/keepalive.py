"""The keepalive of one connection: when a ping is due, and when the connection is dead. Pure.

Owns keepalive, instead of paho's own. Paho closes a connection while a message passes that takes longer than the
keepalive, because the ping or its answer waits behind the message. Doesn't know sockets and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Keepalive:
    """The activity of one connection: received bytes, and room for more bytes to send.

    Times are seconds of a clock that never goes back.
    """

    active_s: float  # the broker sent or accepted bytes
    pinged_s: float

    def ping_due(self, now_s: float, keepalive_s: int) -> bool:
        """Whether to ping now; a True counts as the ping. Twice in each keepalive, so that one may be late."""
        if now_s - self.pinged_s < max(keepalive_s, 1) / 2:
            return False
        self.pinged_s = now_s
        return True

    def is_dead(self, now_s: float, keepalive_s: int) -> bool:
        """Whether there was no activity for twice the keepalive: four pings without an answer."""
        return now_s - self.active_s >= 2 * max(keepalive_s, 1)
