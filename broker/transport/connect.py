"""The choice of the transport: the only product file that names an implementation of the port."""

from __future__ import annotations

import uuid

from broker.protocol.client_ids import client_id as client_id_of
from broker.transport.paho import MqttTransport
from broker.transport.port import MAX_PACKET_BYTES, Inbox, Transport, WillFor


def connect(
    url: str,
    *,
    client_id: str,
    inbox: Inbox,
    will: WillFor | None = None,
    max_packet_bytes: int = MAX_PACKET_BYTES,
    gather_s: float = 0.0,
) -> Transport:
    """A transport to the broker at ``url``, not yet started (see ``MakeTransport``).

    Raises:
        BadFile: the url is not valid.
    """
    return MqttTransport(
        url=url, client_id=client_id, inbox=inbox, will=will, max_packet_bytes=max_packet_bytes, gather_s=gather_s
    )


def new_client_id(site: str | None = None) -> str:
    """The client id of a command's or a client's connection; no other connection has it."""
    return client_id_of("clients", uuid.uuid4().hex[:12], site=site)
