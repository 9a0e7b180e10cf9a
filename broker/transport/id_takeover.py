"""The signs that another client connects with this connection's client id. Pure.

A broker ends the older of two connections with one id. Some brokers give this reason; Mosquitto before 2.1 gives none,
and then the same happens again and again. Owns the count of such ends. Doesn't know sockets and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

SIGNS = 3  # ends in a row without a reason: a network or a broker that fails lets the attempt after them fail, too
SHORT_S = 10.0  # a connection that lasts longer is at most the first of them; clients reconnect within 5 s


@dataclass
class TakeoverWatch:
    """Judges the ends of one client's connections."""

    client_id: str
    ends: int = 0  # in a row, without a reason

    def on_end(self, *, lasted_s: float | None, has_reason: bool) -> str:
        """Record the end of a connection, or a failed attempt; returns a sentence if another client has the id."""
        if lasted_s is None or has_reason:
            self.ends = 0
        elif lasted_s > SHORT_S:
            self.ends = 1
        else:
            self.ends += 1
        if self.ends < SIGNS:
            return ""
        return (
            f"the client id {self.client_id} seems to be in use elsewhere, because the broker ended {self.ends} "
            "connections in a row soon after they began and gave no reason: end the other client"
        )

    def taken_over(self) -> str:
        """The sentence when the broker itself says that another client has the id."""
        return f"the client id {self.client_id} is in use elsewhere: end the other client"
