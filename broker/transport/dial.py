"""Opening a connection: TCP and TLS within a time, and certificates that may be renewed without a restart.

Owns sockets until MQTT takes them, and the files of certificates. Of MQTT it knows only CONNECT, with which it finds
out what a silent peer is.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from pathlib import Path

from broker.protocol.errors import BadFile
from broker.structured_log import structlog
from broker.transport import failures
from broker.transport.connection import Connection
from broker.transport.failures import ConnectionFailed, Failure

HANDSHAKE_S = 10.0  # a broker to which a thousand clients come back at once takes its time
_LOOK_S = 2.0  # for what a silent peer is
_CONNECT = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00"  # of MQTT 5, without a login

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux only

_log = structlog.get_logger(__name__)


def acknowledge_now(sock: socket.socket) -> None:
    """Let the kernel acknowledge at once what was read, where it can be asked to; it forgets this soon."""
    if _QUICKACK is not None:
        with contextlib.suppress(OSError):  # the connection has ended: the next read says so
            sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


class Dialer:
    """Opens connections to one broker.

    Raises:
        BadFile: a file of certificates can't be used.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection, self._timeout_s = connection, timeout_s
        self._context = context_of(connection)
        self._files = self._state_of_files()

    def open(self) -> socket.socket:
        """A connected socket that doesn't block, with TLS where the address says so.

        Raises:
            ConnectionFailed: it can't be opened.
        """
        try:
            sock = socket.create_connection((self._connection.host, self._connection.port), self._timeout_s)
        except OSError as error:
            raise ConnectionFailed(failures.of_system(self._connection, error)) from error
        except UnicodeError as error:  # a label of the name is empty or too long
            raise ConnectionFailed(Failure(f"{self._connection.host!r} is not a valid host name", "refused")) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        if self._context is None:
            return sock
        self._reload()
        try:
            return _handshake(sock, self._context, self._connection.server_name or self._connection.host, HANDSHAKE_S)
        except TimeoutError as error:
            raise ConnectionFailed(self.explain_end(is_silent=True)) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as error:
            raise ConnectionFailed(self.explain_end()) from error
        except ssl.SSLError as error:
            raise ConnectionFailed(failures.of_tls(self._connection, error)) from error
        except OSError as error:
            raise ConnectionFailed(failures.of_system(self._connection, error)) from error

    def explain_end(self, *, is_silent: bool = False) -> Failure:
        """The reason why a peer says nothing, or ended a connection without a word.

        It connects once more, without a login, to see whether the peer speaks TLS, or MQTT.
        """
        if self._connection.tls and self._answers_plain():
            return failures.without_tls(self._connection)
        if not self._connection.tls and self._answers_tls():
            return failures.with_tls(self._connection)
        return failures.of_silence(self._connection) if is_silent else failures.of_end(self._connection)

    def _answers_plain(self) -> bool:
        with contextlib.suppress(OSError), self._look() as sock:
            sock.sendall(_CONNECT)
            return sock.recv(1) == failures.CONNACK
        return False

    def _answers_tls(self) -> bool:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # for a look, without a login: it trusts nobody with anything
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with self._look() as sock:
                sock.setblocking(False)
                _handshake(sock, context, self._connection.host, _LOOK_S).close()
        except ssl.SSLEOFError:
            return False
        except ssl.SSLError as error:
            return "ALERT" in (error.reason or "").upper()  # it speaks TLS, and wants something else
        except OSError:
            return False
        return True

    def _look(self) -> socket.socket:
        return socket.create_connection((self._connection.host, self._connection.port), _LOOK_S)

    def _reload(self) -> None:
        """Read the certificates again if a file has changed; if the new ones can't be used, the known ones stay."""
        state = self._state_of_files()
        if state == self._files:
            return
        self._files = state
        try:
            self._context = context_of(self._connection)
        except BadFile as error:
            _log.warning("certificates_not_read_again", reason=str(error))

    def _state_of_files(self) -> list[tuple[int, int, int]]:
        states = []
        for path in (self._connection.ca, self._connection.cert, self._connection.key):
            with contextlib.suppress(OSError):
                if path is not None:
                    state = path.stat()
                    states.append((state.st_ino, state.st_size, state.st_mtime_ns))
        return states


def _handshake(sock: socket.socket, context: ssl.SSLContext, host: str, limit_s: float) -> ssl.SSLSocket:
    """The socket with TLS; whatever goes wrong, or takes longer, closes it."""
    until_s = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        stack.enter_context(sock)
        secured = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        stack.enter_context(secured)
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            else:
                stack.pop_all()
                return secured
            poll = select.poll()
            poll.register(secured, wanted)
            if not poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
                raise TimeoutError


def context_of(connection: Connection) -> ssl.SSLContext | None:
    """The certificates and rules of TLS: 1.2 or newer, the broker's name is checked; None without TLS.

    Raises:
        BadFile: a file can't be used.
    """
    if not connection.tls:
        return None
    if connection.ca is not None:
        _read(connection.ca, "CA file", b"-----BEGIN CERTIFICATE-----")
    try:
        context = ssl.create_default_context(cafile=connection.ca)
    except ssl.SSLError as error:
        raise _bad(connection.ca, "the CA file holds a damaged certificate", "fetch the file again") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The same on all versions of Python: a home-made CA may lack what only 3.13 wants, and may be the broker's own.
    context.verify_flags = (context.verify_flags & ~ssl.VERIFY_X509_STRICT) | ssl.VERIFY_X509_PARTIAL_CHAIN
    if connection.cert is not None:
        load_certificate(context, connection.cert, connection.key or connection.cert)
    return context


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Load a certificate and its key into a context; raises BadFile when they can't be used."""
    _read(cert, "certificate", b"-----BEGIN CERTIFICATE-----")
    if b"ENCRYPTED" in _read(key, "key", b"PRIVATE KEY-----"):
        fix = f"store it without one, readable by this user only: openssl pkey -in {key} -out NEW"
        raise _bad(key, "the key has a passphrase, which nobody is here to type", fix)
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")  # or OpenSSL would wait for a person
    except ssl.SSLError as error:
        reason = (error.reason or "").upper()
        if "TOO_SMALL" in reason or "TOO_WEAK" in reason:
            fix = "have it issued with SHA-256 and a key of EC, or of RSA with 2048 bits"
            raise _bad(cert, f"the certificate is too weak for this system's OpenSSL ({error.reason})", fix) from error
        if "MISMATCH" in reason or "NO_CERTIFICATE_ASSIGNED" in reason:  # the latter: the key is of another kind
            raise _bad(
                key, f"the key isn't that of the certificate {cert}", "name the two that belong together"
            ) from error
        raise _bad(cert, f"the certificate or its key {key} is damaged", "fetch both again") from error


def _bad(path: Path | None, problem: str, fix: str) -> BadFile:
    return BadFile(file=str(path), problem=problem, fix=fix)


def _read(path: Path, what: str, sign: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = f"the {what} can't be read: {error.strerror or error}"
        raise _bad(path, problem, "name a file that this user can read") from error
    if sign not in content:
        raise _bad(path, f"the {what} holds no line with {sign.decode()}", "name a PEM file")
    return content
