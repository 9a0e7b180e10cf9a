"""The MQTT 5 packets of a simulated device, without any connection. Pure.

Owns the bytes of the packets that a device sends, and reads those that a broker sends to it. It is our own for three
reasons: the client library has a thread and a lock for each connection, which a thousand of them on half a core can't
afford; of the codecs without a connection on PyPI, mqtt5 (0.8) is compiled and before its first stable version, and
the one inside ohmqtt isn't public; and these are six small packets, which the broker of every run checks.

Doesn't know: QoS 2, topic aliases, authentication, properties; those of a received message are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from broker.protocol.errors import LocalProtocolError, RemoteProtocolError

DISCONNECT = b"\xe0\x00"  # a clean end: the broker drops the will
REFUSED = 0x80  # reason codes from here on are failures
_MAX_REMAINING = 268_435_455  # what four bytes of seven bits can say
_LENGTH_BYTES = 4
_CLEAN_START, _WILL, _WILL_QOS_1, _WILL_RETAIN = 0x02, 0x04, 0x08, 0x20
_NO_PROPERTIES = b"\0"


class Kind(IntEnum):
    """The first four bits of a packet."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    PINGRESP = 13
    DISCONNECT = 14


@dataclass(frozen=True, slots=True)
class Accepted:
    """The broker's answer to CONNECT: ``reason`` is 0, or that of the refusal."""

    reason: int


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The broker's answer to SUBSCRIBE: a granted QoS or a failure for each filter."""

    packet_id: int
    reasons: bytes


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The broker's answer to a message of QoS 1."""

    packet_id: int
    reason: int


@dataclass(frozen=True, slots=True)
class Message:
    """A delivered message; ``packet_id`` is that of QoS 1, to be acknowledged, and 0 with QoS 0."""

    topic: str
    payload: bytes
    retain: bool
    packet_id: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The broker ends the connection."""

    reason: int


Packet = Accepted | Subscribed | Acknowledged | Message | Ended


def connect(client_id: str, *, keepalive_s: int, will_topic: str, will: bytes) -> bytes:
    """A CONNECT without an earlier session, with a retained will of QoS 1."""
    flags = _CLEAN_START | _WILL | _WILL_QOS_1 | _WILL_RETAIN
    header = _text("MQTT") + struct.pack(">BBH", 5, flags, keepalive_s) + _NO_PROPERTIES
    return _packet(Kind.CONNECT << 4, header + _text(client_id) + _NO_PROPERTIES + _text(will_topic) + _binary(will))


def subscribe(packet_id: int, filters: Sequence[str]) -> bytes:
    """A SUBSCRIBE with QoS 1 for all filters."""
    wanted = b"".join(_text(name) + b"\x01" for name in filters)
    return _packet(Kind.SUBSCRIBE << 4 | 0x02, struct.pack(">H", packet_id) + _NO_PROPERTIES + wanted)


def publish(topic: str, payload: bytes, *, retain: bool = False, packet_id: int = 0) -> bytes:
    """A PUBLISH: of QoS 1 with a packet id, of QoS 0 without."""
    flags = (0x02 if packet_id else 0) | (0x01 if retain else 0)
    middle = struct.pack(">H", packet_id) if packet_id else b""
    return _packet(Kind.PUBLISH << 4 | flags, _text(topic) + middle + _NO_PROPERTIES + payload)


def puback(packet_id: int) -> bytes:
    """The acknowledgement of a delivered message."""
    return _packet(Kind.PUBACK << 4, struct.pack(">H", packet_id))


class Reader:
    """Cuts a connection's bytes into packets; keeps an incomplete one until its rest comes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that these bytes complete; answers to pings are skipped.

        Raises:
            RemoteProtocolError: the bytes aren't packets that a broker sends to such a device.
        """
        buffer = self._rest + data if self._rest else data
        packets, position = list[Packet](), 0
        while (span := _span(buffer, position)) is not None:
            start, end = span
            try:
                packet = _read(buffer[position], buffer[start:end])
            except (IndexError, struct.error, UnicodeDecodeError) as error:
                raise RemoteProtocolError(
                    f"the broker sent a malformed packet of kind {buffer[position] >> 4}"
                ) from error
            if packet is not None:
                packets.append(packet)
            position = end
        self._rest = buffer[position:]
        return packets


def _span(buffer: bytes, position: int) -> tuple[int, int] | None:
    """Begin and end of the body of the packet at a position; None while it is incomplete."""
    found = _number(buffer, position + 1)
    if found is None:
        return None
    size, start = found
    return (start, start + size) if start + size <= len(buffer) else None


def _number(buffer: bytes, position: int) -> tuple[int, int] | None:
    """A number of up to four bytes, and the position behind it; None while it is incomplete."""
    value = 0
    for count in range(_LENGTH_BYTES):
        if position + count >= len(buffer):
            return None
        byte = buffer[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more bytes follow
            return value, position + count + 1
    raise RemoteProtocolError("the broker sent a length of more than four bytes")


def _read(first: int, body: bytes) -> Packet | None:
    match first >> 4:
        case Kind.PUBLISH:
            return _message(first, body)
        case Kind.CONNACK:
            return Accepted(body[1])
        case Kind.SUBACK:
            return Subscribed(struct.unpack_from(">H", body)[0], body[_after_properties(body, 2) :])
        case Kind.PUBACK:  # without a reason it is a success
            return Acknowledged(struct.unpack_from(">H", body)[0], body[2] if len(body) > 2 else 0)  # noqa: PLR2004
        case Kind.DISCONNECT:
            return Ended(body[0] if body else 0)
        case Kind.PINGRESP:
            return None
    raise RemoteProtocolError(f"the broker sent a packet of kind {first >> 4}, which a device doesn't expect")


def _message(first: int, body: bytes) -> Message:
    size = struct.unpack_from(">H", body)[0]
    topic, position = body[2 : 2 + size].decode(), 2 + size
    packet_id = 0
    if first & 0x06:
        packet_id = struct.unpack_from(">H", body, position)[0]
        position += 2
    return Message(topic, body[_after_properties(body, position) :], bool(first & 0x01), packet_id)


def _after_properties(body: bytes, position: int) -> int:
    found = _number(body, position)
    if found is None or sum(found) > len(body):
        raise IndexError
    return sum(found)


def _packet(first: int, body: bytes) -> bytes:
    if len(body) > _MAX_REMAINING:
        raise LocalProtocolError(f"an MQTT packet has at most {_MAX_REMAINING} bytes, got {len(body)}")
    size, length = len(body), bytearray()
    while True:
        size, byte = size >> 7, size & 0x7F
        length.append(byte | 0x80 if size else byte)
        if not size:
            return bytes((first,)) + bytes(length) + body


def _binary(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _text(text: str) -> bytes:
    return _binary(text.encode())
