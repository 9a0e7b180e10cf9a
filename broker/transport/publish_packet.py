"""The bytes of an MQTT 5 PUBLISH packet, written and read in one pass. Pure.

Owns which properties count, and how many bytes they may have. The client library copies the rest of the packet for
each property that it reads: a few thousand of them in front of a large payload would stop its thread, and with it the
process, for minutes. Its own way to write a packet takes more time than a small packet takes to arrive.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from broker.protocol.errors import RemoteProtocolError
from broker.protocol.trace_context import NAME, read_traceparent
from broker.transport.port import MAX_STRING_BYTES, Delivery, Outgoing

MAX_PROPERTIES_BYTES = 2 * MAX_STRING_BYTES  # Correlation Data of the largest size, and as much for all others
_CORRELATION = 0x09
_NAMES = {0x02: "expiry_s", 0x03: "content_type", 0x08: "response_topic", _CORRELATION: "correlation"}
_NAME = NAME.encode()
_TRACEPARENT = b"\x26" + struct.pack("!H", len(_NAME)) + _NAME
_OTHER_SIZES = {0x01: 1, 0x23: 2}  # payload format and topic alias


@dataclass(frozen=True)
class Published:
    """A packet. ``delivery`` is None if its properties are too long, or a text in it isn't UTF-8."""

    qos: int
    packet_id: int  # 0 with QoS 0
    topic: str
    delivery: Delivery | None


def write_publish(message: Outgoing, packet_id: int) -> bytes:
    """A message's packet, whole; with QoS 0 it has no id."""
    properties = _written_properties(message)
    head = _written_string(message.topic.encode())
    if message.qos:
        head += struct.pack("!H", packet_id)
    head += _written_number(len(properties)) + properties
    first = 0x30 | message.qos << 1 | message.retain
    length = _written_number(len(head) + len(message.payload))
    return b"".join((first.to_bytes(1, "big"), length, head, message.payload))


def _written_properties(message: Outgoing) -> bytes:
    given = b""
    if message.expiry_s is not None:
        given += struct.pack("!BI", 0x02, message.expiry_s)
    if message.content_type is not None:
        given += b"\x03" + _written_string(message.content_type.encode())
    if message.response_topic is not None:
        given += b"\x08" + _written_string(message.response_topic.encode())
    if message.correlation is not None:
        given += b"\x09" + _written_string(message.correlation)
    if message.traceparent is not None:
        given += _TRACEPARENT + _written_string(message.traceparent.encode())
    return given


def _written_string(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def _written_number(number: int) -> bytes:
    """At most four bytes with seven bits each; the eighth says that more follow."""
    given = bytearray()
    while number >= 0x80:  # noqa: PLR2004 - that bit
        given.append(number & 0x7F | 0x80)
        number >>= 7
    given.append(number)
    return bytes(given)


def read_publish(flags: int, packet: bytes | bytearray) -> Published:
    """Read a packet without its fixed header, of which ``flags`` is the first byte.

    Raises:
        RemoteProtocolError: it isn't a PUBLISH packet.
    """
    qos, packet_id = (flags & 0x06) >> 1, 0
    try:
        raw_topic, at = _string(packet, 0)
        topic = raw_topic.decode(errors="replace")
        if qos:
            (packet_id,) = struct.unpack_from("!H", packet, at)
            at += 2
        length, at = _number(packet, at)
        if at + length > len(packet):
            raise RemoteProtocolError("the properties of a PUBLISH packet are longer than the packet")
        if length > MAX_PROPERTIES_BYTES:
            return Published(qos, packet_id, topic, None)
        raw_topic.decode()
        named = _properties(bytes(packet[at : at + length]))
        payload = bytes(memoryview(packet)[at + length :])
    except UnicodeDecodeError:  # its sender is at fault, and not the broker
        return Published(qos, packet_id, topic, None)
    except (struct.error, IndexError, KeyError) as error:
        raise RemoteProtocolError(f"a PUBLISH packet can't be read: {error}") from error
    return Published(qos, packet_id, topic, Delivery(topic, payload, bool(flags & 0x01), **named))


def _properties(data: bytes) -> dict[str, Any]:
    """The properties that have a name here."""
    found: dict[str, Any] = {}
    parents: list[str] = []
    at = 0
    while at < len(data):
        kind, value = data[at], None
        at += 1
        match kind:
            case 0x02:
                (value,) = struct.unpack_from("!I", data, at)
                at += 4
            case 0x03 | 0x08 | 0x09:
                value, at = _string(data, at)
                value = value if kind == _CORRELATION else value.decode()
            case 0x0B:
                _, at = _number(data, at)
            case 0x26:
                name, at = _string(data, at)
                text, at = _string(data, at)
                if name == _NAME:
                    parents.append(text.decode(errors="replace"))
            case _:
                at += _OTHER_SIZES[kind]
        if kind in _NAMES:
            found[_NAMES[kind]] = value
    if parents:
        found["traceparent"] = read_traceparent(*parents)
    return found


def _string(data: bytes | bytearray, at: int) -> tuple[bytes, int]:
    """The bytes that a length of two bytes precedes, and the place behind them."""
    (length,) = struct.unpack_from("!H", data, at)
    if at + 2 + length > len(data):
        raise IndexError("a string is longer than the packet")
    return bytes(data[at + 2 : at + 2 + length]), at + 2 + length


def _number(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """A number of at most four bytes with seven bits each, and the place behind it."""
    number = 0
    for place in range(4):
        byte = data[at + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follow
            return number, at + place + 1
    raise IndexError("a number has more than four bytes")
