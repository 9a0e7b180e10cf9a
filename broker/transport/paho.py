"""The port over paho-mqtt, MQTT 5: the only file that imports the client.

Owns one network thread. That thread alone touches paho: it connects, reads, writes, keeps alive, and reconnects; every
other thread only leaves work and wakes it. Knows nothing of what the messages mean.

Invariants, each against a trap that was measured:
- A fresh paho client per connection: nothing of an old session is sent again by itself (an oversize message would be,
  for ever). What is lasting comes out of the outbox again.
- Sizes are checked before a message is accepted, against the broker's word and our own limit; paho checks neither.
- The inbox is called from the network thread and nothing it raises escapes: paho's own thread would die unnoticed.
- Small packets leave at once (TCP_NODELAY). A long message counts as life, though the ping waits behind it.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from broker.protocol.errors import NotConnected, TransportError
from broker.transport.address import parse_url
from broker.transport.keepalive import Pulse
from broker.transport.outbox import Outbox
from broker.transport.port import (
    LONGEST_RETRY_S,
    MAX_PACKET_BYTES,
    Delivery,
    Denied,
    Inbox,
    LinkDown,
    LinkEvent,
    LinkUp,
    Outgoing,
    Undelivered,
    WillFor,
)
from broker.transport.wakeup import Alarm

MAX_QUEUED = 1_000  # messages
MAX_QUEUED_BYTES = 64 * 1024 * 1024
MAX_IN_FLIGHT = 20  # QoS 1 messages without their PUBACK; Mosquitto's own default, and a CONNACK may say less
FIRST_RETRY_S = 0.1
CLOSE_S = 5.0  # how long close() waits until everything published before is out
_TICK_S = 0.25  # how often keepalive is looked at
_NO_MATCHING_SUBSCRIBERS = 0x10
_PINGREQ = b"\xc0\x00"

_log = structlog.get_logger(__name__)


class _Link:
    """What belongs to one connection and ends with it; only the network thread touches it."""

    def __init__(self, client: paho.Client, session: int) -> None:
        self.client = client
        self.session = session
        self.up = False  # accepted, and everything subscribed
        self.reason = "the connection was lost"
        self.max_packet_bytes: int | None = None
        self.max_in_flight = MAX_IN_FLIGHT
        self.subscribing: dict[int, tuple[str, ...]] = {}  # packet id -> filters that wait for their SUBACK
        self.sent: dict[int, Outgoing] = {}  # packet id -> not yet written (QoS 0) or acknowledged (QoS 1)


class MqttTransport:
    """A connection to an MQTT 5 broker that repairs itself (see ``Transport``).

    Messages that were published and not acknowledged when the connection went are dropped, but for lasting ones:
    whoever needs them asks again. ``LinkDown`` also comes when there never was a connection, once for each new reason.
    A retained message may arrive ahead of ``LinkUp``. No event comes after ``close``.

    Args:
        url: ``mqtt://[user:password@]host[:port]``.
        client_id: two connections must not have the same; the broker ends the older one.
        inbox: called in the network thread; it must only put the event on a queue.
        will: makes the will for each connection's session number; called in the network thread.
        keepalive_s: the broker publishes the will after 1.5 times this without a sign of life.
        max_packet_bytes: larger messages are refused, going out and coming in.
        max_queued: messages that may wait for the wire or for their acknowledgement.
        max_queued_bytes: their bytes; a single message may have more.

    Raises:
        BadFile: the url isn't one.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        inbox: Inbox,
        will: WillFor | None = None,
        keepalive_s: int = 3,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        max_queued: int = MAX_QUEUED,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self._address = parse_url(url)
        self._client_id = client_id
        self._inbox = inbox
        self._will = will
        self._keepalive_s = keepalive_s
        self._max_packet_bytes = max_packet_bytes
        self._log = _log.bind(client_id=client_id, broker=str(self._address))
        self._outbox = Outbox(max_messages=max_queued, max_bytes=max_queued_bytes)
        self._closing = threading.Event()

        self._lock = threading.Lock()  # guards all below; never held while calling paho or the inbox
        self._filters: dict[str, None] = {}  # in the order made
        self._accepted = False  # by the broker: changes of the filters must be sent
        self._changes: deque[tuple[bool, tuple[str, ...]]] = deque()  # (subscribe, else unsubscribe; filters)
        self._thread: threading.Thread | None = None
        self._alarm: Alarm | None = None  # wakes the network thread

    # --- any thread ---

    @property
    def connected(self) -> bool:
        """Whether a publish has a chance now."""
        return self._outbox.is_open

    def start(self) -> None:
        """Begin to connect, and go on until ``close``; returns at once.

        Raises:
            TransportError: it was closed before.
        """
        with self._lock:
            if self._closing.is_set():
                raise TransportError("this transport was closed: make a new one")
            if self._thread is None:
                self._alarm = Alarm()
                self._thread = threading.Thread(target=self._run, name=f"mqtt[{self._client_id}]", daemon=True)
                self._thread.start()

    def publish(self, message: Outgoing) -> None:
        """Hand a message to the broker without waiting.

        Raises:
            NotConnected: there is no connection, and the message isn't lasting.
            MessageTooLarge: beyond the broker's or our own limit.
            QueueFull: too many messages wait already.
        """
        if self._closing.is_set():
            raise NotConnected(f"this transport was closed, so {message.topic} was not published")
        self._outbox.put(message)
        with self._lock:
            self._wake()

    def subscribe(self, *filters: str) -> None:
        """Add filters, QoS 1; they are remembered and made again at each connection."""
        with self._lock:
            new = tuple(name for name in dict.fromkeys(filters) if name not in self._filters)
            self._filters.update(dict.fromkeys(new))
            self._change(subscribe=True, filters=new)

    def unsubscribe(self, *filters: str) -> None:
        """Take filters away."""
        with self._lock:
            gone = tuple(name for name in dict.fromkeys(filters) if name in self._filters)
            for name in gone:
                del self._filters[name]
            self._change(subscribe=False, filters=gone)

    def close(self) -> None:
        """Disconnect cleanly (no will) and stop; what was published before is sent first. Safe to call twice."""
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
        if self._alarm is not None:
            self._alarm.ring()

    # --- the network thread ---

    def _run(self) -> None:
        failures = 0
        told: str | None = None  # why there is no connection, as last told
        while not self._closing.is_set():
            began_s = time.monotonic()
            was_up, reason = self._connect_once()
            if self._closing.is_set():
                break
            if was_up or reason != told:
                self._log.warning("no connection to the broker", reason=reason)
                self._emit(LinkDown(reason))
                told = reason
            # A connection that lasted was sound; two clients that throw each other out must slow down.
            failures = 0 if was_up and time.monotonic() - began_s > LONGEST_RETRY_S else failures + 1
            longest_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**failures)
            self._closing.wait(longest_s * (1 + secrets.randbelow(1000) / 1000) / 2)
        with self._lock:
            if self._alarm is not None:
                self._alarm.close()
            self._alarm = None

    def _connect_once(self) -> tuple[bool, str]:
        """Hold one connection from its first to its last packet; whether it ever was up, and why it ended."""
        link: _Link | None = None
        try:
            link = self._new_link()
            self._pump(link)
        except OSError as error:
            reason = f"can't reach the broker at {self._address}: {error.strerror or error}"
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread must live and try again
            self._log.warning("a connection broke on an error of ours", exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = link.reason
        finally:
            self._outbox.shut()
            with self._lock:
                self._accepted = False
                self._changes.clear()
            sock = link.client.socket() if link else None
            if sock is not None:
                sock.close()
        return link is not None and link.up, reason

    def _new_link(self) -> _Link:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, self._client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        link = _Link(client, session=secrets.randbits(53))  # a JSON number every reader can hold
        client.connect_timeout = float(self._keepalive_s)
        client.max_inflight_messages = 0  # no limit there: ``_flush`` keeps the broker's
        if self._address.username is not None:
            client.username_pw_set(self._address.username, self._address.password)
        if self._will is not None:
            will = self._will(link.session)
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_socket_open = self._guard(_send_small_packets_at_once)
        client.on_socket_register_write = lambda *_: None  # or paho writes before publish() returns the packet id
        client.on_connect = self._guard(functools.partial(self._on_connect, link))
        client.on_subscribe = self._guard(functools.partial(self._on_subscribe, link))
        client.on_publish = self._guard(functools.partial(self._on_publish, link))
        client.on_disconnect = self._guard(functools.partial(_on_disconnect, link))
        client.on_message = self._guard(self._on_message)
        return link

    def _pump(self, link: _Link) -> None:
        """Connect, then read, write and keep alive until the socket is closed."""
        client, alarm = link.client, self._alarm
        said = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        said.MaximumPacketSize = self._max_packet_bytes
        client.connect(self._address.host, self._address.port, self._keepalive_s, clean_start=True, properties=said)
        sock = client.socket()
        if not isinstance(sock, socket.socket) or alarm is None:
            return
        stuck = False  # the kernel's buffer is full
        pulse = Pulse(time.monotonic(), time.monotonic())
        close_by_s = float("inf")
        while client.socket() is not None:  # a client never opens a second one
            stuck = stuck or self._flush(link)
            if self._closing.is_set():
                close_by_s = min(close_by_s, time.monotonic() + CLOSE_S)
                if self._outbox.is_empty or time.monotonic() >= close_by_s:
                    _say_goodbye(client)
            if client.socket() is None:
                return
            readable, writable = alarm.wait(sock, for_room=stuck, timeout_s=_TICK_S)
            if readable:
                client.loop_read()
            stuck = stuck and not writable
            now_s = time.monotonic()
            if readable or writable:
                pulse.hear(now_s)
            if pulse.is_dead(now_s, client.keepalive):
                link.reason = "the broker is silent"
                return
            between_packets = client.is_connected() and not stuck and not client.want_write()
            if between_packets and pulse.wants_ping(now_s, client.keepalive):
                with contextlib.suppress(OSError):  # the next read tells
                    sock.send(_PINGREQ)

    def _flush(self, link: _Link) -> bool:
        """Write what can be written now; whether the kernel's buffer is full.

        A message enters paho only when all before it is written: nothing waits there uncounted.
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
            message = self._outbox.take()
            if message is None:
                return False
            info = client.publish(message.topic, message.payload, message.qos, message.retain, _properties_of(message))
            link.sent[info.mid] = message

    def _subscribe(self, link: _Link, filters: tuple[str, ...]) -> None:
        _, mid = link.client.subscribe([(name, SubscribeOptions(qos=1)) for name in filters])
        if mid is not None:
            link.subscribing[mid] = filters

    # --- called by paho, in the network thread ---

    def _on_connect(
        self, link: _Link, _c: object, _u: object, _f: object, reason: ReasonCode, said: Properties
    ) -> None:
        if reason.is_failure:
            link.reason = f"the broker refused the connection: {reason}"
            return
        link.max_packet_bytes = getattr(said, "MaximumPacketSize", None)
        link.max_in_flight = min(MAX_IN_FLIGHT, getattr(said, "ReceiveMaximum", MAX_IN_FLIGHT))
        with self._lock:
            self._accepted = True
            filters = tuple(self._filters)
        if filters:
            self._subscribe(link, filters)
        else:
            self._link_up(link)

    def _on_subscribe(
        self, link: _Link, _c: object, _u: object, mid: int, reasons: list[ReasonCode], _p: object
    ) -> None:
        for name, reason in zip(link.subscribing.pop(mid, ()), reasons, strict=False):
            if reason.is_failure:
                self._log.warning("the broker refused a subscription", filter=name, reason=str(reason))
                self._emit(Denied(name, str(reason)))
        if not link.subscribing and not link.up:
            self._link_up(link)

    def _link_up(self, link: _Link) -> None:
        link.up = True
        limit_bytes = min(self._max_packet_bytes, link.max_packet_bytes or self._max_packet_bytes)
        for message in self._outbox.open(limit_bytes):
            self._log.error("a kept message expired, or is larger than the broker takes now", topic=message.topic)
        self._emit(LinkUp(link.session, link.max_packet_bytes))

    def _on_publish(self, link: _Link, _c: object, _u: object, mid: int, reason: ReasonCode, _p: object) -> None:
        message = link.sent.pop(mid, None)
        if message is None:
            return
        self._outbox.done(message)
        if reason.is_failure:
            self._log.warning("the broker refused a message", topic=message.topic, reason=str(reason))
            self._emit(Denied(message.topic, str(reason)))
        elif reason.value == _NO_MATCHING_SUBSCRIBERS and message.token is not None:
            self._emit(Undelivered(message.topic, message.token))

    def _on_message(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        size_bytes = len(message.payload)
        if size_bytes > self._max_packet_bytes:
            self._log.warning("refused a message: too large", topic=message.topic, size_bytes=size_bytes)
            return
        said = message.properties
        self._emit(
            Delivery(
                topic=message.topic,
                payload=bytes(message.payload),
                retain=message.retain,
                response_topic=getattr(said, "ResponseTopic", None),
                correlation=getattr(said, "CorrelationData", None),
                content_type=getattr(said, "ContentType", None),
                expiry_s=getattr(said, "MessageExpiryInterval", None),
            )
        )

    def _emit(self, event: LinkEvent) -> None:
        self._guard(self._inbox)(event)

    def _guard(self, callback: Callable[..., object]) -> Callable[..., None]:
        """The same callback, from which nothing escapes."""

        def guarded(*arguments: object) -> None:
            try:
                callback(*arguments)
            except Exception as error:  # noqa: BLE001 - an exception here would end the connection
                self._log.error("a callback raised; what it was called for is lost", exc_info=error)

        return guarded


def _on_disconnect(link: _Link, _c: object, _u: object, flags: Any, reason: ReasonCode, _p: object) -> None:  # noqa: ANN401 - paho's flags are untyped
    if flags.is_disconnect_packet_from_server:
        link.reason = f"the broker ended the connection: {reason}"
    elif not link.reason.startswith("the broker"):
        link.reason = f"the connection was lost: {reason}"


def _send_small_packets_at_once(_client: object, _userdata: object, sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _say_goodbye(client: paho.Client) -> None:
    """Send DISCONNECT, so that the broker keeps the will to itself, and close the socket."""
    sock = client.socket()
    if isinstance(sock, socket.socket):
        sock.settimeout(_TICK_S)  # a packet that is half written must end first
    client.disconnect()
    until_s = time.monotonic() + _TICK_S
    while client.socket() is not None and client.want_write() and time.monotonic() < until_s:
        client.loop_write()


def _properties_of(message: Outgoing) -> Properties | None:
    said = {
        "ResponseTopic": message.response_topic,
        "CorrelationData": message.correlation,
        "ContentType": message.content_type,
        "MessageExpiryInterval": message.expiry_s,
    }
    given = {name: value for name, value in said.items() if value is not None}
    if not given:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in given.items():
        setattr(properties, name, value)
    return properties
