"""The sentence of each failure that no real broker in the tests gives, and whether further attempts can help."""

from __future__ import annotations

import errno
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker.transport import failures
from broker.transport.connection import Connection

PLAIN = Connection("gw", 1883, user="cam", password="s3cret")  # noqa: S106 - of a test
SECURE = Connection("gw", 8883, tls=True, ca=Path("ca.pem"), cert=Path("own.pem"))
NOW = datetime(2026, 11, 27, 0, 5, tzinfo=UTC)


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


def certificate(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, message)
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("error", "sentence", "cause"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "the name gw isn't known", "lost"),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "no name server answers", "lost"),
        (ConnectionRefusedError(), "nothing listens at gw:1883", "absent"),
        (TimeoutError(), "nothing answers at gw:1883 in time", "absent"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "gw:1883 can't be reached: No route to host", "absent"),
        (OSError(errno.EACCES, "Permission denied"), "can't reach the broker at gw:1883: Permission denied", "lost"),
    ],
)
def test_an_error_of_the_network(error: OSError, sentence: str, cause: str) -> None:
    found = failures.of_system(PLAIN, error)
    assert sentence in found.reason
    assert found.cause == cause


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (tls("TLSV1_ALERT_UNKNOWN_CA"), "refuses this client's certificate own.pem: take one that its CA has signed"),
        (tls("SSLV3_ALERT_CERTIFICATE_REVOKED"), "refuses this client's certificate own.pem"),
        (tls("SSLV3_ALERT_CERTIFICATE_EXPIRED"), "own.pem: it has expired, by the broker's clock"),
        (tls("SSLV3_ALERT_HANDSHAKE_FAILURE"), "refuses this client's certificate own.pem"),
        (tls("TLSV1_ALERT_PROTOCOL_VERSION"), "has no version of TLS from 1.2 on"),
        (tls("UNSUPPORTED_PROTOCOL"), "has no version of TLS from 1.2 on"),
        (tls("WRONG_VERSION_NUMBER"), "the port 8883 of gw has no TLS"),
        (
            certificate(10, "certificate has expired"),
            "has expired, by this machine's clock, which says 2026-11-27 00:05",
        ),
        (
            certificate(9, "certificate is not yet valid"),
            "isn't valid yet, by this machine's clock, which says 2026-11",
        ),
        (certificate(62, "Hostname mismatch"), "isn't for gw: use a name that it has"),
        (certificate(18, "self-signed certificate"), "is self-signed, and not one of the CA in ca.pem"),
        (certificate(20, "unable to get local issuer certificate"), "is signed by an unknown authority"),
        (certificate(66, "EE certificate key too weak"), "isn't valid: EE certificate key too weak"),
    ],
)
def test_an_error_of_tls(error: ssl.SSLError, sentence: str) -> None:
    found = failures.of_tls(SECURE, error, NOW)
    assert sentence in found.reason
    assert found.cause == "refused"


@pytest.mark.parametrize(
    ("code", "text", "sentence", "cause"),
    [
        (0x84, "Unsupported protocol version", "doesn't speak MQTT 5", "refused"),
        (0x85, "Client identifier not valid", "it doesn't take the client id cam-1", "refused"),
        (0x86, "Bad user name or password", "it doesn't take the user cam with this password", "refused"),
        (0x87, "Not authorized", "or not with the client id cam-1", "refused"),
        (0x88, "Server unavailable", "refused the connection: Server unavailable", "lost"),
        (0x8A, "Banned", "refused the connection: Banned", "refused"),
        (0x9A, "Retain not supported", "refused the connection: Retain not supported", "refused"),
    ],
)
def test_a_refusal(code: int, text: str, sentence: str, cause: str) -> None:
    found = failures.of_refusal(PLAIN, "cam-1", code, text)
    assert sentence in found.reason
    assert found.cause == cause
    assert "s3cret" not in found.reason


def test_an_end_without_a_word_names_what_may_be_the_cause() -> None:
    assert "it may be overloaded" in failures.of_end(PLAIN).reason
    assert "it may refuse the client certificate" in failures.of_end(SECURE).reason
    assert "it may want a client certificate" in failures.of_end(Connection(tls=True)).reason
