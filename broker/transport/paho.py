"""The port over paho-mqtt, MQTT 5: the only file that imports the MQTT client.

Owns one network thread. Only this thread uses paho: it connects, reads, writes, pings and reconnects. Other threads
leave work and wake it. Doesn't know what the messages mean.

Invariants, each against a trap that was measured:
- Each connection has a new paho client, which resends nothing of an old session (it would resend an oversize message
  for ever). The outbox resends lasting messages.
- A message's size is checked before it is accepted, against the broker's limit and our own; paho checks neither.
- The network thread calls the inbox and catches its exceptions: they would end paho's own thread, unnoticed.
- Small packets leave at once (TCP_NODELAY). A long message counts as activity, though the ping waits behind it.
- A write that fails doesn't end the reading: a broker that ends may have sent messages before, such as wills.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from broker.protocol.errors import BadFile, NotConnected, RemoteProtocolError, TransportError
from broker.transport import port
from broker.transport.connection import Connection
from broker.transport.gathering import Gathering
from broker.transport.id_takeover import TakeoverWatch
from broker.transport.keepalive import Keepalive
from broker.transport.outbox import Outbox
from broker.transport.port import LONGEST_RETRY_S, MAX_PACKET_BYTES, Inbox, Outgoing, WillFor
from broker.transport.publish_packet import Published, read_publish
from broker.transport.wakeup import Wakeup

MAX_QUEUED = 1_000  # messages
MAX_QUEUED_BYTES = 64 * 1024 * 1024
RESERVE = 20_000  # small lasting messages beyond these: twice what the broker keeps for a client, 12 MB of refusals
MAX_IN_FLIGHT = 20  # QoS 1 messages without their PUBACK: Mosquitto's default; a CONNACK may lower it
FIRST_RETRY_S = 0.1
CLOSE_S = 5.0  # limit of the wait in close() for accepted messages
MOST_LOGGED = 200  # characters of a stranger's topic
_TICK_S = 0.25  # between two looks at the keepalive
_NO_MATCHING_SUBSCRIBERS = 0x10
_SESSION_TAKEN_OVER = 0x8E
_PINGREQ = b"\xc0\x00"
_PROPERTIES = {
    "response_topic": "ResponseTopic",
    "correlation": "CorrelationData",
    "content_type": "ContentType",
    "expiry_s": "MessageExpiryInterval",
}  # of messages: our name -> paho's

_log = structlog.get_logger(__name__)


class _Client(paho.Client):
    """A client whose failed write looks like a full send buffer: the next read that fails closes the socket.

    It reads messages in one pass (``publish_packet``) and gives them to ``on_delivery``.
    """

    is_broken = False  # whether a write has failed
    on_delivery: Callable[[Published], None]

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            found = read_publish(self._in_packet["command"], self._in_packet["packet"])
        except RemoteProtocolError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self.on_delivery(found)
        if found.qos == 0:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return self._send_puback(found.packet_id) if found.qos == 1 else MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.is_broken = True
            raise BlockingIOError from error


@dataclass(eq=False)
class _Link:
    """The state of one connection; only the network thread uses it."""

    client: _Client
    session: int
    up: bool = False  # accepted, and every filter subscribed
    reason: str = "the connection was lost"
    has_reason: bool = True  # false if the broker closed it without a word
    taken_over: bool = False  # by another client with the same id
    max_packet_bytes: int | None = None
    max_in_flight: int = MAX_IN_FLIGHT
    subscribing: dict[int, tuple[str, ...]] = field(default_factory=dict)  # packet id -> filters without a SUBACK
    sent: dict[int, Outgoing] = field(default_factory=dict)  # packet id -> not written (QoS 0) or acknowledged (QoS 1)


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
    ) -> None:
        if connection.tls:
            problem = f"{connection.url} needs TLS, which is not supported yet"
            raise BadFile(file="broker address", problem=problem, fix="write mqtt://host:port")
        self._connection = connection
        self._client_id = client_id
        self._gathering = Gathering(self._guard(inbox), gather_s)
        self._emit = self._gathering.emit
        self._will = will
        self._keepalive_s = keepalive_s
        self._max_packet_bytes = max_packet_bytes
        self._log = _log.bind(client_id=client_id, broker=str(self._connection))
        self._outbox = Outbox(max_messages=max_queued, max_bytes=max_queued_bytes, reserve=RESERVE)
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards the fields below; not held during calls of paho or the inbox
        self._filters: dict[str, None] = {}  # in the order of subscribe()
        self._accepted = False  # the broker accepted the connection: changes of the filters must be sent
        self._changes: deque[tuple[bool, tuple[str, ...]]] = deque()  # (subscribe, else unsubscribe; filters)
        self._thread: threading.Thread | None = None
        self._wakeup: Wakeup | None = None  # wakes the network thread

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
        with self._lock:
            self._wake()

    def subscribe(self, *filters: str) -> None:
        """Add filters, QoS 1; they are remembered and subscribed again at each connection."""
        with self._lock:
            new = tuple(name for name in dict.fromkeys(filters) if name not in self._filters)
            self._filters.update(dict.fromkeys(new))
            self._change(subscribe=True, filters=new)

    def unsubscribe(self, *filters: str) -> None:
        """Remove filters."""
        with self._lock:
            gone = tuple(name for name in dict.fromkeys(filters) if name in self._filters)
            for name in gone:
                del self._filters[name]
            self._change(subscribe=False, filters=gone)

    def close(self) -> None:
        """Send the accepted messages, disconnect without the will, and stop. Safe to call twice."""
        with self._lock:
            self._closing.set()
            thread = self._thread
            self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_S + 2 * self._keepalive_s)

    def _change(self, *, subscribe: bool, filters: tuple[str, ...]) -> None:
        if self._accepted and filters:
            self._changes.append((subscribe, filters))
            self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None:
            self._wakeup.notify()

    # --- the network thread ---

    def _run(self) -> None:
        failures = 0
        reported: str | None = None  # the last reported reason why there is no connection
        watch = TakeoverWatch(self._client_id)
        while not self._closing.is_set():
            began_s = time.monotonic()
            link, reason = self._connect_once()
            if self._closing.is_set():
                break
            was_up = link is not None and link.up
            lasted_s = time.monotonic() - began_s if was_up else None
            seen = watch.on_end(lasted_s=lasted_s, has_reason=link is None or link.has_reason)
            if link is not None and link.taken_over:
                seen = watch.taken_over()
            reason = f"{reason}; {seen}" if seen else reason
            if was_up or reason != reported:
                self._log.warning("no connection to the broker", reason=reason)
                self._emit(port.LinkDown(reason))
                reported = reason
            # Short connections are failures: two clients with one id, which end each other's, must slow down.
            failures = 0 if was_up and time.monotonic() - began_s > LONGEST_RETRY_S else failures + 1
            longest_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**failures)
            self._closing.wait(longest_s * (1 + secrets.randbelow(1000) / 1000) / 2)
        with self._lock:
            if self._wakeup is not None:
                self._wakeup.close()
            self._wakeup = None

    def _connect_once(self) -> tuple[_Link | None, str]:
        """Run one connection to its end; returns it, if there was one, and why it ended."""
        link: _Link | None = None
        try:
            link = self._open_link()
            self._pump(link)
        except OSError as error:
            reason = f"can't reach the broker at {self._connection}: {error.strerror or error}"
        except Exception as error:  # noqa: BLE001 - the thread must survive any error and reconnect
            self._log.warning("an error of ours ended the connection", exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = link.reason
        finally:
            self._outbox.close()
            with self._lock:
                self._accepted = False
                self._changes.clear()
            if link and (sock := link.client.socket()):
                sock.close()
        return link, reason

    def _open_link(self) -> _Link:
        client = _Client(CallbackAPIVersion.VERSION2, self._client_id, protocol=paho.MQTTv5, reconnect_on_failure=False)
        link = _Link(client, session=secrets.randbits(53))  # exact in every JSON reader
        client.connect_timeout = float(self._keepalive_s)
        client.max_inflight_messages = 0  # unlimited: ``_flush`` keeps the broker's limit
        if self._connection.user is not None:
            client.username_pw_set(self._connection.user, self._connection.password)
        if self._will is not None:
            will = self._will(link.session)
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_socket_open = self._guard(
            lambda *given: given[2].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        )
        client.on_socket_register_write = lambda *_: None  # else paho writes before publish() returns the packet id
        # paho passes the client and its user data first, and the packet's properties last
        client.on_connect = self._guard(lambda *given: self._on_connect(link, *given[3:]))
        client.on_subscribe = self._guard(lambda *given: self._on_subscribe(link, *given[2:4]))
        client.on_publish = self._guard(lambda *given: self._on_publish(link, *given[2:4]))
        client.on_disconnect = self._guard(lambda *given: _on_disconnect(link, *given[2:4]))
        client.on_delivery = self._guard(self._on_message)
        return link

    def _pump(self, link: _Link) -> None:
        """Connect, then read, write and ping until the socket is closed."""
        client, wakeup, gathering = link.client, self._wakeup, self._gathering
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = self._max_packet_bytes
        client.connect(
            self._connection.host, self._connection.port, self._keepalive_s, clean_start=True, properties=properties
        )
        sock = client.socket()
        if not isinstance(sock, socket.socket) or wakeup is None:
            return
        stuck = False  # the kernel's send buffer is full
        keepalive = Keepalive(time.monotonic(), time.monotonic())
        close_by_s = float("inf")
        while client.socket() is not None:  # a client never opens a second one
            stuck = stuck or self._flush(link)
            if self._closing.is_set():
                close_by_s = min(close_by_s, time.monotonic() + CLOSE_S)
                if self._outbox.is_empty or time.monotonic() >= close_by_s:
                    _disconnect(client)
            if client.socket() is None:
                return
            wait_s = gathering.wait_s
            readable, writable = wakeup.wait(
                sock,
                for_bytes=not wait_s,
                for_room=stuck and not client.is_broken,
                timeout_s=min(_TICK_S, wait_s or _TICK_S),
            )
            if readable:
                gathering.read(sock, client)
            stuck = stuck and not writable
            now_s = time.monotonic()
            if readable or writable:
                keepalive.active_s = now_s
            if keepalive.is_dead(now_s, client.keepalive):
                link.reason = "the broker is silent"
                return
            between_packets = client.is_connected() and not stuck and not client.want_write()
            if between_packets and keepalive.ping_due(now_s, client.keepalive):
                with contextlib.suppress(OSError):  # the next read reports it
                    sock.send(_PINGREQ)

    def _flush(self, link: _Link) -> bool:
        """Write as much as possible; returns whether the kernel's send buffer is full.

        A message enters paho only when all earlier ones are written: the outbox counts every waiting message.
        """
        client = link.client
        with self._lock:
            changes = tuple(self._changes)
            self._changes.clear()
        for subscribe, filters in changes:
            if subscribe:
                self._subscribe(link, filters)
            else:
                client.unsubscribe(list(filters))
        while True:
            if client.want_write():
                client.loop_write()
                if client.want_write():
                    return True
            if client.socket() is None or len(link.sent) >= link.max_in_flight:
                return False
            if (message := self._outbox.take()) is None:
                return False
            info = client.publish(message.topic, message.payload, message.qos, message.retain, _properties_of(message))
            link.sent[info.mid] = message

    def _subscribe(self, link: _Link, filters: tuple[str, ...]) -> None:
        _, mid = link.client.subscribe([(name, SubscribeOptions(qos=1)) for name in filters])
        if mid is not None:
            link.subscribing[mid] = filters

    # --- called by paho, in the network thread ---

    def _on_connect(self, link: _Link, reason: ReasonCode, properties: Properties) -> None:
        if reason.is_failure:
            link.reason = f"the broker refused the connection: {reason}"
            return
        link.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        link.max_in_flight = min(MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MAX_IN_FLIGHT))
        with self._lock:
            self._accepted = True
            filters = tuple(self._filters)
        if filters:
            self._subscribe(link, filters)
        else:
            self._link_up(link)

    def _on_subscribe(self, link: _Link, mid: int, reasons: list[ReasonCode]) -> None:
        for name, reason in zip(link.subscribing.pop(mid, ()), reasons, strict=False):
            if reason.is_failure:
                self._emit(port.Denied(name, str(reason)))
        if not link.subscribing and not link.up:
            self._link_up(link)

    def _link_up(self, link: _Link) -> None:
        link.up = True
        limit_bytes = min(self._max_packet_bytes, link.max_packet_bytes or self._max_packet_bytes)
        for message in self._outbox.open(limit_bytes):
            self._log.error("a lasting message expired, or is larger than the broker takes now", topic=message.topic)
        self._emit(port.LinkUp(link.session, link.max_packet_bytes))

    def _on_publish(self, link: _Link, mid: int, reason: ReasonCode) -> None:
        if (message := link.sent.pop(mid, None)) is None:
            return
        self._outbox.complete(message)
        if reason.is_failure:
            self._emit(port.Denied(message.topic, str(reason), message.token))
        elif message.confirm:
            self._emit(port.Acknowledged(message.topic, message.token))
        elif reason.value == _NO_MATCHING_SUBSCRIBERS and message.token is not None:
            self._emit(port.Undelivered(message.topic, message.token))

    def _on_message(self, message: Published) -> None:
        found = message.delivery
        if found is None:
            self._log.warning("refused a message: its properties are too long", topic=message.topic[:MOST_LOGGED])
            return
        size_bytes = len(found.payload) + len(found.topic)  # at most the packet's; a broker may not check it
        if size_bytes > self._max_packet_bytes:
            self._log.warning("refused a message: too large", topic=found.topic[:MOST_LOGGED], size_bytes=size_bytes)
            return
        self._emit(found)

    def _guard(self, callback: Callable[..., object]) -> Callable[..., None]:
        """The same callback; its exceptions are logged."""

        def guarded(*arguments: object) -> None:
            try:
                callback(*arguments)
            except Exception as error:  # noqa: BLE001 - an exception here would end the connection
                self._log.error("a callback raised an exception; its event is lost", exc_info=error)

        return guarded


def _on_disconnect(link: _Link, flags: Any, reason: ReasonCode) -> None:  # noqa: ANN401 - paho's flags are untyped
    if flags.is_disconnect_packet_from_server:
        link.reason = f"the broker ended the connection: {reason}"
        link.taken_over = reason.value == _SESSION_TAKEN_OVER
    elif not link.reason.startswith("the broker"):
        link.reason = f"the connection was lost: {reason}"
        link.has_reason = False


def _disconnect(client: _Client) -> None:
    """Send DISCONNECT, so that the broker drops the will, and close the socket."""
    sock = client.socket()
    if isinstance(sock, socket.socket):
        sock.settimeout(_TICK_S)  # a half-written packet must end first
    client.disconnect()
    until_s = time.monotonic() + _TICK_S
    while client.socket() is not None and client.want_write() and not client.is_broken and time.monotonic() < until_s:
        client.loop_write()


def _properties_of(message: Outgoing) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, theirs in _PROPERTIES.items():
        if (value := getattr(message, name)) is not None:
            setattr(properties, theirs, value)
    return properties
