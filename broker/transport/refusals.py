"""Control messages that found no room in a process's mailbox: when to read again what the broker retains.

Among them may have been an order, a birth or a route, and nobody sends those again. Owns the times; times are those of
``time.monotonic``. Doesn't know what the messages mean.
"""

from __future__ import annotations

import math

from broker.transport.port import Transport


class Refusals:
    """The refusals of one process. The network's thread notes them, and the process's loop looks at them.

    Args:
        quiet_s: without a refusal before the messages are read again: else they would be refused, too.
        between_s: between two readings, unless they are urgent.
    """

    def __init__(self, quiet_s: float, between_s: float = 0.0) -> None:
        self._quiet_s, self._between_s = quiet_s, between_s
        self._noted = self._is_new = False
        self._noted_s = self._read_s = -math.inf

    def note(self, now_s: float) -> None:
        """Note a refusal."""
        self._noted_s = now_s
        self._noted = self._is_new = True

    def look(self, now_s: float, *, urgent: bool = True) -> tuple[bool, bool]:
        """Whether there are new ones since the last look, and whether to read again now; that settles them."""
        is_new, self._is_new = self._is_new, False
        from_s = max(self._noted_s + self._quiet_s, self._read_s + (0.0 if urgent else self._between_s))
        if not self._noted or now_s < from_s:
            return is_new, False
        self._noted, self._read_s = False, now_s
        return is_new, True


def read_again(connection: Transport, *filters: str) -> None:
    """Let the broker send again what it retains under these filters, which the connection subscribes to."""
    connection.unsubscribe(*filters)
    connection.subscribe(*filters)
