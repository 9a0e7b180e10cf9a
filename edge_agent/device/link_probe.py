"""This device's link, measured at each new data connection: ``Echo`` with a clock and a transport.

Owns when a link is measured and when the outcome is news. What an operator stated is never overruled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import structlog

from broker.protocol.errors import LocalProtocolError, TransportError
from broker.protocol.messages import DeviceProfile
from broker.transport.port import Outgoing
from edge_agent.config import AgentConfig
from edge_agent.device.link_estimate import Echo, Link

log = structlog.get_logger()


class LinkMeter:
    """Measures the link to the broker.

    Args:
        config: What the operator says about it.
        topic: The device's own, for messages to itself.
        publish: Of the data connection; never waits.
        clock: Seconds, rising; the same as that of ``heard``'s times.
    """

    def __init__(
        self,
        config: AgentConfig,
        topic: str,
        publish: Callable[[Outgoing], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.topic = topic
        self._publish = publish
        self._clock = clock
        self._said = config.model_dump(include={"latency_s", "bandwidth_bits_per_s"}, exclude_none=True)
        self._echo: Echo | None = None  # while it measures
        self._measured: Link | None = None  # what was announced

    def begin(self, session: int) -> None:
        """Measure a new connection, unless the operator said all about it."""
        if len(self._said) < len(asdict(Link(0, 0))):
            self._echo = Echo(session)
            self._send(self._echo.begin(self._clock()))

    def heard(self, payload: bytes, heard_s: float, profile: DeviceProfile) -> DeviceProfile | None:
        """A message came back.

        Args:
            payload: What came.
            heard_s: When it came.
            profile: What the device says of itself by now.

        Returns:
            What it must say from now on; None while the measurement goes on, and when it brought nothing new.
        """
        if self._echo is None:
            return None
        following = self._echo.heard(payload, heard_s, self._clock())
        if following is not None:
            self._send(following)
        if (link := self._echo.link) is None:
            return None
        self._echo = None
        if self._measured is not None and link.resembles(self._measured):
            return None
        self._measured = link
        return profile.model_copy(update=asdict(link) | self._said)

    def _send(self, payload: bytes) -> None:
        try:
            self._publish(Outgoing(self.topic, payload, qos=0))
        except (TransportError, LocalProtocolError) as error:  # what is assumed of the link stays
            log.info("link_not_measured", reason=str(error) or type(error).__name__)
