"""The bytes of a simulated device's MQTT packets: written as MQTT 5 says, and read however a stream cuts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.errors import LocalProtocolError, RemoteProtocolError
from s2m3.bench.fleet import packets
from s2m3.bench.fleet.packets import Accepted, Acknowledged, Ended, Message, Packet, Reader, Subscribed

WRITTEN = [
    (
        packets.connect("gw-a", keepalive_s=3, will_topic="t/w", will=b"gone"),
        # flags: will retain, will QoS 1, will, clean start
        "10 1d  0004 4d515454 05 2e 0003 00  0004 67772d61  00 0003 742f77 0004 676f6e65",
    ),
    (packets.subscribe(1, ["a", "b/+"]), "82 0d  0001 00  0001 61 01  0003 622f2b 01"),
    (packets.publish("a/b", b"x"), "30 07  0003 612f62 00 78"),
    (packets.publish("a/b", b"x", retain=True, packet_id=258), "33 09  0003 612f62 0102 00 78"),
    (packets.publish("a", bytes(130)), "30 8601  0001 61 00" + "00" * 130),
    (packets.puback(7), "40 02 0007"),
    (packets.DISCONNECT, "e0 00"),
]

READ: list[tuple[str, Packet | None]] = [
    ("20 03  00 00 00", Accepted(0)),
    ("20 03  00 87 00", Accepted(0x87)),
    ("20 06  00 00 03 21 0014", Accepted(0)),  # with a receive maximum
    ("90 05  0001 00 01 80", Subscribed(1, b"\x01\x80")),
    ("40 02  0102", Acknowledged(258, 0)),
    ("40 03  0102 10", Acknowledged(258, 0x10)),
    ("40 04  0102 87 00", Acknowledged(258, 0x87)),
    ("30 07  0003 612f62 00 78", Message("a/b", b"x", retain=False, packet_id=0)),
    ("31 06  0003 612f62 00", Message("a/b", b"", retain=True, packet_id=0)),
    ("32 0e  0003 612f62 0007 05 02 0000001e 78", Message("a/b", b"x", retain=False, packet_id=7)),  # with an expiry
    ("e0 02  8e 00", Ended(0x8E)),
    ("e0 00", Ended(0)),
    ("d0 00", None),
]
STREAM = b"".join(bytes.fromhex(text) for text, _ in READ)
PACKETS = [packet for _, packet in READ if packet is not None]


@pytest.mark.parametrize(("data", "expected"), WRITTEN)
def test_a_packet_is_written_as_mqtt_5_says(data: bytes, expected: str) -> None:
    assert data == bytes.fromhex(expected)


@pytest.mark.parametrize(("text", "packet"), READ)
def test_a_packet_is_read(text: str, packet: Packet | None) -> None:
    assert Reader().feed(bytes.fromhex(text)) == ([] if packet is None else [packet])


@pytest.mark.parametrize("text", [text for text, _ in READ])
def test_a_part_of_a_packet_is_none_yet(text: str) -> None:
    data = bytes.fromhex(text)
    for size in range(len(data)):
        assert Reader().feed(data[:size]) == []


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_packets_are_read_however_the_stream_is_cut(cuts: list[int]) -> None:
    reader, ends = Reader(), [0, *sorted(cuts), len(STREAM)]
    found = [packet for at, end in pairwise(ends) for packet in reader.feed(STREAM[at:end])]
    assert found == PACKETS


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.binary(max_size=300),
    st.booleans(),
    st.integers(0, 0xFFFF),
)
def test_a_message_that_is_written_is_read(topic: str, payload: bytes, retain: bool, packet_id: int) -> None:  # noqa: FBT001 - drawn
    data = packets.publish(topic, payload, retain=retain, packet_id=packet_id)
    assert Reader().feed(data) == [Message(topic, payload, retain, packet_id)]


@pytest.mark.parametrize(
    "text",
    [
        "30 ff ff ff ff",  # a length of more than four bytes
        "30 01  00",  # a topic without a length
        "30 05  0009 612f62",  # a topic that ends behind the packet
        "30 06  0003 612f62 09",  # properties that end behind the packet
        "30 06  0003 61ff62 00",  # a topic that isn't UTF-8
        "20 01  00",
        "82 06  0001 00 0001 61",  # a packet that only clients send
        "f0 00",
    ],
)
def test_malformed_bytes_are_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Reader().feed(bytes.fromhex(text))


def test_a_packet_larger_than_mqtt_allows_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "_MAX_REMAINING", 100)
    with pytest.raises(LocalProtocolError, match="at most 100 bytes, got 104"):
        packets.publish("a", bytes(100))
