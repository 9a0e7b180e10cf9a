"""A connection that ends as a power failure ends it: then the broker must publish its will."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence

from broker.protocol.errors import NotConnected
from broker.transport.connection import Connection
from broker.transport.dial import Dialer
from broker.transport.failures import ConnectionFailed, of_refusal, of_silence
from broker.transport.mqtt_client import Limits, MqttClient, Reason
from broker.transport.port import Outgoing
from broker.transport.publish_packet import Published

_KEEPALIVE_S = 60
_MAX_PACKET_BYTES = 64 * 1024
_ENDED = 0x80


class _Answer:
    """The broker's answer to CONNECT; nothing else of the connection concerns it."""

    def __init__(self) -> None:
        self.reason: Reason | None = None

    def on_connected(self, reason: Reason, limits: Limits) -> None:  # noqa: ARG002 - as the client calls it
        """Note the answer."""
        self.reason = reason

    def on_subscribed(self, packet: int, reasons: Sequence[Reason]) -> None:
        """Nothing is subscribed."""

    def on_published(self, packet: int, reason: Reason) -> None:
        """Nothing is published."""

    def on_delivery(self, message: Published) -> None:
        """Nothing is read."""

    def on_end(self, reason: Reason, *, by_broker: bool) -> None:
        """Nothing needs the end."""


def connect_and_crash(connection: Connection, client_id: str, will: Outgoing, timeout_s: float) -> None:
    """Connect with a will, and close the socket without a word.

    Raises:
        NotConnected: the broker can't be reached, or refused the connection.
    """
    connection, answer = connection.renewed(), _Answer()
    client = MqttClient(Dialer(connection, timeout_s), client_id, answer)
    try:
        sock = client.open(connection, keepalive_s=_KEEPALIVE_S, max_packet_bytes=_MAX_PACKET_BYTES, will=will)
        until_s = time.monotonic() + timeout_s
        while sock is not None and answer.reason is None and client.socket() is not None:
            if time.monotonic() > until_s:
                raise NotConnected(of_silence(connection).reason)
            select.select([sock], [], [], 0.0 if client.has_unseen_bytes else 0.05)
            client.loop_write()
            if client.has_bytes():
                client.loop_read()
    except ConnectionFailed as error:
        raise NotConnected(error.failure.reason) from error
    finally:
        client.close()
    reason = answer.reason or Reason(_ENDED, "it ended the connection")
    if reason.is_failure:
        raise NotConnected(of_refusal(connection, client_id, reason.code, reason.text).reason)
