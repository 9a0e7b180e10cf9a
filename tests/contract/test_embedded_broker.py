"""The embedded broker: nothing but this machine can reach it, and clients of MQTT 3.1.1 have a port of their own."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker.protocol.errors import TransportError
from broker.servers.embedded import EmbeddedBroker
from broker.servers.plain_door import REFUSED_PROTOCOL, refused_5
from broker.servers.ports import HOST
from broker.transport.connect import connect
from broker.transport.connection import parse_url
from broker.transport.port import Delivery, LinkUp, Outgoing
from tests.patience import PATIENCE_S, until


def test_it_listens_on_loopback_only() -> None:
    with EmbeddedBroker() as broker:
        assert broker._broker is not None
        assert broker._broker._process is not None
        process = psutil.Process(broker._broker._process.pid)
        every = [process, *process.children(recursive=True)]
        every.append(psutil.Process())  # the port for MQTT 3.1.1 is ours
        listening = [each.laddr for one in every for each in one.net_connections() if each.status == "LISTEN"]
        ports = {parse_url(url).port for url in (broker.url, broker.plain_url)}
    assert ports <= {each.port for each in listening}
    assert {each.ip for each in listening} == {HOST}


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedBroker]:
    """One broker for all tests."""
    with EmbeddedBroker() as broker:
        yield broker


class Plain:
    """A client of MQTT 3.1.1: paho's own, nothing of ours."""

    def __init__(self, url: str, name: str, will: tuple[str, str] | None = None, *, clean: bool = True) -> None:
        self.received: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.granted: queue.Queue[Any] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv311, clean_session=clean)
        self.client.on_message = lambda _client, _data, message: self.received.put(message)
        self.client.on_subscribe = lambda *arguments: self.granted.put(arguments[3])
        if will:
            self.client.will_set(*will, qos=1)
        address = parse_url(url)
        self.client.connect(address.host, address.port, keepalive=30)
        self.client.loop_start()

    def subscribe(self, topic: str, qos: int) -> None:
        """Subscribe, and wait until the broker says so."""
        self.client.subscribe(topic, qos)
        assert [code.value for code in self.granted.get(timeout=PATIENCE_S)] == [qos]

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> None:
        """Publish, and wait until it is done."""
        self.client.publish(topic, payload, qos, retain).wait_for_publish(PATIENCE_S)

    def next(self) -> tuple[str, bytes, int, bool]:
        """The next message."""
        message = self.received.get(timeout=PATIENCE_S)
        return message.topic, bytes(message.payload), message.qos, message.retain


@contextmanager
def plain(broker: EmbeddedBroker, name: str, **options: Any) -> Iterator[Plain]:
    """A connected client."""
    client = Plain(broker.plain_url, name, **options)
    try:
        yield client
    finally:
        client.client.disconnect()
        client.client.loop_stop()


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_clients_of_mqtt_3_1_1_talk_to_each_other(embedded: EmbeddedBroker, qos: int) -> None:
    with plain(embedded, "one") as one, plain(embedded, "other") as other:
        other.subscribe(f"talk/{qos}/#", qos)
        for payload in (b"", b"hi", bytes(300_000)):
            one.publish(f"talk/{qos}/a", payload, qos)
            assert other.next() == (f"talk/{qos}/a", payload, qos, False)
        one.publish(f"kept/{qos}", b"kept", 1, retain=True)
        other.subscribe(f"kept/{qos}", qos)
        assert other.next() == (f"kept/{qos}", b"kept", qos, True)


def test_what_has_properties_reaches_them_without(embedded: EmbeddedBroker, recorder: Any) -> None:
    five = connect(parse_url(embedded.url), client_id="five", inbox=recorder)
    five.subscribe("asked/#")
    five.start()
    recorder.wait_for(LinkUp)
    with plain(embedded, "plain") as sensor:
        sensor.subscribe("answer/#", 1)
        sensor.publish("asked/1", b"jpeg", 1)
        asked = recorder.wait_for(Delivery)
        assert (asked.payload, asked.response_topic, asked.content_type) == (b"jpeg", None, None)
        for number in b"12":
            properties: Any = {"correlation": b"1", "content_type": "application/json", "expiry_s": 30}
            five.publish(Outgoing("answer/1", bytes((number,)), **properties))
            assert sensor.next() == ("answer/1", bytes((number,)), 1, False)
    five.close()


def test_a_will_is_published_when_the_client_is_gone(embedded: EmbeddedBroker) -> None:
    with plain(embedded, "witness") as witness:
        witness.subscribe("wills/#", 1)
        with plain(embedded, "mortal", will=("wills/mortal", "gone")) as mortal:
            mortal.subscribe("none", 0)
            sock = mortal.client.socket()
            assert isinstance(sock, socket.socket)
            sock.shutdown(socket.SHUT_RDWR)
            assert witness.next()[:2] == ("wills/mortal", b"gone")


def test_a_client_of_mqtt_5_and_one_of_nothing_end_alone(embedded: EmbeddedBroker) -> None:
    address = parse_url(embedded.plain_url)
    for sent, answer in (
        (b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03cam", refused_5(parse_url(embedded.url).port)),
        (b"\x10\x0f\x00\x04MQTT\x03\x02\x00\x3c\x00\x03cam", REFUSED_PROTOCOL),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ):
        with socket.create_connection((address.host, address.port), timeout=PATIENCE_S) as stranger:
            stranger.sendall(sent)
            assert stranger.recv(100) == answer
            assert stranger.recv(100) == b""
    with plain(embedded, "after") as client:
        client.subscribe("after", 1)


def test_it_starts_again_on_the_same_ports() -> None:
    with EmbeddedBroker() as broker:
        urls = broker.url, broker.plain_url
        broker.stop()
        until(lambda: not _is_open(broker.plain_url))
        broker.start()
        assert (broker.url, broker.plain_url) == urls
        with plain(broker, "again") as client:
            client.subscribe("again", 1)


def test_a_taken_port_is_named() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match=rf"port {port} on 127\.0\.0\.1, for MQTT 3\.1\.1, is taken"):
            EmbeddedBroker(plain_port=port).start()


def _is_open(url: str) -> bool:
    address = parse_url(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.host, address.port)) == 0
