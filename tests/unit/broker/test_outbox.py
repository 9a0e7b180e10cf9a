"""The outbox accepts messages within its limits, counts them, and keeps only lasting ones between connections."""

from __future__ import annotations

import pytest

from broker.protocol.errors import MessageTooLarge, NotConnected, QueueFull
from broker.transport.outbox import MOST_TRIES, SMALL_BYTES, Outbox
from broker.transport.port import Outgoing


def message(size_bytes: int, *, lasting: bool = False, expiry_s: int | None = None) -> Outgoing:
    return Outgoing("x", b"x" * size_bytes, lasting=lasting, expiry_s=expiry_s)


@pytest.fixture
def outbox() -> Outbox:
    made = Outbox(max_messages=3, max_bytes=1_000)
    made.open(limit_bytes=2_000)
    return made


def test_messages_leave_in_the_order_they_came(outbox: Outbox) -> None:
    sent = [message(n) for n in (1, 2, 3)]
    for each in sent:
        outbox.put(each)
    assert [outbox.take() for _ in range(4)] == [*sent, None]


def test_a_closed_outbox_accepts_nothing() -> None:
    outbox = Outbox(max_messages=3, max_bytes=1_000)
    with pytest.raises(NotConnected, match="x was not published"):
        outbox.put(message(1))
    outbox.open(limit_bytes=100)
    assert outbox.is_open
    outbox.close()
    assert not outbox.is_open
    with pytest.raises(NotConnected):
        outbox.put(message(1))


def test_closing_drops_the_waiting_messages(outbox: Outbox) -> None:
    outbox.put(message(1))
    outbox.close()
    outbox.open(limit_bytes=2_000)
    assert outbox.is_empty
    assert outbox.take() is None


def test_lasting_messages_wait_for_the_next_connection_and_taken_ones_go_first(outbox: Outbox) -> None:
    first, passing, second = message(1, lasting=True), message(2), message(3, lasting=True)
    for each in (first, passing, second):
        outbox.put(each)
    assert outbox.take() == first
    outbox.close()
    later = message(4, lasting=True)
    outbox.put(later)
    with pytest.raises(NotConnected):
        outbox.put(passing)
    assert outbox.open(limit_bytes=2_000) == []
    assert [outbox.take() for _ in range(4)] == [first, second, later, None]
    for each in (first, second, later):
        outbox.complete(each)
    assert outbox.is_empty
    outbox.close()
    outbox.open(limit_bytes=2_000)
    assert outbox.take() is None


def test_lasting_messages_are_bounded_like_others(outbox: Outbox) -> None:
    outbox.close()
    for number in range(3):
        outbox.put(message(number, lasting=True))
    with pytest.raises(QueueFull, match="3 messages"):
        outbox.put(message(4, lasting=True))
    outbox.open(limit_bytes=2_000)
    for taken in [outbox.take() for _ in range(3)]:
        assert taken is not None
        outbox.complete(taken)
    outbox.put(message(900, lasting=True))
    with pytest.raises(QueueFull):
        outbox.put(message(900, lasting=True))


def test_a_small_lasting_message_has_room_when_others_fill_the_queue() -> None:
    outbox = Outbox(max_messages=3, max_bytes=1_000, reserve=2)
    outbox.open(limit_bytes=10_000)
    outbox.put(message(900))
    for number in (1, 2):
        outbox.put(message(number, lasting=True))
    for full_for in (
        message(1),
        message(SMALL_BYTES, lasting=True),
    ):  # of others, and of a lasting one that isn't small
        with pytest.raises(QueueFull):
            outbox.put(full_for)
    refusals = [message(number, lasting=True) for number in (3, 4)]
    for each in refusals:
        outbox.put(each)
    with pytest.raises(QueueFull, match="5 messages"):
        outbox.put(message(5, lasting=True))
    assert [outbox.take() for _ in range(5)][3:] == refusals


def test_nothing_leaves_while_it_is_closed(outbox: Outbox) -> None:
    kept = message(1, lasting=True)
    outbox.put(kept)
    for _ in range(MOST_TRIES):  # connections that end before they are accepted
        outbox.close()
        assert outbox.take() is None
    outbox.open(limit_bytes=2_000)
    assert outbox.take() is kept
    outbox.complete(kept)
    assert outbox.is_empty


def test_a_lasting_message_is_kept_until_it_expires() -> None:
    now_s = 100.0
    outbox = Outbox(max_messages=3, max_bytes=1_000, clock=lambda: now_s)
    short, long, endless = (message(1, lasting=True, expiry_s=expiry_s) for expiry_s in (5, 60, None))
    for each in (short, long, endless):
        outbox.put(each)
    now_s = 106.0
    assert outbox.open(limit_bytes=2_000) == [short]
    assert outbox.take() is long
    outbox.close()  # it was under way
    now_s = 161.0
    assert outbox.open(limit_bytes=2_000) == [long]
    assert [outbox.take(), outbox.take()] == [endless, None]


def test_a_message_that_ends_each_connection_is_not_sent_for_ever(outbox: Outbox) -> None:
    outbox.put(message(1, lasting=True))
    for _ in range(MOST_TRIES):
        assert outbox.take() is not None
        outbox.close()
        outbox.open(limit_bytes=2_000)
    assert outbox.take() is None
    assert outbox.is_empty


def test_a_lasting_message_that_is_too_large_for_the_next_broker_is_returned_and_dropped(outbox: Outbox) -> None:
    large, small = message(800, lasting=True), message(1, lasting=True)
    outbox.put(small)
    outbox.put(large)
    outbox.close()
    assert outbox.open(limit_bytes=500) == [large]
    assert [outbox.take(), outbox.take()] == [small, None]


def test_the_limit_applies_to_the_packet(outbox: Outbox) -> None:
    with pytest.raises(MessageTooLarge) as caught:
        outbox.put(message(1_990))
    assert caught.value.limit_bytes == 2_000
    assert caught.value.size_bytes > 2_000
    assert outbox.is_empty


def test_a_taken_message_counts_until_it_is_completed(outbox: Outbox) -> None:
    for _ in range(3):
        outbox.put(message(1))
    taken = outbox.take()
    assert taken is not None
    with pytest.raises(QueueFull, match="3 messages"):
        outbox.put(message(1))
    outbox.complete(taken)
    outbox.put(message(1))


def test_bytes_are_bounded_and_a_single_message_always_has_room(outbox: Outbox) -> None:
    outbox.put(message(1_500))
    with pytest.raises(QueueFull, match="publish x later"):
        outbox.put(message(1))
    taken = outbox.take()
    assert taken is not None
    outbox.complete(taken)
    assert outbox.is_empty
    outbox.put(message(1))
