"""Gathering: packets that arrive fast, one after the other, are read together and handed over together.

Owns when the next read is due, and the events of one read. A thread that wakes for each of a thousand heartbeats a
second costs more than the heartbeats. Events are handed over when their acknowledgements are written: the thread that
takes them then needs the interpreter, which this one no longer does. Doesn't know MQTT.

Invariants:
- no packet waits longer than ``gather_s``, and none that comes ``gather_s`` after the last read waits at all;
- the events keep their order.
"""

from __future__ import annotations

import time
from typing import Protocol

from broker.transport.port import Inbox, LinkEvent

MOST_PACKETS = 1_000  # read together, before messages are written again


class Packets(Protocol):
    """The MQTT client, as far as this file knows it."""

    def loop_read(self) -> int:
        """Read one packet; 0 if that went well."""

    def want_write(self) -> bool:
        """Whether a packet waits to be written."""

    def loop_write(self) -> int:
        """Write packets until none waits, or the network takes no more."""

    @property
    def has_unseen_bytes(self) -> bool:
        """Whether there are bytes that no poll sees: they were read already."""

    def has_bytes(self) -> bool:
        """Whether a read wouldn't wait: there are bytes, or the connection has ended; false once it is closed."""


class Gathering:
    """The reads of one connection after another; with ``gather_s`` 0 each packet is read as soon as it is there."""

    def __init__(self, inbox: Inbox, gather_s: float) -> None:
        self._inbox = inbox
        self._gather_s = gather_s
        self._read_from_s = 0.0
        self._gathered: list[LinkEvent] | None = None  # while packets are read together

    @property
    def wait_s(self) -> float:
        """The seconds until the next read is due."""
        return max(0.0, self._read_from_s - time.monotonic())

    def emit(self, event: LinkEvent) -> None:
        """Hand an event over: now, or with the others of this read."""
        if self._gathered is None:
            self._inbox(event)
        else:
            self._gathered.append(event)

    def read(self, packets: Packets) -> None:
        """Read the packets that are there; write what acknowledges them; hand over their events."""
        self._gathered = []
        if self._gather_s:
            self._read_from_s = time.monotonic() + self._gather_s
        try:
            for _ in range(MOST_PACKETS):
                if packets.loop_read() != 0 or not (
                    packets.has_unseen_bytes or (self._gather_s and packets.has_bytes())
                ):
                    break
            if packets.want_write():  # an acknowledgement, without which the broker holds other messages back
                self._read_from_s = 0.0
                packets.loop_write()
        finally:
            gathered, self._gathered = self._gathered, None
            for event in gathered:
                self._inbox(event)
