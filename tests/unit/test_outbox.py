"""The outbox accepts what can go, counts what waits, and forgets all when the connection goes."""

from __future__ import annotations

import pytest

from broker.errors import MessageTooLarge, NotConnected, QueueFull
from broker.outbox import Outbox
from broker.transport import Outgoing


def message(size_bytes: int) -> Outgoing:
    return Outgoing("x", b"x" * size_bytes)


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


def test_nothing_is_accepted_before_it_is_opened_or_after_it_is_shut() -> None:
    outbox = Outbox(max_messages=3, max_bytes=1_000)
    with pytest.raises(NotConnected, match="x was not published"):
        outbox.put(message(1))
    outbox.open(limit_bytes=100)
    assert outbox.is_open
    outbox.shut()
    assert not outbox.is_open
    with pytest.raises(NotConnected):
        outbox.put(message(1))


def test_what_waits_is_forgotten_when_it_is_shut(outbox: Outbox) -> None:
    outbox.put(message(1))
    outbox.shut()
    outbox.open(limit_bytes=2_000)
    assert outbox.is_empty
    assert outbox.take() is None


def test_the_packet_counts_and_not_the_payload_alone(outbox: Outbox) -> None:
    with pytest.raises(MessageTooLarge) as caught:
        outbox.put(message(1_990))
    assert caught.value.limit_bytes == 2_000
    assert caught.value.size_bytes > 2_000
    assert outbox.is_empty


def test_a_taken_message_waits_until_it_is_done(outbox: Outbox) -> None:
    for _ in range(3):
        outbox.put(message(1))
    taken = outbox.take()
    assert taken is not None
    with pytest.raises(QueueFull, match="3 messages"):
        outbox.put(message(1))
    outbox.done(taken)
    outbox.put(message(1))


def test_bytes_are_bounded_and_a_single_message_always_has_room(outbox: Outbox) -> None:
    outbox.put(message(1_500))
    with pytest.raises(QueueFull, match="publish x later"):
        outbox.put(message(1))
    taken = outbox.take()
    assert taken is not None
    outbox.done(taken)
    assert outbox.is_empty
    outbox.put(message(1))
