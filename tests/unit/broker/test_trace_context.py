"""W3C's ``traceparent``: which values count, by the examples and rules of the recommendation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.errors import LocalProtocolError
from broker.protocol.trace_context import read_traceparent, trace_id_of
from broker.transport.port import Outgoing
from broker.transport.publish_packet import read_publish, write_publish

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"


def test_a_valid_one_counts_as_it_is() -> None:
    assert read_traceparent(VALID) == VALID
    assert trace_id_of(VALID) == TRACE


@pytest.mark.parametrize(
    ("value", "counts_as"),
    [
        (f"cc-{TRACE}-{PARENT}-01", VALID),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-says", VALID),
        (f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-{PARENT}-03"),
    ],
    ids=["later-version", "longer", "unknown-flags"],
)
def test_a_later_version_counts_by_what_is_known(value: str, counts_as: str) -> None:
    assert read_traceparent(value) == counts_as


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        (VALID, VALID),
        (f"ff-{TRACE}-{PARENT}-01",),
        (f"{VALID}-more",),
        (f"cc-{TRACE}-{PARENT}-01.more",),
        (f"00-{'0' * 32}-{PARENT}-01",),
        (f"00-{TRACE}-{'0' * 16}-01",),
        (VALID.upper(),),
        (f" {VALID}",),
        (f"{VALID}\n",),
        (f"00-{TRACE[:-1]}٣-{PARENT}-01",),
        (VALID[:-1],),
    ],
)
def test_others_do_not_count(values: tuple[str, ...]) -> None:
    assert read_traceparent(*values) is None


@given(st.lists(st.text(), max_size=2))
def test_any_text_counts_or_not(values: list[str]) -> None:
    found = read_traceparent(*values)
    assert found is None or read_traceparent(found) == found


def packet_with(*values: bytes) -> bytes:
    """A PUBLISH packet with these user properties called ``traceparent``."""
    pairs = b"".join(b"\x26\x00\x0btraceparent" + len(value).to_bytes(2, "big") + value for value in values)
    return b"\x00\x01x" + bytes((len(pairs) & 0x7F | 0x80, len(pairs) >> 7)) + pairs + b"payload"


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([VALID.encode()], VALID),
        ([VALID.encode()] * 2, None),
        ([b"no-trace-parent"], None),
        ([b"\xff\xfe" * 30], None),
        ([b"0" * 10_000], None),
    ],
    ids=["valid", "two", "malformed", "not-utf8", "long"],
)
def test_a_wrong_user_property_never_costs_its_message(values: list[bytes], read: str | None) -> None:
    found = read_publish(0x30, packet_with(*values)).delivery
    assert found is not None
    assert (found.payload, found.traceparent) == (b"payload", read)


def test_a_message_is_sent_with_its_user_property() -> None:
    packet = write_publish(Outgoing("x", b"payload", qos=0, traceparent=VALID), 0)
    assert packet.endswith(packet_with(VALID.encode())[3 + 2 :])
    assert len(packet) <= Outgoing("x", b"payload", qos=0, traceparent=VALID).packet_bytes
    with pytest.raises(LocalProtocolError, match="leave it out"):
        Outgoing("x", b"", traceparent="no-trace-parent")
