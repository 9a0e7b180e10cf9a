"""The messages that the broker itself dropped, so that the agent can tell of a queue that is too small for a burst.

Owns a short connection of its own to read one figure, once this device had to refuse requests. No MQTT
message says how much a broker keeps for a client, and it acknowledges what it drops; Mosquitto publishes the number of
all dropped messages. It has a connection of its own because the embedded broker ends one that asks for such topics. An
agent with an account uses its control connection: the account allows no third one.
"""

from __future__ import annotations

import math
import threading
from contextlib import suppress

import structlog

from broker.protocol.client_ids import client_id
from broker.transport.connection import Connection
from broker.transport.port import (
    MAX_CONTROL_PACKET_BYTES,
    Delivery,
    Denied,
    LinkDown,
    LinkEvent,
    MakeTransport,
    Transport,
)

TOPIC = "$SYS/broker/publish/messages/dropped"
LISTEN_S = 25.0  # Mosquitto publishes it every ten seconds
AGAIN_S = 600.0  # between two looks
ADVICE = "raise max_queued_messages and max_queued_bytes, as in deploy/mosquitto/development.conf"

log = structlog.get_logger()


class BrokerDrops:
    """Looks how many messages the broker has dropped, in a thread of its own.

    Args:
        connection: to the broker.
        device: this device's id.
        site: its site's topic prefix, when it has one.
        make_transport: makes the connection.
        account_link: used instead where the agent has an account, which is bound to the client id of this link. The
            embedded broker has no accounts.
    """

    def __init__(
        self,
        connection: Connection,
        device: str,
        make_transport: MakeTransport,
        account_link: Transport | None = None,
    ) -> None:
        self._connection, self._device, self._make_transport = connection, device, make_transport
        self._account_link = account_link
        self._client_id = client_id("devices", device, "drops", site=connection.site)
        self._looked_s = -math.inf
        self._known = 0  # dropped messages that were logged
        self._over = threading.Event()  # the look of now

    def look(self, now_s: float) -> None:
        """Log soon how many messages the broker has dropped, if it says so; at most every ``AGAIN_S``."""
        if now_s - self._looked_s >= AGAIN_S:
            self._looked_s, self._over = now_s, threading.Event()
            threading.Thread(target=self._listen, name=f"agent[{self._device}].drops", daemon=True).start()

    def stop(self) -> None:
        """End a look that goes on."""
        self._over.set()

    def _listen(self) -> None:
        if self._account_link is not None:
            self._account_link.subscribe(TOPIC)
            self._over.wait(LISTEN_S)
            self._account_link.unsubscribe(TOPIC)
            return
        transport = self._make_transport(
            self._connection,
            client_id=self._client_id,
            inbox=self._hear,
            max_packet_bytes=MAX_CONTROL_PACKET_BYTES,
        )
        transport.subscribe(TOPIC)
        transport.start()
        self._over.wait(LISTEN_S)
        transport.close()

    def _hear(self, event: LinkEvent) -> None:
        if isinstance(event, LinkDown):
            self._over.set()
        self.hear(event)

    def hear(self, event: LinkEvent) -> bool:
        """Log the number of dropped messages if it has grown; returns whether the event is about this figure."""
        if not isinstance(event, Delivery | Denied) or event.topic != TOPIC:
            return False
        if isinstance(event, Denied):
            self._over.set()  # this account may not look
            return True
        with suppress(ValueError):
            dropped = int(event.payload)
            if dropped > self._known:
                log.warning(
                    "broker_drops_messages", device=self._device, dropped_since_its_start=dropped, advice=ADVICE
                )
                self._known = dropped
        return True
