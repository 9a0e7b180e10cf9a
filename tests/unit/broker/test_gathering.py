"""Packets that arrive fast are read together, and their events are handed over together, in order."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from broker.transport.gathering import Gathering
from broker.transport.port import Delivery, LinkEvent

LONG_S = 60.0  # longer than a test


class Link:
    """A connection whose packets are single bytes, of which one read takes so many; each gives one event."""

    def __init__(self, gather_s: float) -> None:
        self.got: list[LinkEvent] = []
        self.got_at_reads: list[int] = []  # how many events were handed over when each packet was read
        self.got_at_writes: list[int] = []
        self.gathering = Gathering(self.got.append, gather_s)
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.owes_acknowledgement = False
        self.at_a_time, self.unseen = 1, b""

    def arrive(self, packets: bytes) -> None:
        self.theirs.sendall(packets)

    def read(self) -> list[str]:
        self.gathering.read(self)
        return [event.topic for event in self.got if isinstance(event, Delivery)]

    def loop_read(self) -> int:
        read = self.unseen or self.ours.recv(self.at_a_time)
        data, self.unseen = read[:1], read[1:]
        if data:
            self.got_at_reads.append(len(self.got))
            self.gathering.emit(Delivery(data.decode(), b""))
        return 0 if data else 7

    def want_write(self) -> bool:
        return self.owes_acknowledgement

    def loop_write(self) -> int:
        self.got_at_writes.append(len(self.got))
        self.owes_acknowledgement = False
        return 0

    @property
    def has_unseen_bytes(self) -> bool:
        return bool(self.unseen)

    def has_bytes(self) -> bool:
        return bool(self.unseen) or bool(select.select([self.ours], [], [], 0)[0])


@pytest.fixture
def gathering() -> Iterator[Link]:
    link = Link(LONG_S)
    yield link
    for end in (link.ours, link.theirs):
        end.close()


def test_all_packets_that_are_there_are_read_before_the_first_event_is_handed_over(gathering: Link) -> None:
    gathering.arrive(b"abc")
    assert gathering.read() == ["a", "b", "c"]
    assert gathering.got_at_reads == [0, 0, 0]


def test_the_first_read_is_due_at_once_and_the_next_one_only_after_a_while(gathering: Link) -> None:
    assert gathering.gathering.wait_s == 0
    gathering.arrive(b"a")
    gathering.read()
    assert 0 < gathering.gathering.wait_s <= LONG_S


def test_nothing_waits_while_the_broker_waits_for_an_acknowledgement(gathering: Link) -> None:
    gathering.arrive(b"a")
    gathering.owes_acknowledgement = True
    gathering.read()
    assert gathering.gathering.wait_s == 0


@pytest.mark.parametrize("gather_s", [0.0, LONG_S])
def test_an_acknowledgement_is_written_before_its_event_is_handed_over(gather_s: float) -> None:
    link = Link(gather_s)
    link.arrive(b"a")
    link.owes_acknowledgement = True
    assert link.read() == ["a"]
    assert link.got_at_writes == [0]
    for end in (link.ours, link.theirs):
        end.close()


def test_the_end_of_a_connection_ends_a_read_and_what_came_before_is_handed_over(gathering: Link) -> None:
    gathering.arrive(b"ab")
    gathering.theirs.close()
    assert gathering.read() == ["a", "b"]


def test_packets_that_came_with_one_read_are_handed_over_together_and_no_other_read_is_tried() -> None:
    link = Link(0.0)
    link.at_a_time = 2
    link.arrive(b"abc")
    assert link.read() == ["a", "b"]
    assert link.got_at_reads == [0, 0]
    assert link.gathering.wait_s == 0
    assert link.read() == ["a", "b", "c"]
    for end in (link.ours, link.theirs):
        end.close()


def test_without_gathering_each_packet_is_read_alone_and_the_next_one_is_due_at_once() -> None:
    link = Link(0.0)
    link.arrive(b"ab")
    assert link.read() == ["a"]
    assert link.gathering.wait_s == 0
    assert link.read() == ["a", "b"]
    for end in (link.ours, link.theirs):
        end.close()
