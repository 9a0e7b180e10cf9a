"""A port for clients of MQTT 3.1.1 in front of a broker that speaks MQTT 5 only.

Owns the translation of each packet, and the port. rumqttd has a listener for 3.1.1 itself, and that one ends for all
clients when it has to deliver a message with properties, as answers are. So this one translates: what a client sends
gets empty properties, and what it receives loses its own. Knows no topic. It is for a single trusted machine: it
listens on 127.0.0.1 only.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from broker.protocol.errors import RemoteProtocolError
from broker.protocol.sizes import show_sizes
from broker.servers.ports import HOST
from broker.transport.port import MAX_PACKET_BYTES

MAX_CONNECTIONS = 200  # each has two threads
CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE = range(1, 9)
SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = range(9, 15)
_CHUNK = 65_536
_NAMES = (b"\x00\x04MQTT\x04", b"\x00\x06MQIsdp\x03")  # of 3.1.1 and 3.1, with their levels
_NAME_5 = b"\x00\x04MQTT\x05"
_NO_PROPERTIES = b"\x00"
_FOR_EVER = b"\x05\x11\xff\xff\xff\xff"  # Session Expiry Interval: a session that isn't clean outlives its connection
_REFUSALS = {0x84: 1, 0x85: 2, 0x88: 3, 0x89: 3, 0x97: 3, 0x9F: 3, 0x86: 4}  # all others: 5, not authorized
REFUSED_PROTOCOL = bytes((CONNACK << 4, 2, 0, 1))
"""The answer to a client of another version."""


class Packet(NamedTuple):
    """A packet without the length of its body."""

    head: int
    body: bytes

    @property
    def kind(self) -> int:
        """Its type."""
        return self.head >> 4

    def encoded(self) -> bytes:
        """Its bytes."""
        rest, length = len(self.body), bytearray()
        while True:
            rest, digit = rest >> 7, rest & 0x7F
            length.append(digit | (0x80 if rest else 0))
            if not rest:
                return bytes((self.head, *length)) + self.body


class OtherVersion(RemoteProtocolError):
    """A client doesn't speak MQTT 3.1 or 3.1.1."""


def packets_of(buffer: bytearray) -> Iterator[Packet]:
    """Take the complete packets from the beginning of what was received."""
    while len(buffer) > 1:
        length, end = _number(buffer, 1, complete=False)
        if length > MAX_PACKET_BYTES:
            size, limit = show_sizes(length, MAX_PACKET_BYTES)
            raise RemoteProtocolError(f"a packet of {size}, at most {limit} are allowed")
        if end == 0 or len(buffer) < end + length:
            return
        packet = Packet(buffer[0], bytes(buffer[end : end + length]))
        del buffer[: end + length]
        yield packet


def to_5(packet: Packet) -> Packet:
    """A client's packet in MQTT 5.

    Raises:
        RemoteProtocolError: it is malformed, or of another version.
    """
    head, body = packet
    if packet.kind == CONNECT:
        return Packet(head, _connect(body))
    if packet.kind == PUBLISH:
        return Packet(head, _insert(body, _topic_end(packet)))
    if packet.kind in {SUBSCRIBE, UNSUBSCRIBE}:
        return Packet(head, _insert(body, 2))
    if packet.kind in {PUBACK, PUBREC, PUBREL, PUBCOMP, PINGREQ, DISCONNECT}:
        return packet
    raise RemoteProtocolError(f"a client sends no packet of type {packet.kind}")


def from_5(packet: Packet) -> Packet | None:
    """A broker's packet in MQTT 3.1.1; None where 3.1.1 has no such packet: the connection ends.

    Raises:
        RemoteProtocolError: it is malformed.
    """
    head, body = packet
    if packet.kind == CONNACK and len(body) > 1:
        code = body[1] and _REFUSALS.get(body[1], 5)
        return Packet(head, bytes((0 if code else body[0], code)))
    if packet.kind == PUBLISH:
        end = _topic_end(packet)
        return Packet(head, body[:end] + body[_properties_end(body, end) :])
    if packet.kind in {PUBACK, PUBREC, PUBREL, PUBCOMP, UNSUBACK}:
        return Packet(head, body[:2])  # 3.1.1 knows no reason
    if packet.kind == SUBACK:
        return Packet(head, body[:2] + bytes(min(code, 0x80) for code in body[_properties_end(body, 2) :]))
    return packet if packet.kind == PINGRESP else None


def _topic_end(publish: Packet) -> int:
    """Where the topic of a message ends, and the packet's number behind it."""
    return _field_end(publish.body) + (2 if publish.head & 0b110 else 0)


def _connect(body: bytes) -> bytes:
    name = next((name for name in _NAMES if body.startswith(name)), None)
    if name is None or len(body) < len(name) + 3:
        raise OtherVersion("the client doesn't speak MQTT 3.1.1")
    flags, rest = body[len(name)], body[len(name) + 3 :]
    end = _field_end(rest)
    if flags & 0b100:
        rest = _insert(rest, end)  # the properties of its will
    properties = _NO_PROPERTIES if flags & 0b10 else _FOR_EVER
    return _NAME_5 + body[len(name) : len(name) + 3] + properties + rest


def _insert(body: bytes, place: int) -> bytes:
    if place > len(body):
        raise RemoteProtocolError("a packet is too short")
    return body[:place] + _NO_PROPERTIES + body[place:]


def _field_end(body: bytes) -> int:
    end = 2 + int.from_bytes(body[:2], "big")
    if end > len(body):
        raise RemoteProtocolError("a packet is too short")
    return end


def _properties_end(body: bytes, place: int) -> int:
    length, end = _number(body, place)
    return end + length


def _number(data: bytes | bytearray, place: int, *, complete: bool = True) -> tuple[int, int]:
    """A number of variable length, and its end; 0 and 0 if it isn't ``complete``."""
    number = 0
    for shift in range(4):
        if place + shift >= len(data):
            break
        digit = data[place + shift]
        number |= (digit & 0x7F) << (7 * shift)
        if not digit & 0x80:
            return number, place + shift + 1
    else:
        raise RemoteProtocolError("a length of more than 4 bytes")
    if complete:
        raise RemoteProtocolError("a packet is too short")
    return 0, 0


def refused_5(broker_port: int) -> bytes:
    """The answer to a client of MQTT 5, which couldn't read that of 3.1.1: a CONNACK with the reason."""
    why = f"this port is for MQTT 3.1.1: MQTT 5 has port {broker_port}".encode()
    properties = b"\x1f" + len(why).to_bytes(2, "big") + why
    return Packet(CONNACK << 4, bytes((0, 0x84, len(properties))) + properties).encoded()


class PlainDoor:
    """The port, as long as it isn't closed. Port 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, port: int, broker_port: int) -> None:
        self._broker_port = broker_port
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        door = self

        class _Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                door.serve(self.request)

        class _Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing: a client that breaks its own connection concerns nobody else."""

        self._server = _Server((HOST, port), _Handler)
        self.port = int(self._server.server_address[1])
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="plain-door").start()

    def close(self) -> None:
        """Close the port and all connections."""
        self._server.shutdown()
        self._server.server_close()
        for each in list(self._open):
            _end(each)

    def serve(self, client: socket.socket) -> None:
        """Translate between a client and the broker until one of them ends."""
        if not self._places.acquire(blocking=False):
            return
        try:
            with socket.create_connection((HOST, self._broker_port)) as broker:
                for each in (client, broker):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open |= {client, broker}
                back = threading.Thread(target=_pump, args=(broker, client, from_5), daemon=True)
                back.start()
                _pump(client, broker, to_5, refused_5(self._broker_port))
                back.join()
                self._open -= {client, broker}
        finally:
            self._places.release()


def _pump(
    source: socket.socket, sink: socket.socket, translate: Callable[[Packet], Packet | None], refused: bytes = b""
) -> None:
    """Pass on translated packets until either end closes, or breaks the protocol; then both are closed.

    ``refused`` is the answer to a client of MQTT 5.
    """
    buffer = bytearray()
    with suppress(OSError, RemoteProtocolError):
        while received := source.recv(_CHUNK):
            buffer += received
            for packet in packets_of(buffer):
                try:
                    translated = translate(packet)
                except OtherVersion:
                    source.sendall(refused if packet.body.startswith(_NAME_5) else REFUSED_PROTOCOL)
                    raise
                if translated is None:
                    raise RemoteProtocolError("the broker ends the connection")
                sink.sendall(translated.encoded())
    _end(source)
    _end(sink)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
