"""The quality of this device's link to the broker, measured with messages that the device sends to itself. Pure.

Owns the size and the order of the messages, what their times mean, and when a new result is announced. Values that the
operator stated are never overruled. Knows no transport: the service passes in the times and a function that publishes
on the data connection.

One message is under way at a time, so none waits for another. A link that never answers gives no result, and the
assumed values stay. The least of several times counts: other traffic, a busy broker or a busy processor can only make a
message slower. (Ping does the same, and NTP's clock filter: Mills, RFC 5905 section 10.)

When a broker or a site comes back, all devices connect at once and slow each other down. So a device measures in
several rounds, at times that differ between devices, and the best of all rounds counts. A worse link is announced only
after the last round; a better one at once. Later rounds follow, further and further apart, so a figure that was taken
in a traffic jam doesn't stay.
"""

from __future__ import annotations

import hashlib
import math
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
ROUNDS = 3  # of a series
FIRST_S, FIRST_GAP_S = 1.0, 2.0  # the longest times until the first round and between rounds, while no link is known
SPREAD_S, GAP_S = 60.0, 60.0  # the same for a device that knows its link: a thousand of them then send 7 MB a second
ROUND_S = 30.0  # then a round without all answers is over
SOONEST_S, LATEST_S = 60.0, 3600.0  # between two series; twice as long each time
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

    def is_no_worse(self, other: Estimate) -> bool:
        """Whether no figure is worse by more than ``ALIKE_FACTOR``."""
        is_as_near = self.latency_s <= ALIKE_FACTOR * other.latency_s
        return is_as_near and ALIKE_FACTOR * self.bandwidth_bits_per_s >= other.bandwidth_bits_per_s


class LinkProbe:
    """Measures the link of each new data connection, and again later, with messages to the device's own ``topic``."""

    def __init__(self, config: AgentConfig, topic: str, publish: Callable[[Outgoing], None]) -> None:
        self._topic = topic
        self._publish = publish
        self._stated = config.model_dump(include=set(Estimate.__dataclass_fields__), exclude_none=True)
        self._announced: Estimate | None = None
        self._session: int | None = None  # of the connection that is being measured; marks the messages
        self._round = 0  # of the series; counts those that are over
        self._series = 0  # of this connection
        self._is_under_way = False
        self._next_s = math.inf  # when the next round begins, or the present one is over
        self._sent_s = 0.0
        self._small_s: list[float] = []  # of the present round
        self._large_s: list[float] = []
        self._least_small_s = self._least_large_s = math.inf  # of the series

    def begin(self, session: int, now_s: float) -> None:
        """Measure a new connection soon, unless the operator stated all values."""
        if len(self._stated) < len(Estimate.__dataclass_fields__):
            self._session, self._series = session, 0
            self._begin_series(now_s, SPREAD_S if self._announced else FIRST_S)

    def on_tick(self, now_s: float) -> None:
        """Begin the next round when its time has come; to be called often."""
        if self._session is None or now_s < self._next_s:
            return
        if self._is_under_way:  # messages were lost
            self._end_round(now_s)
            return
        self._is_under_way, self._next_s = True, now_s + ROUND_S
        self._small_s, self._large_s = [], []
        self._send(now_s)

    def on_echo(self, payload: bytes, heard_s: float, now_s: float, profile: DeviceProfile) -> DeviceProfile | None:
        """The profile to announce after a message came back at ``heard_s``; the next message goes at ``now_s``.

        None while the measurement goes on, and when it gives nothing new.
        """
        if not self._is_under_way or not payload.startswith(self._head()):
            return None
        took_s = max(0.0, heard_s - self._sent_s)
        (self._small_s if len(self._small_s) < SMALL else self._large_s).append(took_s)
        if len(self._large_s) < LARGE and not (self._large_s and took_s > SLOW_S):
            self._send(now_s)
            return None
        self._least_small_s = min(self._least_small_s, *self._small_s)
        self._least_large_s = min(self._least_large_s, *self._large_s)
        small_s, large_s = self._least_small_s, self._least_large_s
        transfer_s = max(large_s - small_s, MIN_TRANSFER_S)  # up, and down again
        estimate = Estimate(small_s / 2, 2 * 8 * LARGE_BYTES / transfer_s)
        is_last = self._end_round(now_s)
        if (
            large_s < small_s / ALIKE_FACTOR
        ):  # a jam ended meanwhile: only the large messages had the link to themselves
            is_news = False
        elif self._announced is None:
            is_news = is_last
        else:
            is_news = not estimate.resembles(self._announced) and (is_last or estimate.is_no_worse(self._announced))
        if not is_news:
            return None
        self._announced = estimate
        return profile.model_copy(update=asdict(estimate) | self._stated)

    def _begin_series(self, now_s: float, within_s: float) -> None:
        self._round, self._is_under_way = 0, False
        self._least_small_s = self._least_large_s = math.inf
        self._next_s = now_s + within_s * self._chance()

    def _end_round(self, now_s: float) -> bool:
        """Set the time of the next round; returns whether this was the last one of its series."""
        self._round, self._is_under_way = self._round + 1, False
        if self._round < ROUNDS:
            gap_s = GAP_S if self._announced else FIRST_GAP_S
            self._next_s = now_s + gap_s * (1 + self._chance()) / 2
            return False
        pause_s = min(LATEST_S, SOONEST_S * 2**self._series)
        self._series += 1
        self._begin_series(now_s + pause_s / 2, pause_s / 2)
        return True

    def _chance(self) -> float:
        """A number from 0 to 1 that differs between devices, connections and rounds."""
        seed = f"{self._topic} {self._session} {self._series} {self._round}".encode()
        return int.from_bytes(hashlib.sha256(seed).digest()[:4], "big") / 2**32

    def _head(self) -> bytes:
        sent = len(self._small_s) + len(self._large_s)
        return f"{self._session}-{self._series}-{self._round}-{sent} ".encode()

    def _send(self, now_s: float) -> None:
        self._sent_s = now_s
        payload = self._head() if len(self._small_s) < SMALL else self._head().ljust(LARGE_BYTES, b".")
        try:
            self._publish(Outgoing(self._topic, payload, qos=0))
        except (TransportError, LocalProtocolError) as error:  # the assumed values stay
            log.info("link_not_measured", reason=str(error) or type(error).__name__)
