"""How good this device's link to the broker is, measured with messages that it sends to itself. Pure: time comes in.

Owns the size and the order of the messages, and what follows from their times. Knows no transport: the service
publishes what this asks for, on the connection that carries tensors, and tells when it came back.

One message is on its way at a time, so none waits for another. A link that never answers leaves no result, and what
was assumed of it stays. The least time of several counts: other traffic, a busy broker or a busy processor can only
make a message slower. (So does ping, and NTP's clock filter: Mills, RFC 5905 section 10.)
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL, LARGE = 8, 3  # how many messages
LARGE_BYTES = 128 * 1024  # beyond TCP's first window: about a photograph
LONG_S = 1.0  # a large message that takes longer is the last one: the link has other work
ALIKE = 2.0
FASTEST_S = 50e-6  # the least time that is told from none: 128 KiB up and down in it are 42 Gbit/s


@dataclass(frozen=True)
class Link:
    """What was measured: one way to the broker, and its bandwidth."""

    latency_s: float
    bandwidth_bits_per_s: float

    def resembles(self, other: Link) -> bool:
        """Whether both figures are within a factor of ``ALIKE``: between two measurements there is always some."""
        pairs = ((self.latency_s, other.latency_s), (self.bandwidth_bits_per_s, other.bandwidth_bits_per_s))
        return all(max(pair) <= ALIKE * min(pair) for pair in pairs)


class Echo:
    """One measurement of a link.

    ``begin`` and ``heard`` give the payload to send next, with the time just before it goes; after the last, ``link``
    is the result.

    Args:
        nonce: Tells this measurement's messages from those of an earlier one.
    """

    def __init__(self, nonce: int) -> None:
        self.link: Link | None = None
        self._nonce = nonce
        self._sent_s = 0.0
        self._small_s: list[float] = []
        self._large_s: list[float] = []

    def begin(self, now_s: float) -> bytes:
        """The first message to send."""
        return self._next(now_s)

    def heard(self, payload: bytes, heard_s: float, now_s: float) -> bytes | None:
        """A message came back.

        Args:
            payload: What came.
            heard_s: When it came.
            now_s: When the next one goes.

        Returns:
            The next message to send; None when there is none, or when this was not the one that is awaited.
        """
        if self.link is not None or not payload.startswith(self._head()):
            return None
        took_s = max(0.0, heard_s - self._sent_s)
        (self._small_s if len(self._small_s) < SMALL else self._large_s).append(took_s)
        if len(self._large_s) < LARGE and not (self._large_s and took_s > LONG_S):
            return self._next(now_s)
        there_and_back_s = min(self._small_s)
        transfer_s = max(min(self._large_s) - there_and_back_s, FASTEST_S)  # up, and down again
        self.link = Link(there_and_back_s / 2, 2 * 8 * LARGE_BYTES / transfer_s)
        return None

    def _next(self, now_s: float) -> bytes:
        self._sent_s = now_s
        head = self._head()
        return head if len(self._small_s) < SMALL else head.ljust(LARGE_BYTES, b".")

    def _head(self) -> bytes:
        return f"{self._nonce}-{len(self._small_s) + len(self._large_s)} ".encode()
