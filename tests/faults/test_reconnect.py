"""A connection restores itself when the broker restarts, starts late, refuses, or sends malformed packets."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from broker.protocol.errors import BadFile, NotConnected
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, Denied, LinkDown, LinkEvent, LinkUp, Outgoing
from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from broker.servers.mosquitto import MosquittoBroker
    from tests.conftest import Recorder

CONNACK = bytes.fromhex("20 03 00 00 00")
CONNACK_RECEIVE_MAXIMUM_2 = bytes.fromhex("20 06 00 00 03 21 00 02")
CONNACK_SERVER_BUSY = bytes.fromhex("20 03 00 89 00")
TAKEN_OVER = bytes.fromhex("e0 01 8e")


class ScriptedBroker:
    """A broker of bytes: answers each packet of a client as its test defines.

    ``answer`` gets (connection number from 1, packet type, packet body) and returns the bytes to send.
    """

    def __init__(self, answer: Callable[[int, int, bytes], bytes]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def send(self, data: bytes) -> None:
        """Send unrequested bytes on the latest connection."""
        self._connections[-1].sendall(data)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection, len(self._connections)), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError, EOFError), connection.makefile("rb") as stream:
            while True:
                kind, length, shift = _exactly(stream, 1)[0] >> 4, 0, 0
                while True:
                    byte = _exactly(stream, 1)[0]
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                connection.sendall(self._answer(number, kind, _exactly(stream, length)))


def _exactly(stream: Any, count: int) -> bytes:
    data: bytes = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


@pytest.fixture
def scripted() -> Iterator[Callable[[Callable[[int, int, bytes], bytes]], ScriptedBroker]]:
    with ExitStack() as stack:

        def make(answer: Callable[[int, int, bytes], bytes]) -> ScriptedBroker:
            broker = ScriptedBroker(answer)
            stack.callback(broker.close)
            return broker

        yield make


Scripted = Callable[[Callable[[int, int, bytes], bytes]], ScriptedBroker]


@pytest.fixture
def transport_to(recorder: Recorder) -> Iterator[Callable[..., MqttTransport]]:
    """Starts a transport whose inbox is the recorder."""
    with ExitStack() as stack:

        def make(url: str, *filters: str, **more: Any) -> MqttTransport:
            settings: dict[str, Any] = {"client_id": "client", "inbox": recorder} | more
            transport = MqttTransport(parse_url(url), **settings)
            stack.callback(transport.close)
            transport.subscribe(*filters)
            transport.start()
            return transport

        yield make


TransportTo = Callable[..., MqttTransport]


def granting(number: int, kind: int, body: bytes) -> bytes:
    """A broker that takes every connection and every subscription."""
    del number
    match kind:
        case 1:
            return CONNACK
        case 8:
            return bytes((0x90, 4)) + body[:2] + b"\0\1"
        case _:
            return b""


# --- the broker goes and comes ---


def test_subscriptions_are_made_again_at_a_restarted_broker(
    mosquitto_process: MosquittoBroker, transport_to: TransportTo, recorder: Recorder
) -> None:
    transport = transport_to(mosquitto_process.url, "x", "y/+")
    first = recorder.wait_for(LinkUp)
    mosquitto_process.kill()
    recorder.wait_for(LinkDown)
    with pytest.raises(NotConnected):
        transport.publish(Outgoing("x", b"lost"))
    mosquitto_process.start()
    second = recorder.wait_for(LinkUp, count=2)
    assert second.session != first.session
    for topic in ("x", "y/1"):
        transport.publish(Outgoing(topic, topic.encode()))
    recorder.wait_for(Delivery, count=2)
    assert [delivery.payload for delivery in recorder.deliveries] == [b"x", b"y/1"]


def test_what_a_broker_sent_before_it_ended_is_read_although_no_acknowledgement_can_be_written(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    """It ends at the first PUBACK, with unread ones: the system resets the connection."""
    count = 200
    publishes = b"".join(
        bytes.fromhex("32 07 00 01 78") + struct.pack(">HB", number, 0) + b"w" for number in range(1, count + 1)
    )

    def answer(number: int, kind: int, body: bytes) -> bytes:
        if kind == 4:
            raise EOFError
        return granting(number, kind, body) + (publishes if kind == 8 and number == 1 else b"")

    transport_to(scripted(answer).url, "x")
    recorder.wait_for(LinkDown)
    assert len(recorder.deliveries) == count


def test_a_broker_that_starts_late_is_reported_missing_once(
    mosquitto_process: MosquittoBroker, transport_to: TransportTo, recorder: Recorder
) -> None:
    mosquitto_process.kill()
    transport_to(mosquitto_process.url)
    reason = recorder.wait_for(LinkDown).reason
    assert reason == f"nothing listens at 127.0.0.1:{mosquitto_process.port} (connection refused)"
    mosquitto_process.start()
    recorder.wait_for(LinkUp)
    assert [type(event) for event in recorder.events] == [LinkDown, LinkUp]


def test_close_does_not_wait_for_a_broker_that_is_down(
    mosquitto_process: MosquittoBroker, transport_to: TransportTo, recorder: Recorder
) -> None:
    mosquitto_process.kill()
    transport = transport_to(mosquitto_process.url)
    recorder.wait_for(LinkDown)
    transport.close()
    assert transport._thread is not None
    assert not transport._thread.is_alive()


def test_close_may_be_called_from_the_inbox(mosquitto_url: str, unique_prefix: str) -> None:
    closed = threading.Event()

    def inbox(event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            transport.close()
            closed.set()

    transport = MqttTransport(parse_url(mosquitto_url), client_id=unique_prefix, inbox=inbox)
    transport.start()
    assert closed.wait(PATIENCE_S)
    transport.close()
    assert transport._thread is not None
    assert not transport._thread.is_alive()


def test_an_inbox_that_always_raises_does_not_prevent_reconnections(
    mosquitto_process: MosquittoBroker, transport_to: TransportTo, recorder: Recorder
) -> None:
    def inbox(event: LinkEvent) -> None:
        recorder(event)
        raise RuntimeError("a bug in an inbox")

    transport_to(mosquitto_process.url, inbox=inbox)
    recorder.wait_for(LinkUp)
    mosquitto_process.kill()
    recorder.wait_for(LinkDown)
    mosquitto_process.start()
    recorder.wait_for(LinkUp, count=2)


def test_an_unacknowledged_lasting_message_is_resent_on_the_next_connection(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    seen: list[tuple[int, bytes]] = []
    again = threading.Event()

    def answer(number: int, kind: int, body: bytes) -> bytes:
        if kind != 3:
            return granting(number, kind, body)
        seen.append((number, body[-1:]))
        if number == 1:
            return TAKEN_OVER
        again.set()
        return b"\x40\x02" + body[3:5]  # behind a topic of one character

    broker = scripted(answer)
    transport = transport_to(broker.url)
    recorder.wait_for(LinkUp)
    transport.publish(Outgoing("x", b"1", lasting=True))
    assert again.wait(PATIENCE_S)
    recorder.wait_for(LinkUp, count=2)
    transport.publish(Outgoing("x", b"2"))
    transport.close()
    assert seen == [(1, b"1"), (2, b"1"), (2, b"2")]


def test_a_lasting_message_waits_for_a_connection_that_is_accepted(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    """Like a proxy to a broker that is down: it accepts the connection and ends it."""
    seen: list[tuple[int, int]] = []
    arrived = threading.Event()

    def answer(number: int, kind: int, body: bytes) -> bytes:
        seen.append((number, kind))
        if number == 1 and kind == 3:
            return TAKEN_OVER
        if 1 < number < 6:
            raise EOFError
        if kind != 3:
            return granting(number, kind, body)
        arrived.set()
        return b"\x40\x02" + body[3:5]

    transport = transport_to(scripted(answer).url)
    recorder.wait_for(LinkUp)
    transport.publish(Outgoing("x", b"1", lasting=True))
    assert arrived.wait(PATIENCE_S)
    assert [kind for number, kind in seen if 1 < number < 6] == [1, 1, 1, 1]


@pytest.mark.parametrize("answers_connect", [True, False])
def test_a_silent_broker_is_disconnected(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder, *, answers_connect: bool
) -> None:
    silent = scripted(lambda number, kind, body: granting(number, kind, body) if answers_connect else b"")
    transport_to(silent.url, keepalive_s=1)
    expected = "the broker is silent" if answers_connect else "accepts connections, and doesn't answer in time"
    assert expected in recorder.wait_for(LinkDown).reason
    assert any(isinstance(event, LinkUp) for event in recorder.events) is answers_connect


def test_a_broker_that_answers_pings_is_kept(scripted: Scripted, transport_to: TransportTo, recorder: Recorder) -> None:
    pings = threading.Semaphore(0)

    def answer(number: int, kind: int, body: bytes) -> bytes:
        if kind == 12:
            pings.release()
            return b"\xd0\x00"
        return granting(number, kind, body)

    transport_to(scripted(answer).url, keepalive_s=2)
    recorder.wait_for(LinkUp)
    for _ in range(5):  # half a keepalive each: longer than silence would be borne
        assert pings.acquire(timeout=PATIENCE_S)
    assert [type(event) for event in recorder.events] == [LinkUp]


# --- the broker refuses ---


def test_a_refused_connection_is_reported_once_and_retried(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    broker = scripted(
        lambda number, kind, body: CONNACK_SERVER_BUSY if number < 3 and kind == 1 else granting(number, kind, body)
    )
    transport_to(broker.url)
    recorder.wait_for(LinkUp)
    assert recorder.events[0] == LinkDown(f"the broker at {parse_url(broker.url)} refused the connection: Server busy")
    assert [type(event) for event in recorder.events] == [LinkDown, LinkUp]


def test_a_refused_subscription_is_reported_and_the_others_stay(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    def answer(number: int, kind: int, body: bytes) -> bytes:
        not_authorized = bytes((0x90, 5)) + body[:2] + b"\0\1\x87"
        return not_authorized if kind == 8 else granting(number, kind, body)

    broker = scripted(answer)
    transport_to(broker.url, "allowed", "forbidden")
    up = recorder.wait_for(LinkUp)
    assert recorder.events == (Denied("forbidden", "Not authorized"), up)


def test_link_up_waits_until_every_subscription_is_acknowledged(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    asked = threading.Event()
    packet_id = b""

    def answer(number: int, kind: int, body: bytes) -> bytes:
        nonlocal packet_id
        if kind == 8:
            packet_id = body[:2]
            asked.set()
            return b""
        return granting(number, kind, body)

    broker = scripted(answer)
    transport = transport_to(broker.url, "x")
    assert asked.wait(PATIENCE_S)
    assert not transport.connected
    assert recorder.events == ()
    broker.send(bytes((0x90, 4)) + packet_id + b"\0\1")
    recorder.wait_for(LinkUp)


def test_no_more_messages_are_in_flight_than_the_broker_allows(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    open_ids: list[bytes] = []
    most = 0
    all_sent = threading.Event()
    sent = 0

    def answer(number: int, kind: int, body: bytes) -> bytes:
        nonlocal most, sent
        if kind == 1:
            return CONNACK_RECEIVE_MAXIMUM_2
        if kind != 3:
            return granting(number, kind, body)
        open_ids.append(body[3:5])  # behind a topic of one character
        most = max(most, len(open_ids))
        sent += 1
        if sent == 6:
            all_sent.set()
        if len(open_ids) < 2:
            return b""  # so a second one must come without an acknowledgement of the first
        acknowledged = b"".join(b"\x40\x02" + packet_id for packet_id in open_ids)
        open_ids.clear()
        return acknowledged

    broker = scripted(answer)
    transport = transport_to(broker.url)
    recorder.wait_for(LinkUp)
    for _ in range(6):
        transport.publish(Outgoing("x", b""))
    assert all_sent.wait(PATIENCE_S)
    assert most == 2


def test_a_session_takeover_is_named_as_the_reason(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    broker = scripted(granting)
    transport_to(broker.url)
    recorder.wait_for(LinkUp)
    broker.send(TAKEN_OVER)
    assert recorder.wait_for(LinkDown).reason == (
        "the broker ended the connection: Session taken over; "
        "the client id client is in use elsewhere: end the other client"
    )


# --- the broker speaks nonsense ---


def _publish_packet(topic: bytes, payload: bytes) -> bytes:
    body = struct.pack(">H", len(topic)) + topic + b"\0" + payload
    length = bytearray()
    rest = len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length.append(digit | (128 if rest else 0))
        if not rest:
            return b"\x30" + bytes(length) + body


@pytest.mark.parametrize(
    "nonsense",
    [
        pytest.param(b"\xf0\x00", id="a packet type that a broker never sends"),
        pytest.param(b"\x30\xff\xff\xff\xff\xff", id="a length of five bytes"),
        pytest.param(b"\x30\x02\xff\xff", id="a topic longer than the packet"),
        pytest.param(b"\x20\x00", id="an empty CONNACK"),
        pytest.param(b"\x90\x00", id="an empty SUBACK"),
        pytest.param(b"\x40\x00", id="an empty PUBACK"),
        pytest.param(b"\x30\x07\x00\x01x\x03\x7f\x00\x00", id="an unknown property"),
    ],
)
def test_malformed_packets_end_the_connection_and_not_the_thread(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder, nonsense: bytes
) -> None:
    broker = scripted(granting)
    transport_to(broker.url, "x")
    recorder.wait_for(LinkUp)
    broker.send(nonsense)
    recorder.wait_for(LinkDown)
    recorder.wait_for(LinkUp, count=2)
    broker.send(_publish_packet(b"x", b"fine"))
    assert recorder.wait_for(Delivery).payload == b"fine"


def test_a_topic_that_is_not_text_costs_only_its_message(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    broker = scripted(granting)
    transport_to(broker.url, "x")
    recorder.wait_for(LinkUp)
    broker.send(_publish_packet(b"\xff\xfe", b"bad") + _publish_packet(b"x", b"fine"))
    assert recorder.wait_for(Delivery).payload == b"fine"
    assert [type(event) for event in recorder.events] == [LinkUp, Delivery]


def test_a_message_beyond_our_limit_is_refused_when_it_arrives(
    scripted: Scripted, transport_to: TransportTo, recorder: Recorder
) -> None:
    broker = scripted(granting)
    transport_to(broker.url, "x", max_packet_bytes=1_000)
    recorder.wait_for(LinkUp)
    broker.send(_publish_packet(b"x", b"b" * 1_001) + _publish_packet(b"x", b"f" * 900))
    assert recorder.wait_for(Delivery).payload == b"f" * 900
    assert [type(event) for event in recorder.events] == [LinkUp, Delivery]


# --- where the broker is ---


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost", "mqtt://", "mqtt://host:port", "mqtt://h:70000", "mqtt://h:0", "mqtt://h/x"],
)
def test_an_invalid_address_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(BadFile, match="write mqtt://host") as caught:
        MqttTransport(parse_url(url), client_id="a", inbox=lambda _event: None)
    assert caught.value.file == "broker address"


def test_a_password_never_appears() -> None:
    with pytest.raises(BadFile) as caught:
        MqttTransport(parse_url("mqtt://me:secret@host:port"), client_id="a", inbox=lambda _event: None)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(MqttTransport(parse_url("mqtt://me:secret@h"), client_id="a", inbox=print)._connection)
