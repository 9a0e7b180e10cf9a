"""Detection of a client-id takeover: another agent is connected under this device's id. Pure.

Owns the evidence. The broker disconnects the older of two clients with one id, and that agent connects again. So two
agents whose files name one id take over each other's session without end, and each serves half of the time. The
device's own retained state gives them away, on brokers that send it to a returning client (Mosquitto does, the embedded
one doesn't). After its first connection an agent finds there only its own sessions, or those of an earlier process that
it found at the start. A new foreign session belongs to another agent. One may be a process that was just replaced;
several in a row are not. Then the agent that is disconnected next ends, and the other one serves.
"""

from __future__ import annotations

MAX_FOREIGN = 3  # new foreign sessions in a row, after which an agent that has just started ends
MAX_FOREIGN_SETTLED = 2 * MAX_FOREIGN  # the same for an agent that served before: the newcomer is the mistake
SETTLED_S = 60.0
MAX_KNOWN = 64  # sessions remembered, the last seen; the retained state has one of the last few
CALM_S = 10.0  # a connection that lasted longer was not taken over; clients reconnect within 5 s


class ClientTakeover:
    """The sessions of this device's id: its own and foreign ones."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._known: dict[int, None] = {}  # in the order in which they were last seen
        self._connected_s: float | None = None
        self._short = 0  # connections in a row that ended soon
        self._foreign_s: list[float] = []  # when new foreign sessions appeared

    @property
    def suspected(self) -> bool:
        """Whether the last connection ended so soon that another agent may be the reason."""
        return self._short > 0

    def on_connected(self, session: int, now_s: float) -> None:
        """Record a connection of our own."""
        self.remember(session)
        self._connected_s = now_s

    def on_disconnected(self, now_s: float) -> bool:
        """Record its end; True when this agent must end, because another one has its id."""
        if self._connected_s is None:
            return False
        lasted_s, self._connected_s = now_s - self._connected_s, None
        self._short += 1
        if lasted_s > CALM_S:
            self._short, self._foreign_s = 1, []
        settled = bool(self._foreign_s) and self._foreign_s[0] - self._started_s > SETTLED_S
        return len(self._foreign_s) >= (MAX_FOREIGN_SETTLED if settled else MAX_FOREIGN)

    def on_session_seen(self, session: int, now_s: float) -> None:
        """Record the session of the device's retained state."""
        if session not in self._known and self._short:
            self._foreign_s.append(now_s)
        self.remember(session)

    def remember(self, session: int) -> None:
        """Record a session that proves nothing: our own, or one that is announced while we are connected."""
        self._known.pop(session, None)
        self._known[session] = None
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
