"""The events that wait for the orchestrator's loop, of its two connections and its planner, with their arrival times.

Owns the mailbox between the threads. Doesn't know what the events mean.

Invariants:
- requests wait apart, within a bound of bytes; only they and control messages may be refused;
- the loop learns that control messages were refused: until then it can't judge silence, and what the broker retains
  must be read again (``refusals``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from broker.protocol import topics
from broker.transport import port
from broker.transport.mailbox import Mailbox
from broker.transport.refusals import Refusals
from orchestrator.events import PlanFound

MAX_WAITING_BYTES = 32 * 1024 * 1024  # of requests that wait for the loop's next turn; two of the largest
READ_AGAIN_EVERY_S = 30.0  # at most, by a leader that has settled: until it has again, it places nothing


@dataclass(frozen=True)
class Arrived:
    """An event; ``control`` says whether it came over the control connection, or from the planner."""

    control: bool
    event: port.LinkEvent | PlanFound
    at_s: float


class Arrivals:
    """The events that wait; ``None`` among them ends a wait."""

    def __init__(self, prefix: str, settle_s: float) -> None:
        self._prefix = prefix
        self.refusals = Refusals(settle_s / 2, READ_AGAIN_EVERY_S)  # soon enough that nothing settles before
        self._mailbox: Mailbox[Arrived | None] = Mailbox(max_data_bytes=MAX_WAITING_BYTES)
        self.missed = False
        """Whether control messages were refused, because too many waited, since the loop last took note."""
        self.session: int | None = None
        """The session of the control connection's link; None while it is down. The loop may not have read that yet."""

    @property
    def dropped(self) -> int:
        """The number of refused messages since the start."""
        return self._mailbox.dropped

    # --- any thread ---

    def from_control(self, event: port.LinkEvent) -> None:
        """The inbox of the control connection."""
        if isinstance(event, port.LinkUp | port.LinkDown):
            self.session = event.session if isinstance(event, port.LinkUp) else None
        self._put(event, control=True, certain=not isinstance(event, port.Delivery))

    def from_data(self, event: port.LinkEvent) -> None:
        """The inbox of the other connection."""
        if isinstance(event, port.Delivery) and topics.asked(self._prefix, event.topic, None) is not None:
            self._mailbox.put_data(Arrived(False, event, time.monotonic()), len(event.payload))
        else:
            self._put(event, control=False)

    def from_planner(self, found: PlanFound) -> None:
        """The planner's inbox."""
        self._put(found, control=True, certain=True)

    def end_wait(self) -> None:
        """Let the loop go on at once."""
        self._mailbox.put_control(None, certain=True)

    # --- the loop's thread ---

    def next(self, timeout_s: float | None) -> Arrived | None:
        """The next event; None after the timeout."""
        return self._mailbox.get(timeout_s)

    def all(self, timeout_s: float) -> list[Arrived | None]:
        """All events that wait, but for requests; of these the next one, if nothing else waits."""
        return self._mailbox.get_all(timeout_s)

    def clear(self) -> None:
        """Drop what waits: the connections are closed."""
        while self._mailbox.get(0.0) is not None:
            pass  # ``stop`` has set its flag

    def _put(self, event: port.LinkEvent | PlanFound, *, control: bool, certain: bool = False) -> None:
        arrived = Arrived(control, event, time.monotonic())
        size_bytes = len(event.payload) if isinstance(event, port.Delivery) else 0
        if not self._mailbox.put_control(arrived, size_bytes, certain=certain):
            self.missed = True
            self.refusals.note(arrived.at_s)
