"""One MQTT 5 connection over paho-mqtt: the only file that imports the MQTT client.

Owns what paho does otherwise than we need. Doesn't know subscriptions, queues, threads and reconnections. Only the
network thread uses it.

Each of these is against a trap that was measured:
- A write that fails looks like a full send buffer, and doesn't end the reading: a broker that ends may have sent
  messages before, such as wills.
- The first byte must be that of a broker's answer, or nothing is read as MQTT: paho would wait for a packet whose
  length a web server or a TLS port has named.
- A reason code that paho doesn't know, such as Mosquitto's for a message that is too large, is a refusal of that
  message. For paho it would be a broken packet, which ends the connection.
- TLS sends at most 16 KiB at a time, and paho copies the rest of its packet for each piece: a large message would be
  copied a thousand times.
- Messages are read and written in one pass (``publish_packet``), and their acknowledgements read, without paho's
  objects: to make these took more time than a small message takes through the broker.
- paho reads a packet's first bytes one by one: they come from one read of all that is there. No poll sees the rest of
  it, nor bytes that TLS has decrypted: ``has_bytes`` asks for them.
- A broker without TCP_NODELAY, such as the embedded one, sends its next small packet when the last one is acknowledged.
  Linux delays that by up to 40 ms, unless ``acknowledge`` asks for it after each read.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.client import MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MessageType, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from broker.protocol.errors import RemoteProtocolError
from broker.structured_log import structlog
from broker.transport.connection import Connection
from broker.transport.dial import Dialer, acknowledge_now
from broker.transport.failures import CONNACK
from broker.transport.port import SHARED, Feature, Outgoing
from broker.transport.publish_packet import Published, read_publish, write_publish

GOODBYE_S = 0.25
_READ_BYTES = 64 * 1024  # at a time
_MOST_READ_BYTES = 256 * 1024  # of a packet that has more
_FAILURE = 0x80
_CONNACK_3_BYTES = 2  # of MQTT 3: without properties
_ID_BYTES = 2
_MORE: int = getattr(socket, "MSG_MORE", 0)  # Linux sends these bytes with the next ones
_log = structlog.get_logger(__name__)
_NAMES = ReasonCode(PacketTypes.CONNACK).names  # code -> name -> the packets that have it


@dataclass(frozen=True)
class Reason:
    """A broker's reason code and its name."""

    code: int
    text: str

    @property
    def is_failure(self) -> bool:
        """Whether the broker refuses."""
        return self.code >= _FAILURE


@dataclass(frozen=True)
class Limits:
    """The broker's limits of this connection; None: it has none."""

    packet_bytes: int | None
    in_flight: int | None  # QoS 1 messages without a PUBACK
    lacks: frozenset[Feature] = frozenset()


class Handler(Protocol):
    """The receiver of a connection's packets."""

    def on_connected(self, reason: Reason, limits: Limits) -> None:
        """Take the broker's answer."""

    def on_subscribed(self, packet: int, reasons: Sequence[Reason]) -> None:
        """Take the answer to ``subscribe``, for each filter."""

    def on_published(self, packet: int, reason: Reason) -> None:
        """Take the acknowledgement of a message, or with QoS 0 the end of its writing."""

    def on_delivery(self, message: Published) -> None:
        """Take a message."""

    def on_end(self, reason: Reason, *, by_broker: bool) -> None:
        """Take the end of the connection, with the broker's reason if it gave one."""


class MqttClient(paho.Client):
    """One connection, not yet open. What the handler raises is logged."""

    def __init__(self, dialer: Dialer, client_id: str, handler: Handler) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5, reconnect_on_failure=False)
        self.is_broken = False  # whether a write has failed
        self.first = b""  # the first byte that the peer sent
        self._buffer = bytearray(_READ_BYTES)  # of each read: one of its own would leave holes between what is kept
        self._read = memoryview(b"")  # of it, and not yet handled
        self.tls_error: ssl.SSLError | None = None
        self._dialer = dialer
        self._unknown: int | None = None  # the code in the packet that is handled, if paho doesn't know it
        self.max_inflight_messages = 0  # unlimited: the owner keeps the broker's limit
        self.on_socket_register_write = lambda *_: None  # else paho writes before publish() returns the packet id
        # paho passes the client and its user data first, and the packet's properties last
        self.on_connect = guarded(
            lambda *given: handler.on_connected(self._reason(given[3]), _limits_of(given[4])), _log
        )
        self.on_subscribe = guarded(
            lambda *given: handler.on_subscribed(given[2], [self._reason(each) for each in given[3]]), _log
        )
        self.on_publish = guarded(lambda *given: handler.on_published(given[2], self._reason(given[3])), _log)
        self._acknowledged = guarded(handler.on_published, _log)
        self._deliver = guarded(handler.on_delivery, _log)
        self.on_disconnect = guarded(
            lambda *given: handler.on_end(self._reason(given[3]), by_broker=given[2].is_disconnect_packet_from_server),
            _log,
        )

    # --- for the owner ---

    def open(
        self, connection: Connection, *, keepalive_s: int, max_packet_bytes: int, will: Outgoing | None
    ) -> socket.socket | None:
        """Connect and queue CONNECT; returns the socket.

        Raises:
            ConnectionFailed: the broker can't be reached.
        """
        if connection.user is not None:
            self.username_pw_set(connection.user, connection.password)
        if will is not None:
            left = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
            if will.expiry_s is not None:
                left.MessageExpiryInterval = will.expiry_s
            self.will_set(will.topic, will.payload, will.qos, will.retain, properties=left)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = max_packet_bytes
        self.connect(connection.host, connection.port, keepalive_s, clean_start=True, properties=properties)
        sock = self.socket()
        return sock if isinstance(sock, socket.socket) else None

    def send(self, message: Outgoing) -> int:
        """Queue a message; returns its packet id."""
        packet_id = self._mid_generate()
        packet = memoryview(write_publish(message, packet_id))  # which paho cuts without copying
        told = None if message.qos else MQTTMessageInfo(packet_id)  # that it is written, as paho wants it with QoS 0
        self._packet_queue(MessageType.PUBLISH, packet, packet_id, message.qos, told)  # type: ignore[arg-type]
        return packet_id

    def add_filters(self, filters: Sequence[str], *, sees_retain: bool) -> int | None:
        """Queue a subscription; returns its packet id."""
        return self.subscribe([(name, SubscribeOptions(qos=1, retainAsPublished=sees_retain)) for name in filters])[1]

    def ping(self) -> None:
        """Queue a ping."""
        self._send_pingreq()

    @property
    def has_unseen_bytes(self) -> bool:
        """Whether there are bytes that no poll sees: they were read, or TLS holds them."""
        sock = self.socket()
        return sock is not None and (bool(self._read) or (isinstance(sock, ssl.SSLSocket) and sock.pending() > 0))

    def has_bytes(self) -> bool:
        """Whether a read wouldn't wait: there are bytes, unseen or in the network, or the connection has ended."""
        if self.has_unseen_bytes:
            return True
        poll = select.poll()
        if isinstance(sock := self.socket(), socket.socket):
            poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

    def acknowledge(self) -> None:
        """Acknowledge what was read, without the kernel's delay."""
        if isinstance(sock := self.socket(), socket.socket):
            acknowledge_now(sock)

    def say_goodbye(self) -> None:
        """Send DISCONNECT, so that the broker drops the will, and close the socket."""
        sock = self.socket()
        if isinstance(sock, socket.socket):
            sock.settimeout(GOODBYE_S)  # a half-written packet must end first
        self.disconnect()
        until_s = time.monotonic() + GOODBYE_S
        while self.socket() is not None and self.want_write() and not self.is_broken and time.monotonic() < until_s:
            self.loop_write()

    def close(self) -> None:
        """Close the socket without a word."""
        if isinstance(sock := self.socket(), socket.socket):
            sock.close()

    # --- called by paho ---

    def _create_socket(self) -> Any:  # noqa: ANN401 - paho's own type is not public
        return self._dialer.open()

    def _sock_recv(self, bufsize: int) -> bytes:
        if not self._read:
            try:
                self._read = self._received(bufsize)
            except ssl.SSLError as error:
                self.tls_error = error
                raise
            if not self.first:
                self.first = bytes(self._read[:1])
            if self.first != CONNACK:
                self._read = memoryview(b"")  # the connection ends
        data, self._read = self._read[:bufsize], self._read[bufsize:]
        return data  # type: ignore[return-value] # paho counts it, indexes it, and adds it to a bytearray

    def _received(self, wanted: int) -> memoryview:
        """Read what is there into the buffer. What paho took of it before was copied."""
        if not isinstance(sock := self.socket(), socket.socket):
            raise ConnectionError("the connection is closed")
        if wanted > len(self._buffer):
            self._buffer = bytearray(_MOST_READ_BYTES)
        try:
            size = sock.recv_into(self._buffer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        return memoryview(self._buffer)[:size]

    def _sock_send(self, buf: bytes | bytearray) -> int:
        view, sent = memoryview(buf), 0
        try:
            while sent < len(view):
                sent += self._send_some(view[sent:])
        except BlockingIOError:
            if not sent:
                raise
        except OSError as error:
            self.is_broken = True
            if not sent:
                raise BlockingIOError from error
        return sent

    def _send_some(self, view: memoryview) -> int:
        sock = self.socket()
        if self._out_packet and type(sock) is socket.socket:  # TLS takes no flags
            return sock.send(view, _MORE)
        return super()._sock_send(view)  # type: ignore[arg-type]

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            found = read_publish(self._in_packet["command"], self._in_packet["packet"])
        except RemoteProtocolError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._deliver(found)
        if found.qos == 0:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        if found.qos != 1:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        packet = struct.pack("!BBH", MessageType.PUBACK, _ID_BYTES, found.packet_id)
        return self._packet_queue(MessageType.PUBACK, packet, found.packet_id, 1)

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:  # noqa: ANN401 - paho's own type is not public
        packet = self._in_packet["packet"]
        if cmd != "PUBACK" or len(packet) < _ID_BYTES:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        code = packet[_ID_BYTES] if len(packet) > _ID_BYTES else 0
        self._acknowledged(struct.unpack_from("!H", packet)[0], Reason(code, _name_of(code, PacketTypes.PUBACK)))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _packet_handle(self) -> MQTTErrorCode:
        kind, packet = self._in_packet["command"] >> 4, self._in_packet["packet"]
        if kind == PacketTypes.PUBLISH:
            return self._handle_publish()
        if kind == PacketTypes.PUBACK:
            return self._handle_pubackcomp("PUBACK")
        if kind == PacketTypes.CONNACK and len(packet) == _CONNACK_3_BYTES and packet[1]:
            packet[1] = 1  # whatever a broker of MQTT 3 says, it doesn't speak MQTT 5
        for place in _places_of_reasons(kind, packet):
            if not any(kind in packets for packets in _NAMES.get(packet[place], {}).values()):
                self._unknown, packet[place] = packet[place], _FAILURE if packet[place] >= _FAILURE else 0
        try:
            return super()._packet_handle()
        finally:
            self._unknown = None

    def _reason(self, reason: ReasonCode) -> Reason:
        if self._unknown is None or reason.value != _FAILURE:
            return Reason(reason.value, str(reason))
        return Reason(self._unknown, _name_of(self._unknown))


def _name_of(code: int, kind: int | None = None) -> str:
    """The name of a reason code in packets of a kind; one that they don't have is named with its number."""
    names: dict[str, list[int]] = _NAMES.get(code, {})
    if known := [name for name, packets in names.items() if kind in packets]:
        return known[0]
    name = next(iter(names), "a reason that MQTT doesn't know")
    return f"{name} (0x{code:02x})"


def _places_of_reasons(kind: int, packet: bytes | bytearray) -> range:
    """The positions of the reason codes in a packet's body."""
    if kind in {PacketTypes.SUBACK, PacketTypes.UNSUBACK} and len(packet) > 2:  # noqa: PLR2004 - after the packet id
        properties_bytes, length_bytes = VariableByteIntegers.decode(packet[2:])  # type: ignore[no-untyped-call]
        return range(2 + length_bytes + properties_bytes, len(packet))
    place = {PacketTypes.CONNACK: 1, PacketTypes.DISCONNECT: 0}.get(kind, len(packet))
    if kind == PacketTypes.CONNACK and len(packet) == _CONNACK_3_BYTES:
        return range(0)
    return range(place, min(place + 1, len(packet)))


_ABSENT: dict[str, Feature] = {
    "MaximumQoS": "QoS 1",
    "RetainAvailable": "retained messages",
    "WildcardSubscriptionAvailable": "wildcards in subscriptions",
    "SharedSubscriptionAvailable": SHARED,
}
"""The properties of a CONNACK that are 0 where the broker lacks something, and missing where it has all of it."""


def _limits_of(properties: Properties | None) -> Limits:
    lacks = frozenset(feature for name, feature in _ABSENT.items() if getattr(properties, name, None) == 0)
    return Limits(getattr(properties, "MaximumPacketSize", None), getattr(properties, "ReceiveMaximum", None), lacks)


def guarded(callback: Callable[..., object], log: Any) -> Callable[..., None]:  # noqa: ANN401 - structlog's loggers are untyped
    """The same callback; its exceptions are logged: they would end the connection."""

    def call(*arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            log.exception("a callback raised an exception; its event is lost")

    return call
