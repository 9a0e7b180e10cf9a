"""The translation between MQTT 3.1.1 and 5, packet by packet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.errors import RemoteProtocolError
from broker.servers.plain_door import OtherVersion, Packet, from_5, packets_of, to_5

CONNECT_311 = b"\x00\x04MQTT\x04"


def field(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big") + text


@pytest.mark.parametrize(
    ("plain", "five"),
    [
        (CONNECT_311 + b"\x02\x00\x3c" + field(b"cam"), b"\x00\x04MQTT\x05\x02\x00\x3c\x00" + field(b"cam")),
        (b"\x00\x06MQIsdp\x03\x02\x00\x3c" + field(b"c"), b"\x00\x04MQTT\x05\x02\x00\x3c\x00" + field(b"c")),
        (
            CONNECT_311 + b"\x00\x00\x00" + field(b"cam"),  # a session that isn't clean
            b"\x00\x04MQTT\x05\x00\x00\x00\x05\x11\xff\xff\xff\xff" + field(b"cam"),
        ),
        (
            CONNECT_311 + b"\xc6\x00\x0a" + field(b"c") + field(b"will") + field(b"gone") + field(b"u") + field(b"p"),
            b"\x00\x04MQTT\x05\xc6\x00\x0a\x00"
            + field(b"c")
            + b"\x00"
            + field(b"will")
            + field(b"gone")
            + field(b"u")
            + field(b"p"),
        ),
    ],
)
def test_a_connect_gets_properties(plain: bytes, five: bytes) -> None:
    assert to_5(Packet(0x10, plain)) == Packet(0x10, five)


@pytest.mark.parametrize(
    ("head", "plain", "five"),
    [
        (0x30, field(b"a/b") + b"hi", field(b"a/b") + b"\x00hi"),
        (0x33, field(b"a/b") + b"\x00\x07hi", field(b"a/b") + b"\x00\x07\x00hi"),
        (0x82, b"\x00\x01" + field(b"a/#") + b"\x01", b"\x00\x01\x00" + field(b"a/#") + b"\x01"),
        (0xA2, b"\x00\x01" + field(b"a/#"), b"\x00\x01\x00" + field(b"a/#")),
        (0x40, b"\x00\x07", b"\x00\x07"),
        (0xC0, b"", b""),
        (0xE0, b"", b""),
    ],
)
def test_what_a_client_sends_gets_empty_properties(head: int, plain: bytes, five: bytes) -> None:
    assert to_5(Packet(head, plain)) == Packet(head, five)


@pytest.mark.parametrize(
    ("head", "five", "plain"),
    [
        (0x20, b"\x00\x00\x03\x22\x00\x0a", b"\x00\x00"),
        (0x20, b"\x01\x00\x00", b"\x01\x00"),
        (0x20, b"\x00\x86\x00", b"\x00\x04"),
        (0x20, b"\x00\x8a\x00", b"\x00\x05"),
        (0x30, field(b"a") + b"\x05\x03\x00\x02xy" + b"hi", field(b"a") + b"hi"),
        (0x32, field(b"a") + b"\x00\x07\x00hi", field(b"a") + b"\x00\x07hi"),
        (0x40, b"\x00\x07\x10\x00", b"\x00\x07"),
        (0x40, b"\x00\x07", b"\x00\x07"),
        (0x90, b"\x00\x01\x00\x01\x87", b"\x00\x01\x01\x80"),
        (0xB0, b"\x00\x01\x00\x11", b"\x00\x01"),
        (0xD0, b"", b""),
    ],
)
def test_what_a_client_receives_loses_its_properties(head: int, five: bytes, plain: bytes) -> None:
    assert from_5(Packet(head, five)) == Packet(head, plain)


def test_a_disconnect_of_the_broker_has_no_packet_in_3_1_1() -> None:
    assert from_5(Packet(0xE0, b"\x8e")) is None


def test_a_client_of_another_version_is_told_apart() -> None:
    with pytest.raises(OtherVersion):
        to_5(Packet(0x10, b"\x00\x04MQTT\x05\x02\x00\x3c\x00" + field(b"cam")))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 70_000])
def test_packets_are_cut_from_a_stream(size: int) -> None:
    packet = Packet(0x30, bytes(size))
    stream = packet.encoded() * 2
    buffer = bytearray(stream[:-1])
    assert list(packets_of(buffer)) == [packet]
    buffer += stream[-1:]
    assert list(packets_of(buffer)) == [packet]
    assert not buffer


def test_a_packet_that_no_broker_takes_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="at most"):
        list(packets_of(bytearray(b"\x30\xff\xff\xff\x7f")))
    with pytest.raises(RemoteProtocolError, match="more than 4 bytes"):
        list(packets_of(bytearray(b"\x30\xff\xff\xff\xff\x01")))


@given(st.binary(max_size=40))
def test_any_bytes_are_translated_or_refused(received: bytes) -> None:
    for translate in (to_5, from_5):
        try:
            for packet in packets_of(bytearray(received)):
                translate(packet)
        except RemoteProtocolError:
            continue
