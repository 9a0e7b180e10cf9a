"""The port over MQTT 5, with or without TLS: one connection after the other (``link``), as long as it is wanted.

Owns one network thread. Other threads leave work for it and wake it; a small message they write themselves while it
waits. Doesn't know what the messages mean.

Invariants, each against a trap that was measured:
- A message's size is checked before it is accepted, against the broker's limit and our own; the client checks neither.
- The network thread calls the inbox and catches its exceptions: they would end the client's own thread, unnoticed.
- Each attempt uses the password and the certificates that the files hold then: new ones need no restart.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from broker.protocol.errors import NotConnected, TransportError
from broker.structured_log import structlog
from broker.transport import failures, port
from broker.transport.connection import Connection
from broker.transport.dial import Dialer
from broker.transport.failures import ConnectionFailed, Failure
from broker.transport.filters import Filters
from broker.transport.gathering import Gathering
from broker.transport.id_takeover import TakeoverWatch
from broker.transport.link import CLOSE_S, TOGETHER_BYTES, Link
from broker.transport.mqtt_client import guarded
from broker.transport.outbox import Outbox
from broker.transport.port import LONGEST_RETRY_S, MAX_PACKET_BYTES, Inbox, Outgoing, WillFor
from broker.transport.wakeup import Wakeup

MAX_QUEUED = 1_000  # messages
MAX_QUEUED_BYTES = 64 * 1024 * 1024
RESERVE = 20_000  # small lasting messages beyond these: twice what the broker keeps for a client, 12 MB of refusals
FIRST_RETRY_S = 0.1
MOST_WRITTEN_NOW = 256 * 1024  # bytes of a packet; a larger one would take its publisher more time than it saves

_log = structlog.get_logger(__name__)


class MqttTransport:
    """A connection to an MQTT 5 broker that restores itself (see ``Transport`` and ``MakeTransport``).

    Messages without an acknowledgement are dropped when the connection ends, except lasting ones: their senders retry.
    ``LinkDown`` also comes before the first connection, once for each new reason. A retained message may arrive ahead
    of ``LinkUp``. No event comes after ``close``.

    Args:
        keepalive_s: the broker publishes the will after 1.5 times this without activity.
        max_packet_bytes: larger messages are refused, outgoing and incoming.
        max_queued: messages that may wait to be written or acknowledged; small lasting ones have ``RESERVE`` more.
        max_queued_bytes: their bytes; a single message may have more.
        gather_s: QoS 0 messages that arrive faster one after the other are read together.
        sees_retain: see ``MakeTransport``.

    Raises:
        BadFile: a file of certificates can't be used.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        client_id: str,
        inbox: Inbox,
        will: WillFor | None = None,
        keepalive_s: int = 3,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        max_queued: int = MAX_QUEUED,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        gather_s: float = 0.0,
        sees_retain: bool = False,
    ) -> None:
        self._connection = connection
        self._client_id = client_id
        self._log = _log.bind(client_id=client_id, broker=str(connection))
        self._gathering = Gathering(guarded(inbox, self._log), gather_s)
        self._will = will
        self._keepalive_s = keepalive_s
        self._max_packet_bytes = max_packet_bytes
        self._outbox = Outbox(max_messages=max_queued, max_bytes=max_queued_bytes, reserve=RESERVE)
        self._filters = Filters()
        self._sees_retain = sees_retain
        self._dialer = Dialer(connection, float(keepalive_s))
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards the fields below
        self._thread: threading.Thread | None = None
        self._wakeup: Wakeup | None = None  # wakes the network thread
        self._link: Link | None = None  # the present connection
        self._holding: int | None = None  # the thread that is in ``together``
        self._held_bytes = 0  # of its messages since then that nobody was asked to write

    # --- any thread ---

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._outbox.is_open

    def start(self) -> None:
        """Begin to connect, and reconnect until ``close``; returns at once, or raises TransportError once closed."""
        with self._lock:
            if self._closing.is_set():
                raise TransportError("this transport was closed: make a new one")
            if self._thread is None:
                self._wakeup = Wakeup()
                self._thread = threading.Thread(target=self._run, name=f"mqtt[{self._client_id}]", daemon=True)
                self._thread.start()

    def publish(self, message: Outgoing) -> None:
        """Hand a message to the broker without waiting; raises as ``Outbox.put``."""
        if self._closing.is_set():
            raise NotConnected(f"this transport was closed, so {message.topic} was not published")
        self._outbox.put(message)
        if message.packet_bytes > MOST_WRITTEN_NOW:
            self._wake()
        elif self._holding == threading.get_ident():
            self._held_bytes += message.packet_bytes
            if self._held_bytes > TOGETHER_BYTES:
                self._held_bytes = 0
                self._write()
        else:
            self._write()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hold the small messages that this thread publishes meanwhile, some 64 KiB at most; write them together."""
        self._holding = threading.get_ident()
        try:
            yield
        finally:
            self._holding, held_bytes, self._held_bytes = None, self._held_bytes, 0
            if held_bytes:
                self._write()

    def _write(self) -> None:
        link = self._link
        if link is None or not link.write_now():
            self._wake()

    def subscribe(self, *filters: str, confirm: bool = False) -> None:
        """Add filters, QoS 1; they are remembered and subscribed again at each connection."""
        self._filters.add(filters, confirm=confirm)
        self._wake()

    def unsubscribe(self, *filters: str) -> None:
        """Remove filters."""
        self._filters.remove(filters)
        self._wake()

    def close(self) -> None:
        """Send the accepted messages, disconnect without the will, and stop. Safe to call twice."""
        with self._lock:
            self._closing.set()
            thread = self._thread
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_S + 2 * self._keepalive_s)

    def _wake(self) -> None:
        with self._lock:
            if self._wakeup is not None:
                self._wakeup.notify()

    # --- the network thread ---

    def _run(self) -> None:
        failed = 0  # attempts in a row
        reported: str | None = None  # the last reported reason why there is no connection
        watch = TakeoverWatch(self._client_id)
        while not self._closing.is_set():
            began_s = time.monotonic()
            link, failure = self._connect_once()
            if self._closing.is_set():
                break
            was_up = link is not None and link.up
            lasted_s = time.monotonic() - began_s if was_up else None
            seen = watch.on_end(lasted_s=lasted_s, has_reason=link is None or link.has_reason)
            if link is not None and link.taken_over:
                seen = watch.taken_over()
            reason = f"{failure.reason}; {seen}" if seen else failure.reason
            if was_up or reason != reported:
                self._log.warning("no connection to the broker", reason=reason)
                self._gathering.emit(port.LinkDown(reason, "taken" if seen else failure.cause))
                reported = reason
            # Short connections are failures: two clients with one id, which end each other's, must slow down.
            failed = 0 if was_up and time.monotonic() - began_s > LONGEST_RETRY_S else failed + 1
            longest_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**failed)
            self._closing.wait(longest_s * (1 + secrets.randbelow(1000) / 1000) / 2)
        with self._lock:
            if self._wakeup is not None:
                self._wakeup.close()
            self._wakeup = None

    def _connect_once(self) -> tuple[Link | None, Failure]:
        """Run one connection to its end; returns it, if there was one, and why it ended."""
        connection, wakeup = self._connection.renewed(), self._wakeup
        if wakeup is None:
            return None, Failure("this transport was closed")
        link: Link | None = None
        try:
            link = self._link = Link(
                connection,
                dialer=self._dialer,
                client_id=self._client_id,
                outbox=self._outbox,
                filters=self._filters,
                emit=self._gathering.emit,
                max_packet_bytes=self._max_packet_bytes,
                sees_retain=self._sees_retain,
                log=self._log,
            )
            will = self._will(link.session) if self._will else None
            failure = link.run(
                keepalive_s=self._keepalive_s,
                will=will,
                wakeup=wakeup,
                gathering=self._gathering,
                closing=self._closing,
            )
        except ConnectionFailed as error:
            failure = error.failure
        except OSError as error:
            failure = failures.of_system(connection, error)
        except Exception as error:  # noqa: BLE001 - the thread must survive any error and reconnect
            self._log.warning("an error of ours ended the connection", exc_info=error)
            failure = Failure(f"{type(error).__name__}: {error}")
        finally:
            self._link = None
            self._outbox.close()
        return link, failure
