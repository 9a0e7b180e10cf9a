"""The retained messages of a broker, read or written over a connection of its own, which ends afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from broker.protocol.errors import BrokerRefused, NotConnected
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection
from broker.transport.mailbox import Mailbox
from broker.transport.port import (
    MAX_CONTROL_PACKET_BYTES,
    Acknowledged,
    Delivery,
    Denied,
    LinkDown,
    LinkEvent,
    LinkUp,
    Outgoing,
    Transport,
)

CONNECT_S = 20.0  # longer than an attempt takes; it ends with a reason before
KNOWN_S = 1.0  # retained messages arrive within milliseconds
CONFIRM_S = 5.0


def read_retained(connection: Connection, filter_: str, *, client_id: str | None = None) -> dict[str, bytes]:
    """The retained messages of a filter, by topic.

    Raises:
        NotConnected: the broker can't be reached.
        BrokerRefused: it refuses the subscription.
    """
    found: dict[str, bytes] = {}
    with _connected(connection, client_id, filter_) as (_, mailbox):
        for event in _events(mailbox, KNOWN_S):
            if isinstance(event, Delivery) and event.payload:
                found[event.topic] = event.payload
    return found


def write_retained(connection: Connection, messages: Mapping[str, bytes], *, client_id: str | None) -> None:
    """Publish retained messages, or clear those with an empty payload.

    Raises:
        NotConnected: the broker can't be reached, or doesn't confirm a message.
        BrokerRefused: it refuses a message.
    """
    with _connected(connection, client_id) as (transport, mailbox):
        for topic, payload in messages.items():
            transport.publish(Outgoing(topic, payload, retain=True, token=topic, confirm=True))
            if not any(isinstance(event, Acknowledged) for event in _events(mailbox, CONFIRM_S)):
                raise NotConnected(f"the broker did not confirm {topic}: try again")


@contextmanager
def _connected(
    connection: Connection, client_id: str | None, *filters: str
) -> Iterator[tuple[Transport, Mailbox[LinkEvent]]]:
    mailbox: Mailbox[LinkEvent] = Mailbox()

    def put(event: LinkEvent) -> None:
        mailbox.put_control(event, len(event.payload) if isinstance(event, Delivery) else 0)

    bound = client_id or client_id_for(connection)
    transport = connect(connection, client_id=bound, inbox=put, max_packet_bytes=MAX_CONTROL_PACKET_BYTES)
    transport.subscribe(*filters)
    transport.start()
    try:
        if not any(isinstance(event, LinkUp) for event in _events(mailbox, CONNECT_S)):
            raise NotConnected(f"no broker answers at {connection.url} within {CONNECT_S:g} s", is_absent=True)
        yield transport, mailbox
    finally:
        transport.close()


def _events(mailbox: Mailbox[LinkEvent], for_s: float) -> Iterator[LinkEvent]:
    """The events of this time; raises what ends the connection, or forbids its use."""
    until_s = time.monotonic() + for_s
    while (left_s := until_s - time.monotonic()) > 0:
        event = mailbox.get(left_s)
        if isinstance(event, LinkDown):
            raise NotConnected(event.reason, is_absent=event.cause == "absent")
        if isinstance(event, Denied):
            raise BrokerRefused(event.topic, event.reason)
        if event is not None:
            yield event
