"""The faults of the in-memory broker: each has its effect, in a fixed order, and ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from broker.protocol.errors import LocalProtocolError, MessageTooLarge, NotConnected
from broker.transport.memory import MemoryBroker, MemoryTransport, matches
from broker.transport.port import Delivery, LinkDown, LinkEvent, LinkUp, Outgoing, WillFor

if TYPE_CHECKING:
    from tests.conftest import Recorder


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def connect(
    broker: MemoryBroker, make_recorder: Callable[[], Recorder]
) -> Callable[..., tuple[MemoryTransport, Recorder]]:
    def connected(client_id: str, *filters: str, will: WillFor | None = None) -> tuple[MemoryTransport, Recorder]:
        inbox = make_recorder()
        transport = MemoryTransport(broker, client_id=client_id, inbox=inbox, will=will)
        transport.subscribe(*filters)
        transport.start()
        return transport, inbox

    return connected


Connect = Callable[..., tuple[MemoryTransport, "Recorder"]]


def payloads(inbox: Recorder) -> list[bytes]:
    return [delivery.payload for delivery in inbox.deliveries]


@pytest.mark.parametrize(
    ("topic_filter", "topic", "fits"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("+/b", "a/b", True),
        ("a/+/c", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("+", "a", True),
        ("+", "/a", False),
        ("+/a", "/a", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
    ],
)
def test_a_filter_matches_as_mqtt_defines(topic_filter: str, topic: str, *, fits: bool) -> None:
    assert matches(topic_filter, topic) is fits


def test_a_partition_is_seen_by_both_sides_and_heals(broker: MemoryBroker, connect: Connect) -> None:
    _, witness = connect("witness", "state", "x")
    transport, inbox = connect("a", "x", will=lambda session: Outgoing("state", b"gone %d" % session, retain=True))
    with broker.partitioned("a"):
        assert not transport.connected
        assert payloads(witness) == [b"gone 2"]
        with pytest.raises(NotConnected):
            transport.publish(Outgoing("x", b"lost"))
    transport.publish(Outgoing("x", b"back"))
    assert inbox.events == (LinkUp(2), LinkDown("the connection was lost"), LinkUp(3), Delivery("x", b"back"))
    assert payloads(witness) == [b"gone 2", b"back"]


def test_a_client_that_starts_while_cut_off_connects_when_it_heals(broker: MemoryBroker, connect: Connect) -> None:
    with broker.partitioned("a"):
        transport, inbox = connect("a", "x")
        assert inbox.events == ()
    assert transport.connected


def test_a_crashed_client_receives_nothing_and_its_will_is_published(broker: MemoryBroker, connect: Connect) -> None:
    other, witness = connect("witness", "state")
    transport, inbox = connect("a", "x", will=lambda session: Outgoing("state", b"gone %d" % session, retain=True))
    broker.crash("a")
    other.publish(Outgoing("x", b"unheard"))
    assert inbox.events == (LinkUp(2),)
    assert payloads(witness) == [b"gone 2"]
    with pytest.raises(NotConnected):
        transport.publish(Outgoing("x", b""))
    broker.restart()
    assert inbox.events == (LinkUp(2),)


def test_a_client_that_never_started_cant_crash(broker: MemoryBroker) -> None:
    with pytest.raises(LocalProtocolError, match="'nobody' is started"):
        broker.crash("nobody")


@pytest.mark.parametrize("keep_retained", [True, False])
def test_a_restart_ends_every_connection_without_its_will(
    broker: MemoryBroker, connect: Connect, *, keep_retained: bool
) -> None:
    transport, inbox = connect("a", "state", will=lambda _session: Outgoing("state", b"will", retain=True))
    transport.publish(Outgoing("state", b"kept", retain=True))
    broker.restart(keep_retained=keep_retained)
    kept = [Delivery("state", b"kept", retain=True)] if keep_retained else []
    assert list(inbox.events[2:]) == [LinkDown("the broker went away"), LinkUp(2), *kept]


def test_a_client_id_taken_over_ends_the_older_connection_for_good(broker: MemoryBroker, connect: Connect) -> None:
    old, old_inbox = connect("a", "x", will=lambda session: Outgoing("state", b"gone %d" % session, retain=True))
    _, witness = connect("witness", "state")
    new, new_inbox = connect("a", "x")
    assert (old.connected, new.connected) == (False, True)
    assert old_inbox.events[-1] == LinkDown("the broker ended the connection: session taken over")
    assert payloads(witness) == [b"gone 1"]
    old.close()
    broker.restart()
    assert [event for event in new_inbox.events if isinstance(event, LinkUp)] == [LinkUp(3), LinkUp(5)]


def test_an_inbox_may_publish_and_each_receiver_keeps_its_order(broker: MemoryBroker) -> None:
    heard: list[bytes] = []

    def inbox(event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            if event.payload == b"question":
                transport.publish(Outgoing("x", b"answer"))
            heard.append(event.payload)

    transport = MemoryTransport(broker, client_id="a", inbox=inbox)
    transport.subscribe("x")
    transport.start()
    transport.publish(Outgoing("x", b"question"))
    assert heard == [b"question", b"answer"]


def test_many_threads_lose_nothing_and_each_keeps_its_order(connect: Connect) -> None:
    _, inbox = connect("listener", "x")
    transports = [connect(f"writer-{number}")[0] for number in range(4)]

    def write(number: int) -> None:
        for count in range(200):
            transports[number].publish(Outgoing("x", bytes((number, count))))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inbox.wait_for(Delivery, count=800)
    for number in range(4):
        assert [p[1] for p in payloads(inbox) if p[0] == number] == list(range(200))


def test_the_brokers_limit_counts_the_packet(make_recorder: Callable[[], Recorder]) -> None:
    transport = MemoryTransport(MemoryBroker(max_packet_bytes=1_000), client_id="a", inbox=make_recorder())
    transport.start()
    with pytest.raises(MessageTooLarge):
        transport.publish(Outgoing("x", b"x" * 900, content_type="c" * 100))
    transport.publish(Outgoing("x", b"x" * 900))
