"""The choice of the transport: the only product file that names an implementation of the port."""

from __future__ import annotations

import uuid

from broker.protocol.client_ids import client_id as client_id_of
from broker.transport.connection import Connection
from broker.transport.dial import context_of
from broker.transport.paho import MqttTransport
from broker.transport.port import MAX_PACKET_BYTES, Inbox, Transport, WillFor


def connect(
    connection: Connection,
    *,
    client_id: str,
    inbox: Inbox,
    will: WillFor | None = None,
    max_packet_bytes: int = MAX_PACKET_BYTES,
    gather_s: float = 0.0,
    sees_retain: bool = False,
) -> Transport:
    """A transport to a broker, not yet started (see ``MakeTransport``).

    Raises:
        BadFile: a certificate, a key or the CA's file can't be used.
    """
    return MqttTransport(
        connection,
        client_id=client_id,
        inbox=inbox,
        will=will,
        max_packet_bytes=max_packet_bytes,
        gather_s=gather_s,
        sees_retain=sees_retain,
    )


def check_files(connection: Connection) -> None:
    """Read the certificates, for a program that connects only after much other work.

    Raises:
        BadFile: a certificate, a key or the CA's file can't be used.
    """
    context_of(connection)


def client_id_for(connection: Connection) -> str:
    """The client id of a command's or a client's connection: the one that it is bound to, or one of its own."""
    return connection.client_id or client_id_of("clients", uuid.uuid4().hex[:12], site=connection.site)
