"""Brokers that say, as they accept a connection, that they lack something of MQTT 5.

The broker is a few lines here, because no installed one has a setting that takes its shared subscriptions away.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from broker.servers.plain_door import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    Packet,
    packets_of,
)
from broker.servers.ports import HOST
from broker.transport.connect import connect
from broker.transport.connection import Connection
from broker.transport.port import SHARED, LinkDown, LinkUp, Outgoing, Transport
from tests.conftest import Recorder
from tests.patience import PATIENCE_S, until

LACKS = {
    "QoS 1": b"\x24\x00",
    "retained messages": b"\x25\x00",
    "wildcards in subscriptions": b"\x28\x00",
    "shared subscriptions": b"\x2a\x00",
}
"""The property of a CONNACK for each."""
HERE, THERE = "$share/t-1-1/p/tasks/t/requests/#", "$share/t-1-2/p/tasks/t/requests/#"
PLAIN = "p/tasks/t/requests/#"


class Lacking:
    """A broker for one client at a time, which notes what it is sent; as a context manager."""

    def __init__(self, *lacks: str) -> None:
        self._properties = b"".join(LACKS[each] for each in lacks)
        self._listener = socket.create_server((HOST, 0))
        self.connection = Connection(HOST, self._listener.getsockname()[1])
        self.said: list[tuple[int, bytes]] = []  # the kind and the body of each packet
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for each in (self._listener, self._client):
            with contextlib.suppress(OSError):  # the client is gone
                if each is not None:
                    each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE_S)

    def filters(self, kind: int) -> list[str]:
        """The filters of the packets of this kind, in order."""
        found = []
        for body in [body for said, body in self.said if said == kind]:
            rest, options = body[3:], kind == SUBSCRIBE  # behind the packet's number, and no properties
            while rest:
                length = int.from_bytes(rest[:2], "big")
                found.append(rest[2 : 2 + length].decode())
                rest = rest[2 + length + options :]
        return found

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._client, _ = self._listener.accept()
                with self._client:
                    self._answer(self._client)

    def _answer(self, client: socket.socket) -> None:
        buffer = bytearray()
        while data := client.recv(65_536):
            buffer += data
            for packet in packets_of(buffer):
                self.said.append((packet.kind, packet.body))
                number = packet.body[:2]
                if packet.kind == CONNECT:
                    properties = bytes((len(self._properties),)) + self._properties
                    client.sendall(Packet(CONNACK << 4, b"\0\0" + properties).encoded())
                elif packet.kind in {SUBSCRIBE, UNSUBSCRIBE}:
                    answer = SUBACK if packet.kind == SUBSCRIBE else UNSUBACK
                    client.sendall(Packet(answer << 4, number + b"\0" + b"\0").encoded())
                elif packet.kind == PINGREQ:
                    client.sendall(Packet(PINGRESP << 4, b"").encoded())


@pytest.fixture
def link() -> Iterator[Callable[..., Transport]]:
    """Makes transports that have been started."""
    with contextlib.ExitStack() as stack:

        def make(broker: Lacking, recorder: Recorder, *filters: str) -> Transport:
            will = Outgoing("p/state", b"gone", retain=True)
            made = connect(broker.connection, client_id="one", inbox=recorder, will=lambda _: will)
            stack.callback(made.close)
            made.subscribe(*filters)
            made.start()
            return made

        yield make


def test_a_share_group_is_a_plain_subscription_where_the_broker_has_no_groups(
    link: Callable[..., Transport], recorder: Recorder
) -> None:
    with Lacking("shared subscriptions") as broker:
        transport = link(broker, recorder, HERE)
        assert recorder.wait_for(LinkUp).lacks == {SHARED}
        assert broker.filters(SUBSCRIBE) == [PLAIN]
        transport.subscribe(THERE)  # the next group is joined before the old one is left
        transport.unsubscribe(HERE)
        transport.subscribe("p/orchestrator/state")
        until(lambda: broker.filters(SUBSCRIBE) == [PLAIN, PLAIN, "p/orchestrator/state"])
        assert broker.filters(UNSUBSCRIBE) == [], "the new group needs it"
        transport.unsubscribe(THERE)
        until(lambda: broker.filters(UNSUBSCRIBE) == [PLAIN])


def test_a_broker_that_says_nothing_of_them_has_share_groups(
    link: Callable[..., Transport], recorder: Recorder
) -> None:
    with Lacking() as broker:
        link(broker, recorder, HERE)
        assert recorder.wait_for(LinkUp).lacks == frozenset()
        assert broker.filters(SUBSCRIBE) == [HERE]


@pytest.mark.parametrize("lacks", ["QoS 1", "retained messages", "wildcards in subscriptions"])
def test_a_broker_without_what_a_site_needs_is_left_with_one_sentence_and_without_the_will(
    lacks: str, link: Callable[..., Transport], recorder: Recorder
) -> None:
    with Lacking(lacks, "shared subscriptions") as broker:
        link(broker, recorder, "p/#")
        down = recorder.wait_for(LinkDown)
        assert down.cause == "refused"
        assert f"has no {lacks}, by its own word, and a site needs them" in down.reason
        until(lambda: DISCONNECT in dict(broker.said))
        assert SUBSCRIBE not in dict(broker.said)
        assert not [event for event in recorder.events if isinstance(event, LinkUp)]
