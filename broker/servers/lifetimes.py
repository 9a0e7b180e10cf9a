"""The ends of the certificates of a connection: the authority's, the client's, and the one that the broker presents.

Owns the warning before an end. Reads files, and asks the broker for its certificate over a connection of its own.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.protocol.sizes import show_count
from broker.servers.certificates import day, ends_of
from broker.transport.connection import Connection

WARN_BEFORE = timedelta(days=30)
LOOK_S = 5.0
_REMEDIES = {
    "authority": "set up the site's broker again with `s2m3 broker init`, and copy the new folders to all boxes",
    "client": "on the broker's machine run `s2m3 broker rotate DIR NAME`, and copy the new folder to this box",
    "broker": "on the broker's machine run `s2m3 broker rotate DIR --broker-certificate`, and reload Mosquitto",
}


@dataclass(frozen=True)
class Lifetime:
    """The end of a certificate, and its owner: the authority, the client or the broker."""

    owner: str
    ends: datetime

    def warning(self, now: datetime) -> str | None:
        """The sentence that says when it ends and what to do; None if that isn't soon."""
        left = self.ends - now
        if left > WARN_BEFORE:
            return None
        when = (
            f"ends on {day(self.ends)}, in {show_count(left.days, 'day')}"
            if left > timedelta(0)
            else f"ended on {day(self.ends)}"
        )
        return f"the {self.owner}'s certificate {when}: {_REMEDIES[self.owner]}"


def lifetimes(connection: Connection) -> list[Lifetime]:
    """The certificates of a connection that can be read here; none without TLS."""
    return list(_lifetimes(connection)) if connection.tls else []


def _lifetimes(connection: Connection) -> Iterator[Lifetime]:
    for owner, path in (("authority", connection.ca), ("client", connection.cert)):
        if path is not None:
            with contextlib.suppress(OSError, ValueError):  # the connection itself says what it can't read
                yield Lifetime(owner, ends_of(path.read_bytes()))
    with contextlib.suppress(OSError, ValueError):
        yield Lifetime("broker", ends_of(_presented(connection).encode()))


def _presented(connection: Connection) -> str:
    """The certificate that the broker presents, as PEM. It is only read here: the real connection verifies it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if connection.cert is not None:
        context.load_cert_chain(connection.cert, connection.key)
    with (
        socket.create_connection((connection.host, connection.port), LOOK_S) as plain,
        context.wrap_socket(plain, server_hostname=connection.host) as secured,
    ):
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True) or b"")
