"""Whether somebody else is connected under this device's id: two agents whose files name one id. Pure.

Owns the evidence. The broker ends the older of two connections with one id, and its agent connects again, so the two
throw each other out for ever, each serving half of the time. What gives them away is the device's own retained state,
on a broker that says it to a client that comes back (Mosquitto does, the embedded one doesn't): after its first
connection an agent finds there only sessions of its own, or those of an earlier life that it found at the start; a new
foreign one is a rival's. One may be a process that was just replaced; several in a row are not. Then the one that is
thrown out next ends: the other one sees no more of it, and serves.
"""

from __future__ import annotations

MOST_FOREIGN = 3  # new foreign sessions in a row; an agent that has just started ends when it is thrown out once more
MOST_FOREIGN_SETTLED = 2 * MOST_FOREIGN  # the same for one that served before: the newcomer is the mistake
SETTLED_S = 60.0
MOST_KNOWN = 64  # sessions remembered, those that were met last: what is retained is of one of the last few
CALM_S = 10.0  # a connection that lasted longer was not fought for; clients wait at most 5 s before they connect again


class Rivals:
    """Sessions of this device's id: its own and others'.

    Args:
        started_s: when this agent started.
    """

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._known: dict[int, None] = {}  # in the order in which they were met last
        self._connected_s: float | None = None
        self._short = 0  # connections in a row that ended soon
        self._seen_s: list[float] = []  # when new foreign sessions were

    @property
    def suspected(self) -> bool:
        """Whether the last connection ended so soon that a rival may be the reason: then it is worth to be seen."""
        return self._short > 0

    def connected(self, session: int, now_s: float) -> None:
        """A connection of our own."""
        self._meet(session)
        self._connected_s = now_s

    def disconnected(self, now_s: float) -> bool:
        """It ended; whether this agent must end, too, because somebody else has its id."""
        if self._connected_s is None:
            return False
        lasted_s, self._connected_s = now_s - self._connected_s, None
        self._short += 1
        if lasted_s > CALM_S:
            self._short, self._seen_s = 1, []
        settled = bool(self._seen_s) and self._seen_s[0] - self._started_s > SETTLED_S
        return len(self._seen_s) >= (MOST_FOREIGN_SETTLED if settled else MOST_FOREIGN)

    def hear(self, session: int, now_s: float) -> None:
        """A session in the device's state."""
        if session not in self._known and self._short:
            self._seen_s.append(now_s)
        self._meet(session)

    def _meet(self, session: int) -> None:
        self._known.pop(session, None)
        self._known[session] = None
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
