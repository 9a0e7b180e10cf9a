"""The promises of every transport (``broker.transport.port``): memory, Mosquitto without and with TLS, embedded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from broker.protocol.codec import MAX_CONTROL_BYTES
from broker.protocol.errors import LocalProtocolError, MessageTooLarge, NotConnected, TransportError
from broker.transport.connection import parse_url
from broker.transport.memory import MemoryBroker, MemoryTransport
from broker.transport.paho import MqttTransport
from broker.transport.port import (
    MAX_CONTROL_PACKET_BYTES,
    Acknowledged,
    Delivery,
    Inbox,
    LinkDown,
    LinkEvent,
    LinkUp,
    Outgoing,
    Subscribed,
    Transport,
    Undelivered,
    WillFor,
)
from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from s2m3.testbed.proxy import Proxy
    from tests.conftest import Recorder

MAX_PACKET_BYTES = 2_000_000  # of the transports here, so that "too large" is cheap to test


class MemoryWorld:
    """Transports over the in-memory broker."""

    reports_undelivered = True

    def __init__(self) -> None:
        self.broker = MemoryBroker(max_packet_bytes=MAX_PACKET_BYTES)
        self._stack = ExitStack()

    def make(
        self, client_id: str, inbox: Inbox, will: WillFor | None = None, max_packet_bytes: int = MAX_PACKET_BYTES
    ) -> Transport:
        transport = MemoryTransport(
            self.broker, client_id=client_id, inbox=inbox, will=will, max_packet_bytes=max_packet_bytes
        )
        self._stack.callback(transport.close)
        return transport

    def cut(self, client_id: str) -> None:
        """The connection breaks; the client may make a new one."""
        with self.broker.partitioned(client_id):
            pass

    def crash(self, client_id: str) -> None:
        """The client is gone, without a goodbye."""
        self.broker.crash(client_id)

    def close(self) -> None:
        self._stack.close()


class MqttWorld:
    """Transports over a real broker, each by way of a proxy that can be cut."""

    def __init__(self, url: str, proxy_to: Callable[..., Proxy], *, reports_undelivered: bool) -> None:
        self.reports_undelivered = reports_undelivered
        self._url = url
        self._proxy_to = proxy_to
        self._proxies: dict[str, Proxy] = {}
        self._stack = ExitStack()

    def make(
        self, client_id: str, inbox: Inbox, will: WillFor | None = None, max_packet_bytes: int = MAX_PACKET_BYTES
    ) -> Transport:
        proxy = self._proxies[client_id] = self._proxy_to(self._url)
        transport = MqttTransport(
            parse_url(proxy.url), client_id=client_id, inbox=inbox, will=will, max_packet_bytes=max_packet_bytes
        )
        self._stack.callback(transport.close)
        return transport

    def cut(self, client_id: str) -> None:
        self._proxies[client_id].disconnect()

    def crash(self, client_id: str) -> None:
        self._proxies[client_id].close()

    def close(self) -> None:
        self._stack.close()


World = MemoryWorld | MqttWorld


@pytest.fixture(params=["memory", "mosquitto", "mosquitto_tls", "embedded"])
def world(request: pytest.FixtureRequest, proxy_to: Callable[..., Proxy]) -> Iterator[World]:
    made: World
    if request.param == "memory":
        made = MemoryWorld()
    else:
        url = request.getfixturevalue(f"{request.param}_url")
        made = MqttWorld(url, proxy_to, reports_undelivered=request.param != "embedded")
    yield made
    made.close()


@pytest.fixture
def connect(
    world: World, unique_prefix: str, make_recorder: Callable[[], Recorder]
) -> Callable[..., tuple[Transport, Recorder]]:
    """Makes a transport that is up, and its inbox."""

    def connected(
        name: str,
        *filters: str,
        will: WillFor | None = None,
        also: Inbox = lambda _event: None,
        max_packet_bytes: int = MAX_PACKET_BYTES,
    ) -> tuple[Transport, Recorder]:
        recorder = make_recorder()

        def inbox(event: LinkEvent) -> None:
            recorder(event)
            also(event)

        transport = world.make(f"{unique_prefix}-{name}", inbox, will, max_packet_bytes)
        transport.subscribe(*filters)
        transport.start()
        recorder.wait_for(LinkUp)
        return transport, recorder

    return connected


Connect = Callable[..., tuple[Transport, "Recorder"]]


def test_a_message_published_at_link_up_reaches_its_own_subscription(connect: Connect, unique_prefix: str) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x")
    transport.publish(Outgoing(f"{unique_prefix}/x", b"hello"))
    assert inbox.wait_for(Delivery) == Delivery(f"{unique_prefix}/x", b"hello")


def test_a_filter_added_while_connected_delivers(connect: Connect, unique_prefix: str) -> None:
    transport, inbox = connect("a")
    transport.subscribe(f"{unique_prefix}/x", f"{unique_prefix}/y")
    transport.publish(Outgoing(f"{unique_prefix}/y", b"later"))
    assert inbox.wait_for(Delivery).payload == b"later"


def test_a_filter_is_confirmed_where_that_is_asked_for(connect: Connect, unique_prefix: str) -> None:
    here, away = f"{unique_prefix}/here", f"{unique_prefix}/away"
    transport, inbox = connect("a", away)
    transport.publish(Outgoing(here, b"kept", retain=True))
    transport.subscribe(here, confirm=True)
    assert inbox.wait_for(Subscribed).filter == here
    inbox.wait_for(lambda event: getattr(event, "payload", b"") == b"kept")
    assert sum(isinstance(event, Subscribed) for event in inbox.events) == 1
    transport.publish(Outgoing(here, b"", retain=True))


def test_what_is_published_together_arrives_in_order_also_if_the_block_fails(
    connect: Connect, unique_prefix: str
) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/#")
    sizes = [10, 0, 70_000, 500_000, 3]
    with suppress(ZeroDivisionError), transport.together():
        for number, size in enumerate(sizes):
            transport.publish(Outgoing(f"{unique_prefix}/{number}", bytes(size), qos=1 if number else 0))
        raise ZeroDivisionError
    transport.publish(Outgoing(f"{unique_prefix}/last", b""))
    inbox.wait_for(Delivery, count=len(sizes) + 1)
    got = [(each.topic.rpartition("/")[2], len(each.payload)) for each in inbox.deliveries]
    assert got == [*((str(number), size) for number, size in enumerate(sizes)), ("last", 0)]


def test_connected_tells_whether_there_is_a_connection(world: World, unique_prefix: str, recorder: Recorder) -> None:
    transport = world.make(unique_prefix, recorder)
    assert not transport.connected
    transport.start()
    recorder.wait_for(LinkUp)
    assert transport.connected
    transport.close()
    assert not transport.connected


def test_publishing_without_a_connection_is_an_error_at_once(
    world: World, unique_prefix: str, recorder: Recorder
) -> None:
    transport = world.make(unique_prefix, recorder)
    with pytest.raises(NotConnected):
        transport.publish(Outgoing("x", b""))
    transport.start()
    recorder.wait_for(LinkUp)
    transport.close()
    with pytest.raises(NotConnected):
        transport.publish(Outgoing("x", b""))


def test_a_lasting_message_waits_for_the_connection(
    world: World, unique_prefix: str, recorder: Recorder, connect: Connect
) -> None:
    _, listener = connect("listener", f"{unique_prefix}/answers")
    transport = world.make(f"{unique_prefix}-a", recorder)
    transport.publish(Outgoing(f"{unique_prefix}/answers", b"late", lasting=True))
    transport.start()
    assert listener.wait_for(Delivery).payload == b"late"
    transport.publish(Outgoing(f"{unique_prefix}/answers", b"next", lasting=True))
    listener.wait_for(Delivery, count=2)
    assert [delivery.payload for delivery in listener.deliveries] == [b"late", b"next"]


def test_a_lasting_message_needs_qos_1() -> None:
    with pytest.raises(LocalProtocolError, match="use QoS 1"):
        Outgoing("x", b"", qos=0, lasting=True)


def test_retained_state_reaches_a_late_subscriber_and_is_marked(connect: Connect, unique_prefix: str) -> None:
    writer, _ = connect("writer")
    _, witness = connect("witness", f"{unique_prefix}/state")
    writer.publish(Outgoing(f"{unique_prefix}/state", b"one", retain=True))
    writer.publish(Outgoing(f"{unique_prefix}/state", b"two", retain=True))
    witness.wait_for(Delivery, count=2)
    assert [delivery.retain for delivery in witness.deliveries] == [False, False]
    _, late = connect("late", f"{unique_prefix}/+")
    assert late.wait_for(Delivery) == Delivery(f"{unique_prefix}/state", b"two", retain=True)


def test_an_empty_retained_message_clears_the_state(connect: Connect, unique_prefix: str) -> None:
    writer, heard = connect("writer", f"{unique_prefix}/#")
    writer.publish(Outgoing(f"{unique_prefix}/gone", b"one", retain=True))
    writer.publish(Outgoing(f"{unique_prefix}/gone", b"", retain=True))
    writer.publish(Outgoing(f"{unique_prefix}/kept", b"two", retain=True))
    heard.wait_for(Delivery, count=3)
    _, late = connect("late", f"{unique_prefix}/gone", f"{unique_prefix}/kept")
    late.wait_for(Delivery)
    assert [delivery.topic for delivery in late.deliveries] == [f"{unique_prefix}/kept"]


def test_a_crash_publishes_the_will_with_the_session_number_of_link_up(
    world: World, connect: Connect, unique_prefix: str
) -> None:
    _, witness = connect("witness", f"{unique_prefix}/state")
    _, inbox = connect(
        "agent", will=lambda session: Outgoing(f"{unique_prefix}/state", b"gone %d" % session, retain=True)
    )
    session = inbox.wait_for(LinkUp).session
    world.crash(f"{unique_prefix}-agent")
    assert witness.wait_for(Delivery).payload == b"gone %d" % session


def test_each_connection_has_a_new_session_and_a_new_will(world: World, connect: Connect, unique_prefix: str) -> None:
    _, witness = connect("witness", f"{unique_prefix}/state")
    _, inbox = connect(
        "agent", will=lambda session: Outgoing(f"{unique_prefix}/state", b"gone %d" % session, retain=True)
    )
    world.cut(f"{unique_prefix}-agent")
    second = inbox.wait_for(LinkUp, count=2)
    first = inbox.wait_for(LinkUp)
    assert first.session != second.session
    assert witness.wait_for(Delivery).payload == b"gone %d" % first.session
    world.cut(f"{unique_prefix}-agent")
    assert witness.wait_for(Delivery, count=2).payload == b"gone %d" % second.session


def test_the_will_is_retained_for_late_subscribers(world: World, connect: Connect, unique_prefix: str) -> None:
    _, witness = connect("witness", f"{unique_prefix}/state")
    connect("agent", will=lambda _session: Outgoing(f"{unique_prefix}/state", b"offline", retain=True))
    world.crash(f"{unique_prefix}-agent")
    witness.wait_for(Delivery)
    _, late = connect("late", f"{unique_prefix}/state")
    assert late.wait_for(Delivery) == Delivery(f"{unique_prefix}/state", b"offline", retain=True)


def test_a_clean_close_sends_published_messages_and_no_will(connect: Connect, unique_prefix: str) -> None:
    _, witness = connect("witness", f"{unique_prefix}/#")
    transport, _ = connect("agent", will=lambda _session: Outgoing(f"{unique_prefix}/state", b"will", retain=True))
    for number in range(50):
        transport.publish(Outgoing(f"{unique_prefix}/last", b"%d" % number))
    transport.close()
    other, _ = connect("other")
    other.publish(Outgoing(f"{unique_prefix}/end", b""))
    witness.wait_for(lambda event: isinstance(event, Delivery) and event.topic.endswith("/end"))
    payloads = [delivery.payload for delivery in witness.deliveries]
    assert payloads == [*(b"%d" % number for number in range(50)), b""]


def test_close_is_safe_twice_and_before_start(world: World, unique_prefix: str, recorder: Recorder) -> None:
    transport = world.make(unique_prefix, recorder)
    transport.close()
    transport.close()
    with pytest.raises(TransportError, match="make a new one"):
        transport.start()
    assert recorder.events == ()


def test_no_event_comes_after_close(world: World, unique_prefix: str, recorder: Recorder) -> None:
    transport = world.make(unique_prefix, recorder)
    transport.start()
    recorder.wait_for(LinkUp)
    transport.close()
    recorder.clear()
    world.cut(unique_prefix)
    assert recorder.events == ()


def test_a_share_group_gets_each_message_once_and_all_members_take_turns(
    connect: Connect, unique_prefix: str, make_recorder: Callable[[], Recorder]
) -> None:
    group, everything = f"$share/group/{unique_prefix}/requests", make_recorder()
    members = [connect(name, group, f"{unique_prefix}/end", also=everything)[1] for name in ("a", "b")]
    sender, _ = connect("sender")
    sent = [b"%d" % number for number in range(20)]
    for payload in sent:
        sender.publish(Outgoing(f"{unique_prefix}/requests", payload))
    everything.wait_for(Delivery, count=20)
    sender.publish(Outgoing(f"{unique_prefix}/end", b"end"))
    for member in members:
        member.wait_for(lambda event: isinstance(event, Delivery) and event.payload == b"end")
    shares = [[d.payload for d in member.deliveries if d.topic.endswith("/requests")] for member in members]
    assert sorted(shares[0] + shares[1]) == sorted(sent)
    assert all(shares)


def test_a_share_group_and_a_plain_subscriber_both_get_a_message(connect: Connect, unique_prefix: str) -> None:
    _, member = connect("member", f"$share/group/{unique_prefix}/requests")
    _, listener = connect("listener", f"{unique_prefix}/requests")
    sender, _ = connect("sender")
    sender.publish(Outgoing(f"{unique_prefix}/requests", b"x"))
    assert member.wait_for(Delivery).payload == listener.wait_for(Delivery).payload == b"x"


def test_properties_travel_both_ways(connect: Connect, unique_prefix: str) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x")
    transport.publish(
        Outgoing(
            f"{unique_prefix}/x",
            b"\xff\xd8",
            response_topic=f"{unique_prefix}/clients/c/results/r",
            correlation=b"\x00\xff\x10",
            content_type="image/jpeg",
            expiry_s=600,
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
    )
    delivery = inbox.wait_for(Delivery)
    assert delivery.response_topic == f"{unique_prefix}/clients/c/results/r"
    assert delivery.correlation == b"\x00\xff\x10"
    assert delivery.content_type == "image/jpeg"
    assert delivery.traceparent == "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert 600 - PATIENCE_S < delivery.expiry_s <= 600


@pytest.mark.parametrize("qos", [0, 1])
def test_absent_properties_arrive_as_none(connect: Connect, unique_prefix: str, qos: int) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x")
    transport.publish(Outgoing(f"{unique_prefix}/x", b"", qos=1 if qos else 0))
    assert inbox.wait_for(Delivery) == Delivery(f"{unique_prefix}/x", b"")


def test_a_message_without_subscriber_comes_back_where_the_broker_reports_it(
    world: World, connect: Connect, unique_prefix: str
) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/heard")
    transport.publish(Outgoing(f"{unique_prefix}/nobody", b"x", token="one"))  # noqa: S106 - no password
    transport.publish(Outgoing(f"{unique_prefix}/nobody", b"x"))  # asked nothing
    transport.publish(Outgoing(f"{unique_prefix}/heard", b"x", token="two"))  # noqa: S106
    inbox.wait_for(Delivery)
    transport.close()  # waits for the acknowledgements
    told = [event for event in inbox.events if isinstance(event, Undelivered)]
    assert told == ([Undelivered(f"{unique_prefix}/nobody", "one")] if world.reports_undelivered else [])


def test_a_message_is_confirmed_on_demand(connect: Connect, unique_prefix: str) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x")
    transport.publish(Outgoing(f"{unique_prefix}/x", b"", retain=True))
    transport.publish(Outgoing(f"{unique_prefix}/nobody", b"", retain=True, token="mine", confirm=True))  # noqa: S106
    assert inbox.wait_for(Acknowledged) == Acknowledged(f"{unique_prefix}/nobody", "mine")
    transport.close()
    assert len([event for event in inbox.events if isinstance(event, Acknowledged)]) == 1


def test_an_oversize_message_is_refused_here_and_the_connection_lives_on(connect: Connect, unique_prefix: str) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x")
    with pytest.raises(MessageTooLarge) as caught:
        transport.publish(Outgoing(f"{unique_prefix}/x", b"x" * MAX_PACKET_BYTES))
    assert caught.value.limit_bytes == MAX_PACKET_BYTES
    transport.publish(Outgoing(f"{unique_prefix}/x", b"small"))
    assert inbox.wait_for(Delivery).payload == b"small"
    assert [type(event) for event in inbox.events] == [LinkUp, Delivery]


def test_a_control_connection_neither_sends_nor_receives_more_than_a_control_message(
    connect: Connect, unique_prefix: str
) -> None:
    """A large message reaches the others; a smaller one that comes after it reaches the control connection."""
    topic = f"{unique_prefix}/control"
    control, recorder = connect("control", topic, max_packet_bytes=MAX_CONTROL_PACKET_BYTES)
    other, everything = connect("other", topic)
    with pytest.raises(MessageTooLarge):
        control.publish(Outgoing(topic, bytes(MAX_CONTROL_PACKET_BYTES)))
    largest, last = bytes(MAX_CONTROL_BYTES), b"last"
    for payload in (bytes(MAX_CONTROL_PACKET_BYTES), largest, last):
        other.publish(Outgoing(topic, payload))
    recorder.wait_for(lambda event: isinstance(event, Delivery) and event.payload == last)
    assert [len(each.payload) for each in recorder.deliveries] == [len(largest), len(last)]
    everything.wait_for(Delivery, count=3)
    assert control.connected


def test_a_big_message_arrives_intact(connect: Connect, unique_prefix: str) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x")
    payload = os.urandom(1_000_000)
    transport.publish(Outgoing(f"{unique_prefix}/x", payload))
    assert inbox.wait_for(Delivery).payload == payload


def test_a_cut_connection_comes_back_with_all_its_subscriptions(
    world: World, connect: Connect, unique_prefix: str
) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x")
    transport.subscribe(f"{unique_prefix}/y")
    sender, _ = connect("sender")
    world.cut(f"{unique_prefix}-a")
    inbox.wait_for(LinkUp, count=2)
    kinds = [type(event) for event in inbox.events]
    assert kinds == [LinkUp, LinkDown, LinkUp]
    for topic in ("x", "y"):
        sender.publish(Outgoing(f"{unique_prefix}/{topic}", topic.encode()))
    inbox.wait_for(Delivery, count=2)
    assert {delivery.payload for delivery in inbox.deliveries} == {b"x", b"y"}  # two filters: any order


def test_a_filter_changed_while_the_link_is_down_counts_at_the_next_one(
    world: World, unique_prefix: str, recorder: Recorder, connect: Connect
) -> None:
    transport = world.make(f"{unique_prefix}-a", recorder)
    transport.subscribe(f"{unique_prefix}/old", f"{unique_prefix}/kept")
    transport.unsubscribe(f"{unique_prefix}/old")
    transport.start()
    recorder.wait_for(LinkUp)
    sender, _ = connect("sender")
    for name in ("old", "kept"):
        sender.publish(Outgoing(f"{unique_prefix}/{name}", name.encode()))
    recorder.wait_for(Delivery)
    assert [delivery.payload for delivery in recorder.deliveries] == [b"kept"]


def test_wildcards_match_as_mqtt_defines(connect: Connect, unique_prefix: str) -> None:
    sender, everything = connect("sender", f"{unique_prefix}/#")
    _, one_level = connect("one", f"{unique_prefix}/devices/+/state", f"{unique_prefix}/end")
    topics = ["devices/a/state", "devices/b/state", "devices/a/heartbeat", "devices/a/b/state", "end"]
    for topic in topics:
        sender.publish(Outgoing(f"{unique_prefix}/{topic}", b""))
    everything.wait_for(Delivery, count=5)
    one_level.wait_for(Delivery, count=3)
    assert [d.topic.removeprefix(f"{unique_prefix}/") for d in everything.deliveries] == topics
    heard = sorted(d.topic.removeprefix(f"{unique_prefix}/") for d in one_level.deliveries)  # two filters: any order
    assert heard == ["devices/a/state", "devices/b/state", "end"]


def test_an_unsubscribed_filter_delivers_no_more(connect: Connect, unique_prefix: str) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x", f"{unique_prefix}/end")
    transport.unsubscribe(f"{unique_prefix}/x")
    transport.publish(Outgoing(f"{unique_prefix}/x", b"x"))
    transport.publish(Outgoing(f"{unique_prefix}/end", b"end"))
    inbox.wait_for(Delivery)
    assert [delivery.payload for delivery in inbox.deliveries] == [b"end"]


def test_an_unsubscribed_filter_stays_away_after_a_reconnection(
    world: World, connect: Connect, unique_prefix: str
) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x", f"{unique_prefix}/end")
    transport.unsubscribe(f"{unique_prefix}/x")
    world.cut(f"{unique_prefix}-a")
    inbox.wait_for(LinkUp, count=2)
    transport.publish(Outgoing(f"{unique_prefix}/x", b"x"))
    transport.publish(Outgoing(f"{unique_prefix}/end", b"end"))
    inbox.wait_for(Delivery)
    assert [delivery.payload for delivery in inbox.deliveries] == [b"end"]


def test_messages_of_one_publisher_keep_their_order(connect: Connect, unique_prefix: str) -> None:
    transport, inbox = connect("a", f"{unique_prefix}/x")
    sent = [number.to_bytes(4, "big") * (1 + number % 7 * 500) for number in range(300)]
    for payload in sent:
        transport.publish(Outgoing(f"{unique_prefix}/x", payload))
    inbox.wait_for(Delivery, count=300)
    assert [delivery.payload for delivery in inbox.deliveries] == sent


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#", "a\0b", "x" * 70_000])
def test_a_topic_that_mqtt_forbids_cant_be_published_to(topic: str) -> None:
    with pytest.raises(LocalProtocolError, match="is not a valid topic to publish to"):
        Outgoing(topic, b"")
    with pytest.raises(LocalProtocolError, match="is not a valid topic to publish to"):
        Outgoing("fine", b"", response_topic=topic)


def test_an_expiry_below_a_second_cant_be_published() -> None:
    with pytest.raises(LocalProtocolError, match="expiry_s must be 1 to 4294967295 whole seconds, got 0"):
        Outgoing("fine", b"", expiry_s=0)
