"""PUBLISH packets as bytes: read as the client library writes and reads them, whatever the bytes are."""

from __future__ import annotations

import struct
from typing import Any, Literal
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers

from broker.protocol.errors import RemoteProtocolError
from broker.transport.port import Delivery, Outgoing
from broker.transport.publish_packet import MAX_PROPERTIES_BYTES, read_publish, write_publish

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"), max_size=20)
NAMES = {
    "response_topic": "ResponseTopic",
    "correlation": "CorrelationData",
    "content_type": "ContentType",
    "expiry_s": "MessageExpiryInterval",
}
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "response_topic": TEXT,
        "correlation": st.binary(max_size=200),
        "content_type": TEXT,
        "expiry_s": st.integers(0, 2**32 - 1),
    },
)
OTHERS = st.fixed_dictionaries(
    {},
    optional={
        "PayloadFormatIndicator": st.integers(0, 1),
        "TopicAlias": st.integers(1, 65_535),
        "UserProperty": st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    },
)


def packet_of(topic: str, payload: bytes, properties: bytes, packet_id: int | None = 7) -> bytes:
    """A packet without its fixed header."""
    name = topic.encode()
    mid = b"" if packet_id is None else struct.pack("!H", packet_id)
    return struct.pack("!H", len(name)) + name + mid + properties + payload


@given(TEXT, st.binary(max_size=300), VALUES, OTHERS, st.booleans())
def test_a_packet_gives_what_was_put_in(
    topic: str,
    payload: bytes,
    values: dict[str, Any],
    others: dict[str, Any],
    retain: bool,  # noqa: FBT001 - drawn
) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in ({NAMES[name]: value for name, value in values.items()} | others).items():
        setattr(properties, name, value)
    found = read_publish(0x32 | retain, bytearray(packet_of(topic, payload, properties.pack())))  # type: ignore[no-untyped-call]
    assert (found.qos, found.packet_id, found.topic) == (1, 7, topic)
    assert found.delivery == Delivery(topic, payload, retain, **values)


@given(TEXT.filter(bool), st.binary(max_size=300), VALUES, st.sampled_from([0, 1]), st.booleans())
def test_a_message_is_written_as_the_client_library_writes_it(
    topic: str,
    payload: bytes,
    values: dict[str, Any],
    qos: Literal[0, 1],
    retain: bool,  # noqa: FBT001 - drawn
) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, NAMES[name], value)
    theirs = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    theirs._sock, theirs._packet_queue = Mock(), Mock()  # type: ignore[method-assign]
    theirs._send_publish(7, topic.encode(), payload, qos, retain, properties=properties)
    (_, expected, *_) = theirs._packet_queue.call_args.args
    message = Outgoing("x", payload, qos=qos, retain=retain)
    for name, value in {"topic": topic, **values}.items():
        object.__setattr__(message, name, value)  # also topics that mustn't be published to
    assert write_publish(message, 7) == bytes(expected)


@pytest.mark.parametrize("size", [0, 100, 127 - 4, 128 - 4, 16_383 - 4, 16_384 - 4, 2_097_151 - 4, 2_097_152 - 4])
def test_the_length_of_a_packet_has_as_many_bytes_as_it_needs(size: int) -> None:
    written = write_publish(Outgoing("x", bytes(size), qos=0), 0)
    digits = {127: 1, 16_383: 2, 2_097_151: 3}
    length = next((number for most, number in digits.items() if size + 4 <= most), 4)
    assert len(written) == 1 + length + 4 + size
    assert VariableByteIntegers.decode(written[1:]) == (size + 4, length)  # type: ignore[no-untyped-call]


@given(st.integers(0, 255), st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(flags: int, packet: bytes) -> None:
    try:
        found = read_publish(flags, packet)
    except RemoteProtocolError:
        return
    assert found.delivery is not None


@pytest.mark.parametrize("too_long", [False, True])
def test_properties_beyond_the_limit_are_not_read(*, too_long: bool) -> None:
    pair = b"\x26\0\1a\0\1b"
    number = MAX_PROPERTIES_BYTES // len(pair) + too_long
    length = number * len(pair)
    prefix = bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14))
    found = read_publish(0x30, packet_of("x", b"payload", prefix + number * pair, None))
    assert found.delivery == (None if too_long else Delivery("x", b"payload"))


@pytest.mark.parametrize(
    "packet", [b"\x00\x01\xff\x00", b"\x00\x01x\x04\x03\x00\x01\xff", b"\x00\x01x\x04\x08\x00\x01\xff"]
)
def test_a_text_that_is_not_utf8_costs_its_message_and_not_the_connection(packet: bytes) -> None:
    assert read_publish(0x30, packet).delivery is None
