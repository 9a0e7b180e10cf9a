"""The traps of MQTT, paho and the brokers: each was measured, and each test shows that it is avoided."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from broker.protocol.errors import MessageTooLarge, QueueFull
from broker.servers.embedded import EmbeddedBroker
from broker.transport.connection import parse_url
from broker.transport.dial import Dialer
from broker.transport.failures import CONNACK
from broker.transport.link import TOGETHER_BYTES
from broker.transport.mailbox import Mailbox
from broker.transport.mqtt_client import MqttClient, Reason
from broker.transport.paho import MOST_WRITTEN_NOW, MqttTransport
from broker.transport.port import Delivery, Denied, LinkDown, LinkEvent, LinkUp, Outgoing, Undelivered
from broker.transport.publish_packet import Published, write_publish
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from broker.servers.mosquitto import MosquittoBroker
    from s2m3.testbed.proxy import Proxy
    from tests.conftest import Recorder

MB = 1_000_000
RSS_LIMIT_BYTES = 200 * MB


@pytest.fixture
def connect(patience_s: float) -> Iterator[Callable[..., MqttTransport]]:
    """Makes transports, waits until they are up, and closes them."""
    with ExitStack() as stack:

        def connected(url: str, client_id: str, inbox: Callable[[Any], object], *filters: str, **more: Any) -> Any:
            up = threading.Event()

            def noticing(event: LinkEvent) -> None:
                if isinstance(event, LinkUp):
                    up.set()
                inbox(event)

            transport = MqttTransport(parse_url(url), client_id=client_id, inbox=noticing, **more)
            stack.callback(transport.close)
            transport.subscribe(*filters)
            transport.start()
            assert up.wait(patience_s)
            return transport

        yield connected


Connect = Callable[..., MqttTransport]


def _publish_until_full(transport: MqttTransport, messages: Iterable[Outgoing]) -> int:
    accepted = 0
    try:
        for message in messages:
            transport.publish(message)
            accepted += 1
    except QueueFull:
        return accepted
    pytest.fail("the queue has no bound")


# --- an oversize message is a poison pill: sent again and again, it blocks all others ---


def test_the_brokers_own_limit_is_kept_before_publishing(
    start_mosquitto: Callable[..., MosquittoBroker], connect: Connect, recorder: Recorder
) -> None:
    broker = start_mosquitto("max_packet_size 50000")
    transport = connect(broker.url, "a", recorder, "x")
    assert recorder.wait_for(LinkUp).max_packet_bytes == 50_000
    with pytest.raises(MessageTooLarge, match="raise the broker's max_packet_size"):
        transport.publish(Outgoing("x", b"x" * 50_000))
    transport.publish(Outgoing("x", b"x" * 49_900, content_type="a/b", correlation=b"c" * 16))
    assert len(recorder.wait_for(Delivery).payload) == 49_900
    assert not [event for event in recorder.events if isinstance(event, LinkDown)]


def test_a_message_that_made_the_broker_disconnect_is_never_resent(
    embedded_url: str, connect: Connect, recorder: Recorder, unique_prefix: str
) -> None:
    # This broker doesn't tell its limit, and our own is set too high on purpose.
    topic = f"{unique_prefix}/x"
    transport = connect(embedded_url, unique_prefix, recorder, topic, max_packet_bytes=64 * MB)
    transport.publish(Outgoing(topic, b"x" * 18 * MB))
    recorder.wait_for(LinkDown)
    recorder.wait_for(LinkUp, count=2)
    transport.publish(Outgoing(topic, b"small"))
    assert recorder.wait_for(Delivery).payload == b"small"
    assert len([event for event in recorder.events if isinstance(event, LinkDown)]) == 1


# --- acknowledged is not delivered ---


def test_a_lost_subscriber_is_reported_to_the_publisher(
    mosquitto_url: str,
    connect: Connect,
    make_recorder: Callable[[], Recorder],
    unique_prefix: str,
    proxy_to: Callable[..., Proxy],
) -> None:
    topic, way = f"{unique_prefix}/next-hop", proxy_to(mosquitto_url)
    told, heard = make_recorder(), make_recorder()
    publisher = connect(mosquitto_url, f"{unique_prefix}-publisher", told, f"{unique_prefix}/will")
    connect(
        way.url,
        f"{unique_prefix}-hop",
        heard,
        topic,
        will=lambda _session: Outgoing(f"{unique_prefix}/will", b"gone", retain=True),
    )
    publisher.publish(Outgoing(topic, b"1", token="first"))  # noqa: S106 - no password
    heard.wait_for(Delivery)
    way.close()
    told.wait_for(Delivery)  # the will: the broker knows
    publisher.publish(Outgoing(topic, b"2", token="second"))  # noqa: S106
    assert told.wait_for(Undelivered) == Undelivered(topic, "second")


def test_messages_beyond_the_bound_are_refused_and_the_others_arrive(
    mosquitto_url: str,
    connect: Connect,
    make_recorder: Callable[[], Recorder],
    unique_prefix: str,
    proxy_to: Callable[..., Proxy],
) -> None:
    slow = proxy_to(mosquitto_url, bytes_per_s=4 * MB)
    topic, heard = f"{unique_prefix}/x", make_recorder()
    connect(mosquitto_url, f"{unique_prefix}-subscriber", heard, topic)
    publisher = connect(slow.url, f"{unique_prefix}-publisher", make_recorder(), max_queued_bytes=2 * MB)
    accepted = _publish_until_full(publisher, (Outgoing(topic, bytes([n]) * 200_000) for n in range(100)))
    heard.wait_for(Delivery, count=accepted)
    assert [delivery.payload[0] for delivery in heard.deliveries] == list(range(accepted))
    assert accepted >= 9


@pytest.mark.parametrize("qos", [0, 1])
def test_the_number_of_waiting_messages_is_bounded_for_both_qos(
    mosquitto_url: str, connect: Connect, recorder: Recorder, unique_prefix: str, qos: Any
) -> None:
    blocked = threading.Event()
    inside = threading.Event()

    def inbox(event: LinkEvent) -> None:
        recorder(event)
        if isinstance(event, Delivery):
            inside.set()
            blocked.wait()

    topic = f"{unique_prefix}/x"
    transport = connect(mosquitto_url, unique_prefix, inbox, topic, max_queued=5)
    transport.publish(Outgoing(topic, b"", qos=0))
    assert inside.wait(PATIENCE_S)  # from here on the network thread writes nothing
    accepted = _publish_until_full(transport, (Outgoing(topic, b"", qos=qos) for _ in range(100)))
    blocked.set()
    assert accepted in {4, 5}  # the first one may not be acknowledged yet
    recorder.wait_for(Delivery, count=1 + accepted)


# --- slow work where the network is served fires the will ---


def test_a_service_that_hangs_for_more_than_its_keepalive_keeps_its_link(
    mosquitto_url: str, connect: Connect, make_recorder: Callable[[], Recorder], unique_prefix: str
) -> None:
    def will(name: str) -> Callable[[int], Outgoing]:
        return lambda _session: Outgoing(f"{unique_prefix}/wills/{name}", b"")

    released = threading.Event()
    witness = make_recorder()
    connect(mosquitto_url, f"{unique_prefix}-witness", witness, f"{unique_prefix}/wills/#")
    mailbox: Mailbox[LinkEvent] = Mailbox()  # never read
    topic = f"{unique_prefix}/work"
    healthy = connect(
        mosquitto_url, f"{unique_prefix}-healthy", mailbox.put_control, topic, will=will("healthy"), keepalive_s=2
    )

    def working_in_the_callback(event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            released.wait()

    hung = connect(
        mosquitto_url, f"{unique_prefix}-hung", working_in_the_callback, topic, will=will("hung"), keepalive_s=2
    )
    try:
        healthy.publish(Outgoing(topic, b"work"))
        # The hung one is our clock: its will comes when the broker has waited for more than the keepalive.
        witness.wait_for(lambda event: isinstance(event, Delivery) and event.topic.endswith("/hung"))
        assert healthy.connected
        assert [delivery.topic for delivery in witness.deliveries] == [f"{unique_prefix}/wills/hung"]
    finally:
        released.set()
    hung.close()


@pytest.mark.parametrize("slow_side", ["publisher", "subscriber"])
def test_a_transfer_that_takes_longer_than_the_keepalive_keeps_its_link(
    mosquitto_url: str,
    connect: Connect,
    make_recorder: Callable[[], Recorder],
    unique_prefix: str,
    proxy_to: Callable[..., Proxy],
    *,
    slow_side: str,
    patience_s: float,
) -> None:
    # The ping, or its answer, waits behind the message and comes seconds late.
    slow = proxy_to(mosquitto_url, bytes_per_s=4 * MB)
    urls = {"publisher": mosquitto_url, "subscriber": mosquitto_url, slow_side: slow.url}
    topic = f"{unique_prefix}/x"
    heard, mine = make_recorder(), make_recorder()
    connect(urls["subscriber"], f"{unique_prefix}-subscriber", heard, topic, keepalive_s=1)
    publisher = connect(urls["publisher"], f"{unique_prefix}-publisher", mine, keepalive_s=1)
    publisher.publish(Outgoing(topic, b"x" * 14 * MB))
    assert len(heard.wait_for(Delivery, timeout_s=4 * patience_s).payload) == 14 * MB
    publisher.publish(Outgoing(topic, b"after"))
    heard.wait_for(Delivery, count=2)
    assert [type(event) for event in mine.events] == [LinkUp]
    assert [type(event) for event in heard.events] == [LinkUp, Delivery, Delivery]


# --- an exception in a callback ends paho's thread, unnoticed ---


def test_an_inbox_that_raises_costs_one_event_and_not_the_connection(
    broker_url: str, connect: Connect, recorder: Recorder, unique_prefix: str
) -> None:
    def inbox(event: LinkEvent) -> None:
        recorder(event)
        if isinstance(event, Delivery) and event.payload == b"bad":
            raise RuntimeError("a bug in an inbox")

    topic = f"{unique_prefix}/x"
    transport = connect(broker_url, unique_prefix, inbox, topic)
    for payload in (b"bad", b"good", b"bad", b"good"):
        transport.publish(Outgoing(topic, payload))
    recorder.wait_for(Delivery, count=4)
    assert [type(event) for event in recorder.events] == [LinkUp, *[Delivery] * 4]
    assert transport.connected


def test_a_will_that_cant_be_made_is_retried(mosquitto_url: str, recorder: Recorder, unique_prefix: str) -> None:
    calls: list[int] = []

    def will(session: int) -> Outgoing:
        calls.append(session)
        if len(calls) == 1:
            raise RuntimeError("not ready")
        return Outgoing(f"{unique_prefix}/will", b"", retain=True)

    transport = MqttTransport(parse_url(mosquitto_url), client_id=unique_prefix, inbox=recorder, will=will)
    transport.start()
    assert recorder.wait_for(LinkDown).reason == "RuntimeError: not ready"
    assert recorder.wait_for(LinkUp).session == calls[1]
    transport.close()


# --- a small message waits behind a tensor ---


def test_a_control_message_on_its_own_connection_overtakes_a_tensor(
    mosquitto_url: str,
    connect: Connect,
    recorder: Recorder,
    unique_prefix: str,
    proxy_to: Callable[..., Proxy],
    *,
    patience_s: float,
) -> None:
    slow = proxy_to(mosquitto_url, bytes_per_s=8 * MB)  # both connections of the agent share one slow line
    ignore: Callable[[LinkEvent], None] = lambda _event: None  # noqa: E731
    connect(mosquitto_url, f"{unique_prefix}-all", recorder, f"{unique_prefix}/#")
    data = connect(slow.url, f"{unique_prefix}-data", ignore)
    control = connect(slow.url, f"{unique_prefix}-control", ignore)
    data.publish(Outgoing(f"{unique_prefix}/tensor", b"x" * 12 * MB))
    data.publish(Outgoing(f"{unique_prefix}/behind", b""))
    control.publish(Outgoing(f"{unique_prefix}/control", b""))
    recorder.wait_for(Delivery, count=3, timeout_s=4 * patience_s)
    order = [delivery.topic.removeprefix(f"{unique_prefix}/") for delivery in recorder.deliveries]
    assert order == ["control", "tensor", "behind"]


# --- rumqttd keeps delivered messages: gigabytes by default ---


def _peak_memory_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_the_embedded_brokers_memory_stays_bounded(
    connect: Connect, make_recorder: Callable[[], Recorder], unique_prefix: str
) -> None:
    topic = f"{unique_prefix}/tensors"
    on_their_way = 10  # a reader that lags by more than a segment, 16 MiB, loses messages
    arrived = threading.Semaphore(on_their_way)

    def count(event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            assert len(event.payload) == MB
            arrived.release()

    with EmbeddedBroker() as broker:
        consumer = connect(broker.url, "consumer", count, topic)
        publisher = connect(broker.url, "publisher", make_recorder())
        for _ in range(300):
            assert arrived.acquire(timeout=PATIENCE_S)
            publisher.publish(Outgoing(topic, b"x" * MB))
        for _ in range(on_their_way):
            assert arrived.acquire(timeout=PATIENCE_S)  # all 300 came
        assert broker._broker is not None
        assert broker._broker._process is not None
        peak_bytes = _peak_memory_bytes(broker._broker._process.pid)
        consumer.close()
        publisher.close()
    assert peak_bytes < RSS_LIMIT_BYTES


# --- Nagle's algorithm and delayed acknowledgements: 40 ms per message ---


def test_small_packets_leave_at_once(
    broker_url: str, connect: Connect, recorder: Recorder, unique_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[socket.socket] = []

    @functools.wraps(Dialer.open)
    def remembering(*args: Any, opening: Any = Dialer.open) -> socket.socket:
        sock: socket.socket = opening(*args)
        opened.append(sock)
        return sock

    monkeypatch.setattr(Dialer, "open", remembering)
    connect(broker_url, unique_prefix, recorder)
    assert [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in opened] == [1]


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux can be asked to acknowledge at once")
def test_what_was_read_is_acknowledged_at_once(
    broker_url: str, connect: Connect, recorder: Recorder, unique_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def reading(*args: Any, really: Any = MqttClient.loop_read) -> Any:
        steps.append("read")
        return really(*args)

    def setting(sock: socket.socket, *args: Any, really: Any = socket.socket.setsockopt) -> None:
        really(sock, *args)
        if args == (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1):
            steps.append("acknowledge")

    monkeypatch.setattr(MqttClient, "loop_read", reading)
    monkeypatch.setattr(socket.socket, "setsockopt", setting, raising=False)
    transport = connect(broker_url, unique_prefix, recorder, unique_prefix)
    for number in range(3):
        transport.publish(Outgoing(unique_prefix, str(number).encode()))
        recorder.wait_for(Delivery, count=number + 1)
    transport.close()
    in_turn = [step for step, _ in groupby(steps)]  # one read may have brought several packets
    reads = len(in_turn) // 2
    assert reads > 3
    assert in_turn == ["read", "acknowledge"] * reads


# --- thread hand-overs: each takes as long as a small message takes through the broker ---


def test_a_small_message_is_written_by_its_publisher_and_a_large_one_by_the_network_thread(
    broker_url: str, connect: Connect, recorder: Recorder, unique_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_here: list[bool] = []

    def writing(*args: Any, really: Any = MqttClient.send) -> Any:
        written_here.append(threading.current_thread() is threading.main_thread())
        return really(*args)

    monkeypatch.setattr(MqttClient, "send", writing)
    transport = connect(broker_url, unique_prefix, recorder, unique_prefix)

    def publish(size_bytes: int) -> bool:
        sent = len(written_here)
        transport.publish(Outgoing(unique_prefix, bytes(size_bytes)))
        recorder.wait_for(Delivery, count=sent + 1)
        return written_here[sent]

    assert not publish(2 * MOST_WRITTEN_NOW)
    until(lambda: publish(2_000))  # as soon as the network thread waits


def test_small_messages_that_are_published_together_wake_the_broker_once(
    broker_url: str, connect: Connect, recorder: Recorder, unique_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, flags = threading.main_thread(), list[int]()

    def sending(self: MqttClient, view: memoryview, really: Any = MqttClient._send_some) -> Any:
        if threading.current_thread() is main:
            flags.append(bool(self._out_packet))
        return really(self, view)

    monkeypatch.setattr(MqttClient, "_send_some", sending)
    transport = connect(broker_url, unique_prefix, recorder, unique_prefix)

    def publish() -> list[int]:
        flags.clear()
        sent = len(recorder.deliveries)
        with transport.together():
            for number in range(3):
                transport.publish(Outgoing(unique_prefix, bytes(number)))
            assert flags == []
        recorder.wait_for(Delivery, count=sent + 3)
        return flags

    until(lambda: publish() == [1, 1, 0])  # as soon as the network thread waits


def test_of_many_messages_that_are_published_together_only_some_are_held(
    broker_url: str, connect: Connect, recorder: Recorder, unique_prefix: str
) -> None:
    transport = connect(broker_url, unique_prefix, recorder, unique_prefix)
    with transport.together():
        for _ in range(3):
            transport.publish(Outgoing(unique_prefix, bytes(TOGETHER_BYTES // 2)))
        recorder.wait_for(Delivery, count=2)


def test_another_threads_message_isnt_held_with_those_that_are_published_together(
    broker_url: str, connect: Connect, recorder: Recorder, unique_prefix: str
) -> None:
    transport = connect(broker_url, unique_prefix, recorder, unique_prefix)
    with transport.together():
        other = threading.Thread(target=transport.publish, args=(Outgoing(unique_prefix, b"other"),))
        other.start()
        assert recorder.wait_for(Delivery).payload == b"other"
        other.join()


def test_what_several_threads_publish_at_once_arrives_whole_and_each_thread_in_order(
    broker_url: str, connect: Connect, recorder: Recorder, unique_prefix: str
) -> None:
    transport = connect(broker_url, unique_prefix, recorder, f"{unique_prefix}/+")
    sizes = [10, 5_000, 100, 70_000, 1_000] * 8

    def publish(name: str) -> None:
        for number, size in enumerate(sizes):
            transport.publish(Outgoing(f"{unique_prefix}/{name}", number.to_bytes(2, "big") * size))

    threads = [threading.Thread(target=publish, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.wait_for(Delivery, count=len(threads) * len(sizes))
    for name in "abc":
        got = [each.payload for each in recorder.deliveries if each.topic.endswith(name)]
        assert got == [number.to_bytes(2, "big") * size for number, size in enumerate(sizes)]


def test_an_error_of_a_publishers_write_ends_the_connection_and_not_the_publisher(
    mosquitto_url: str, connect: Connect, recorder: Recorder, unique_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = connect(mosquitto_url, unique_prefix, recorder, unique_prefix)

    def failing(*_: object) -> None:
        raise RuntimeError("no packet can be made")

    monkeypatch.setattr(MqttClient, "send", failing)
    transport.publish(Outgoing(unique_prefix, b"lost"))
    assert "no packet can be made" in recorder.wait_for(LinkDown).reason
    monkeypatch.undo()
    recorder.wait_for(LinkUp, count=2)
    transport.publish(Outgoing(unique_prefix, b"heard"))
    assert recorder.wait_for(Delivery).payload == b"heard"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_packets_are_read_whatever_pieces_they_arrive_in(chunk: int) -> None:
    got: list[Any] = []

    class Handler:
        def on_delivery(self, message: Published) -> None:
            got.append((message.topic, message.packet_id))

        def on_published(self, packet: int, reason: Reason) -> None:
            got.append((packet, reason))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: got.append(name)

    client = MqttClient(Dialer(parse_url("mqtt://unused"), 1.0), "c", Handler())
    client.first = CONNACK
    client._sock, theirs = socket.socketpair()
    client._sock.setblocking(False)
    first, second = (write_publish(Outgoing(topic, bytes(200)), number) for number, topic in enumerate("ab", 5))
    sent = first + b"\x40\x02\0\x07" + second + b"\x40\x04\0\x08\x10\0" + b"\x40\x03\0\x09\x97"
    with theirs, client._sock:
        for at in range(0, len(sent), chunk):
            theirs.sendall(sent[at : at + chunk])
            while client.has_bytes():
                client.loop_read()
        assert not client.has_unseen_bytes
    acknowledged = [
        (7, Reason(0, "Success")),
        (8, Reason(0x10, "No matching subscribers")),
        (9, Reason(0x97, "Quota exceeded")),
    ]
    assert got == [("a", 5), acknowledged[0], ("b", 6), *acknowledged[1:]]


def test_what_was_read_is_kept_though_all_reads_go_into_one_buffer() -> None:
    got: list[bytes] = []

    class Handler:
        def on_delivery(self, message: Published) -> None:
            assert message.delivery is not None
            got.append(message.delivery.payload)

        def __getattr__(self, _: str) -> Any:
            return lambda *_, **__: None

    client = MqttClient(Dialer(parse_url("mqtt://unused"), 1.0), "c", Handler())
    client.first = CONNACK
    client._sock, theirs = socket.socketpair()
    client._sock.setblocking(False)
    payloads = [bytes([number]) * size for number, size in enumerate((10, 300_000, 20, 1_000_000, 30))]
    packets = b"".join(write_publish(Outgoing("a", payload, qos=0), 0) for payload in payloads)
    with theirs, client._sock:
        sender = threading.Thread(target=theirs.sendall, args=(packets,))
        sender.start()
        while len(got) < len(payloads):
            client.loop_read()
        sender.join()
    assert got == payloads


# --- access rules: only MQTT 5 reason codes tell ---


@pytest.fixture
def guarded(start_mosquitto: Callable[..., MosquittoBroker], tmp_path: Path) -> MosquittoBroker:
    """A Mosquitto that accepts messages below ``open/`` only."""
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite open/#\n")
    return start_mosquitto(f"acl_file {rules}")


def test_a_publish_that_the_broker_forbids_is_reported(
    guarded: MosquittoBroker, connect: Connect, recorder: Recorder
) -> None:
    transport = connect(guarded.url, "a", recorder, "open/#")
    transport.publish(Outgoing("closed/x", b""))
    assert recorder.wait_for(Denied) == Denied("closed/x", "Not authorized")
    transport.publish(Outgoing("open/x", b"fine"))
    assert recorder.wait_for(Delivery).payload == b"fine"


def test_a_refused_connection_reports_the_brokers_reason(
    start_mosquitto: Callable[..., MosquittoBroker], recorder: Recorder
) -> None:
    broker = start_mosquitto("allow_anonymous false")
    transport = MqttTransport(parse_url(broker.url), client_id="a", inbox=recorder)
    transport.start()
    assert "refused the connection: Not authorized; it wants a login" in recorder.wait_for(LinkDown).reason
    transport.close()
    assert [type(event) for event in recorder.events] == [LinkDown]
