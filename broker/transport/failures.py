"""The reason why a connection to a broker failed: what a person reads, and whether the next attempt can do better.

Owns these sentences. Doesn't open connections. No sentence contains a secret, nor bytes that a stranger sent.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from broker.transport.connection import Connection
from broker.transport.port import Cause

CONNACK = b"\x20"  # the first byte of a broker's answer
_SELF_SIGNED, _NO_ISSUER = 18, {2, 19, 20, 21, 27}  # of OpenSSL's X509_V_ERR numbers
_NOT_YET, _EXPIRED, _OTHER_NAME = 9, 10, {62, 64}
_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")
_REFUSES_CERTIFICATE = (
    "BAD_CERTIFICATE",
    "UNKNOWN_CA",
    "CERTIFICATE_UNKNOWN",
    "UNSUPPORTED_CERTIFICATE",
    "REVOKED",
    "CERTIFICATE_EXPIRED",
)
_OTHER_VERSION = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS", "INSUFFICIENT", "NO_SHARED_CIPHER")
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH", "UNEXPECTED_MESSAGE", "RECORD")
_PROTOCOL = {1, 0x84}  # 1: a broker of MQTT 3
_LOGIN = {4, 5, 0x86, 0x87, 0x8C}
_CLIENT_ID = {2, 0x85}
_BUSY = {3, 0x88, 0x89, 0x97, 0x9F}  # the next attempt may succeed


@dataclass(frozen=True)
class Failure:
    """The reason of a person and of a program for having no connection."""

    reason: str
    cause: Cause = "lost"


class ConnectionFailed(Exception):
    """An attempt to connect failed for a known reason."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.reason)


def of_system(connection: Connection, error: OSError) -> Failure:
    """The failure by an error of the network."""
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return Failure(f"the name {connection.host} can't be looked up now: no name server answers")
        return Failure(f"the name {connection.host} isn't known: check its spelling, or write the broker's IP address")
    if isinstance(error, ConnectionRefusedError):
        return Failure(f"nothing listens at {connection} (connection refused)", "absent")
    if isinstance(error, TimeoutError):
        return Failure(f"nothing answers at {connection} in time: check address, network and firewall", "absent")
    if error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}:
        return Failure(f"{connection} can't be reached: {error.strerror}", "absent")
    return Failure(f"can't reach the broker at {connection}: {error.strerror or error}")


def of_tls(connection: Connection, error: ssl.SSLError, now: datetime | None = None) -> Failure:
    """The failure by an error of TLS, in the handshake or after it: the broker judges a client's certificate later."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failure(_of_certificate(connection, error, now or datetime.now(UTC)), "refused")
    name, broker = (error.reason or "").upper(), f"the broker at {connection}"
    if any(part in name for part in _WANTS_CERTIFICATE) and connection.cert is None:
        return Failure(f"{broker} wants a certificate of this client: name one, and its key (cert, key)", "refused")
    if any(part in name for part in (*_REFUSES_CERTIFICATE, *_WANTS_CERTIFICATE)):
        why = "it has expired, by the broker's clock" if "EXPIRED" in name else "take one that its CA has signed"
        reason = f"{broker} refuses this client's certificate {connection.cert}: {why}"
        return Failure(f"{reason} ({error.reason})", "refused")
    if any(part in name for part in _OTHER_VERSION):
        return Failure(f"{broker} has no version of TLS from 1.2 on ({error.reason})", "refused")
    if any(part in name for part in _NO_TLS):
        return without_tls(connection)
    return Failure(f"TLS with {broker} failed: {error.reason or error.strerror or error}")


def of_answer(connection: Connection, first: bytes) -> Failure:
    """The failure by the first byte that came instead of an MQTT broker's."""
    if not connection.tls and first in {b"\x15", b"\x16"}:
        return with_tls(connection)
    if first == b"H":
        reason = f"a web server answers at {connection}, or a broker's port for WebSockets: name the port for MQTT"
        return Failure(reason, "refused")
    return Failure(f"what answers at {connection} isn't an MQTT broker: check host and port", "refused")


def of_refusal(connection: Connection, client_id: str, code: int, text: str) -> Failure:
    """The failure by a broker's reason code; the text is the code's name."""
    refused = f"the broker at {connection} refused the connection: {text}"
    if code in _PROTOCOL:
        reason = (
            f"the broker at {connection} doesn't speak MQTT 5 at this port: name its port for MQTT 5 (of `s2m3 broker` "
            "the first one that it prints), or use a broker that does, such as Mosquitto from 2.0 on"
        )
        return Failure(f"{reason} ({text})", "refused")
    if code in _LOGIN and connection.user is None:
        return Failure(f"{refused}; it wants a login: name a user and a password file", "refused")
    if code in _LOGIN:
        login = f"the user {connection.user} with this password" if connection.password else f"user {connection.user}"
        return Failure(f"{refused}; it doesn't take {login}, or not with the client id {client_id}", "refused")
    if code in _CLIENT_ID:
        return Failure(f"{refused}; it doesn't take the client id {client_id}", "refused")
    return Failure(refused, "lost" if code in _BUSY else "refused")


def of_lacks(connection: Connection, missing: Sequence[str]) -> Failure:
    """The failure of a broker that says that it lacks what a site needs."""
    reason = f"the broker at {connection} has no {' and no '.join(missing)}, by its own word, and a site needs them"
    return Failure(f"{reason}: set it up otherwise, or use another broker, such as Mosquitto", "refused")


def of_silence(connection: Connection) -> Failure:
    """The failure of a peer that accepts the connection and says nothing."""
    reason = f"{connection} accepts connections, and doesn't answer in time: it may be no MQTT broker, or be overloaded"
    return Failure(reason, "absent")


def of_end(connection: Connection) -> Failure:
    """The failure of a peer that ended the connection without an answer, and isn't known to be wrong about TLS."""
    hint = "it may be overloaded"
    if connection.tls:
        hint = "it may want a client certificate" if connection.cert is None else "it may refuse the client certificate"
        hint += ", have all the connections that it takes"
    return Failure(f"{connection} ended the connection without an answer: {hint}, or be no MQTT broker")


def with_tls(connection: Connection) -> Failure:
    """The failure of a plain connection to a port for TLS."""
    return Failure(f"the port {connection.port} of {connection.host} is for TLS: write mqtts://{connection}", "refused")


def without_tls(connection: Connection) -> Failure:
    """The failure of TLS with a port that has none."""
    reason = f"the port {connection.port} of {connection.host} has no TLS: name the broker's TLS port (often 8883)"
    return Failure(f"{reason}, or write mqtt://{connection} for a connection in plain text", "refused")


def _of_certificate(connection: Connection, error: ssl.SSLCertVerificationError, now: datetime) -> str:
    code, subject = error.verify_code, f"the certificate of the broker at {connection}"
    clock = f"by this machine's clock, which says {now:%Y-%m-%d %H:%M} UTC"
    if code == _EXPIRED:
        return f"{subject} has expired, {clock}: renew it, or set the clock"
    if code == _NOT_YET:
        return f"{subject} isn't valid yet, {clock}: set the clock"
    if code in _OTHER_NAME:
        name = connection.server_name or connection.host
        return f"{subject} isn't for {name}: use a name that it has, or have it signed for this one"
    signers = f"the CA in {connection.ca}" if connection.ca else "this system's CAs; name the site's own (ca)"
    if code == _SELF_SIGNED:
        return f"{subject} is self-signed, and not one of {signers}"
    if code in _NO_ISSUER:
        return f"{subject} is signed by an unknown authority, not by {signers}"
    return f"{subject} isn't valid: {error.verify_message}"
