"""The quality of this device's link to the broker, measured with messages that the device sends to itself. Pure.

Owns the size and the order of the messages, what their times mean, and when a new result is announced. Values that the
operator stated are never overruled. Knows no transport: the service passes in the times and a function that publishes
on the data connection.

One message is under way at a time, so none waits for another. A link that never answers gives no result, and the
assumed values stay. The least of several times counts: other traffic, a busy broker or a busy processor can only make a
message slower. (Ping does the same, and NTP's clock filter: Mills, RFC 5905 section 10.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import structlog

from broker.protocol.errors import LocalProtocolError, TransportError
from broker.protocol.messages import DeviceProfile
from broker.transport.port import Outgoing
from edge_agent.config import AgentConfig

SMALL, LARGE = 8, 3  # how many messages
LARGE_BYTES = 128 * 1024  # beyond TCP's first window: about a photograph
SLOW_S = 1.0  # a large message that takes longer is the last one: the link has other work
ALIKE_FACTOR = 2.0
MIN_TRANSFER_S = 50e-6  # a shorter time can't be measured: 128 KiB up and down in it are 42 Gbit/s

log = structlog.get_logger()


@dataclass(frozen=True)
class Estimate:
    """The measured latency, one way to the broker, and the measured bandwidth."""

    latency_s: float
    bandwidth_bits_per_s: float

    def resembles(self, other: Estimate) -> bool:
        """Whether both figures are within ``ALIKE_FACTOR``: two measurements of one link always differ a little."""
        pairs = ((self.latency_s, other.latency_s), (self.bandwidth_bits_per_s, other.bandwidth_bits_per_s))
        return all(max(pair) <= ALIKE_FACTOR * min(pair) for pair in pairs)


class LinkProbe:
    """Measures the link at each new data connection, with messages to the device's own ``topic``."""

    def __init__(self, config: AgentConfig, topic: str, publish: Callable[[Outgoing], None]) -> None:
        self._topic = topic
        self._publish = publish
        self._stated = config.model_dump(include=set(Estimate.__dataclass_fields__), exclude_none=True)
        self._announced: Estimate | None = None
        self._session: int | None = None  # of the connection that is being measured; marks the messages
        self._sent_s = 0.0
        self._small_s: list[float] = []
        self._large_s: list[float] = []

    def begin(self, session: int, now_s: float) -> None:
        """Measure a new connection, unless the operator stated all values."""
        if len(self._stated) < len(Estimate.__dataclass_fields__):
            self._session, self._small_s, self._large_s = session, [], []
            self._send(now_s)

    def on_echo(self, payload: bytes, heard_s: float, now_s: float, profile: DeviceProfile) -> DeviceProfile | None:
        """The profile to announce after a message came back at ``heard_s``; the next message goes at ``now_s``.

        None while the measurement goes on, and when it gives nothing new.
        """
        if self._session is None or not payload.startswith(self._head()):
            return None
        took_s = max(0.0, heard_s - self._sent_s)
        (self._small_s if len(self._small_s) < SMALL else self._large_s).append(took_s)
        if len(self._large_s) < LARGE and not (self._large_s and took_s > SLOW_S):
            self._send(now_s)
            return None
        self._session = None
        round_trip_s = min(self._small_s)
        transfer_s = max(min(self._large_s) - round_trip_s, MIN_TRANSFER_S)  # up, and down again
        estimate = Estimate(round_trip_s / 2, 2 * 8 * LARGE_BYTES / transfer_s)
        if self._announced is not None and estimate.resembles(self._announced):
            return None
        self._announced = estimate
        return profile.model_copy(update=asdict(estimate) | self._stated)

    def _head(self) -> bytes:
        return f"{self._session}-{len(self._small_s) + len(self._large_s)} ".encode()

    def _send(self, now_s: float) -> None:
        self._sent_s = now_s
        payload = self._head() if len(self._small_s) < SMALL else self._head().ljust(LARGE_BYTES, b".")
        try:
            self._publish(Outgoing(self._topic, payload, qos=0))
        except (TransportError, LocalProtocolError) as error:  # the assumed values stay
            log.info("link_not_measured", reason=str(error) or type(error).__name__)
