"""The port in one process, without a broker: the twin of ``paho``, for unit tests and for users' own tests.

Owns the behaviour of an MQTT broker that the port shows: retained messages, wildcards, share groups in turn, wills,
"no matching subscribers" and the packet limit. Causes faults on request. Both twins pass the same contract tests.

Invariants:
- Deterministic: no clock (nothing expires), no randomness, no thread. An event is delivered in the thread that caused
  it.
- The inbox is called without the lock, so it may publish; the events of one receiver keep their order.
- Both sides see a crash, a partition or a restart at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from broker.protocol.errors import LocalProtocolError, MessageTooLarge, NotConnected, TransportError
from broker.transport import port
from broker.transport.connection import Connection
from broker.transport.port import MAX_PACKET_BYTES, Inbox, Outgoing, WillFor

_SHARE = "$share/"


def matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT filter (without ``$share``) matches a topic."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False  # the broker's own topics
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in {"+", levels[position]}:
            return False
    return len(wanted) == len(levels)


class MemoryBroker:
    """The broker of memory transports; it causes faults on request, and refuses packets beyond ``max_packet_bytes``."""

    def __init__(self, *, max_packet_bytes: int = MAX_PACKET_BYTES) -> None:
        self.max_packet_bytes = max_packet_bytes
        self.retained: dict[str, port.Delivery] = {}
        self.connected: dict[str, MemoryTransport] = {}  # by client id
        self.started: list[MemoryTransport] = []  # and not closed or crashed
        self.lock = threading.RLock()
        self._cut: set[str] = set()
        self._turns: dict[str, int] = {}  # share filter -> messages handed out
        self._sessions = 0

    @contextmanager
    def partitioned(self, client_id: str) -> Iterator[None]:
        """Cut one client off until the end: it sees ``LinkDown``, and the others see its will."""
        with self.changing():
            self._cut.add(client_id)
            self._disconnect(client_id, "the connection was lost")
        try:
            yield
        finally:
            with self.changing():
                self._cut.discard(client_id)
                self._reconnect()

    def connect(
        self,
        connection: Connection | None = None,  # noqa: ARG002
        *,
        client_id: str,
        inbox: Inbox,
        will: WillFor | None = None,
        max_packet_bytes: int = port.MAX_PACKET_BYTES,
        gather_s: float = 0.0,  # noqa: ARG002 - nothing arrives by itself
        sees_retain: bool = False,
    ) -> MemoryTransport:
        """A transport to this broker, whatever the ``connection`` (see ``MakeTransport``)."""
        return MemoryTransport(
            self,
            client_id=client_id,
            inbox=inbox,
            will=will,
            max_packet_bytes=max_packet_bytes,
            sees_retain=sees_retain,
        )

    def crash(self, client_id: str) -> None:
        """End a client like a killed process: its will is published, and it receives and publishes nothing.

        Raises:
            LocalProtocolError: no started client has this id.
        """
        with self.changing():
            client = next((c for c in self.started if c.client_id == client_id and not c.taken_over), None)
            if client is None:
                raise LocalProtocolError(f"no client {client_id!r} is started, so it can't crash")
            self.end(client, will=True)

    def restart(self, *, keep_retained: bool = False) -> None:
        """Restart the broker: each connection ends without its will, and comes back with a new session."""
        with self.changing():
            for client_id in tuple(self.connected):
                self._disconnect(client_id, "the broker went away", will=False)
            if not keep_retained:
                self.retained.clear()
            self._turns.clear()
            self._reconnect()

    # --- called by the transports; all but ``changing`` within it ---

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock; then call each inbox with its new events, without the lock."""
        with self.lock:
            yield
        self._deliver()

    def publish(self, publisher: MemoryTransport, message: Outgoing) -> None:
        """Add a message to each receiver's events, or ``Undelivered`` to the publisher's."""
        delivery = port.Delivery(
            message.topic,
            message.payload,
            response_topic=message.response_topic,
            correlation=message.correlation,
            content_type=message.content_type,
            expiry_s=message.expiry_s,
            traceparent=message.traceparent,
        )
        if message.retain and message.payload:
            self.retained[message.topic] = replace(delivery, retain=True)
        elif message.retain:
            self.retained.pop(message.topic, None)
        receivers = self.receivers(message.topic)
        for receiver in receivers:
            receiver.take(replace(delivery, retain=message.retain) if receiver.sees_retain else delivery)
        if publisher.connected and message.confirm:
            publisher.events.append(port.Acknowledged(message.topic, message.token))
        elif not receivers and publisher.connected and message.qos == 1 and message.token is not None:
            publisher.events.append(port.Undelivered(message.topic, message.token))

    def receivers(self, topic: str) -> list[MemoryTransport]:
        """Each client with a matching filter, once; and one member of each matching share group, in turn."""
        chosen: list[MemoryTransport] = []
        groups: dict[str, list[MemoryTransport]] = {}
        for client in self.connected.values():
            shared = [name for name in client.filters if name.startswith(_SHARE)]
            for name in shared:
                if matches(name.split("/", 2)[2], topic):
                    groups.setdefault(name, []).append(client)
            if any(matches(name, topic) for name in client.filters if name not in shared):
                chosen.append(client)
        for name, members in groups.items():
            turn = self._turns.get(name, 0)
            self._turns[name] = turn + 1
            chosen.append(members[turn % len(members)])
        return chosen

    def accept(self, client: MemoryTransport) -> None:
        """Connect a client, unless it is cut off. An older one of the same id is disconnected and stays away."""
        if client.client_id in self._cut:
            return
        if older := self._disconnect(client.client_id, "the broker ended the connection: session taken over"):
            older.taken_over = True
        self._sessions += 1
        client.connected = True
        client.will = client.will_for(self._sessions) if client.will_for else None
        client.events.append(port.LinkUp(self._sessions))
        self.connected[client.client_id] = client
        self.send_retained(client, client.filters)
        kept, client.kept = client.kept, []
        for message in kept:
            self.publish(client, message)

    def end(self, client: MemoryTransport, *, will: bool) -> None:
        """Remove a closed or crashed client."""
        if self.connected.get(client.client_id) is client:
            self._disconnect(client.client_id, "", will=will)
        if client in self.started:
            self.started.remove(client)
        client.closed = True
        client.events.clear()

    def send_retained(self, client: MemoryTransport, filters: Iterable[str]) -> None:
        """Add the retained messages of new filters to a client's events; share groups get none."""
        for name in filters:
            for state in [state for topic, state in self.retained.items() if matches(name, topic)]:
                client.take(state)

    def _disconnect(self, client_id: str, reason: str, *, will: bool = True) -> MemoryTransport | None:
        """End the connection with this id, if there is one; both sides see this."""
        client = self.connected.pop(client_id, None)
        if client is not None:
            client.connected = False
            client.events.append(port.LinkDown(reason))
            if will and client.will is not None:
                self.publish(client, client.will)
        return client

    def _reconnect(self) -> None:
        for client in self.started:
            if not client.connected and not client.taken_over:
                self.accept(client)

    def _deliver(self) -> None:
        while True:
            with self.lock:
                client = next((c for c in self.started if c.events and not c.delivering), None)
                if client is None:
                    return
                event = client.events.popleft()
                client.delivering = True
            try:
                client.inbox(event)
            finally:
                with self.lock:
                    client.delivering = False


class MemoryTransport:
    """A connection to a ``MemoryBroker``, which also keeps its state here (see ``Transport`` and ``MakeTransport``).

    When a call returns, its events are delivered. An exception of an inbox is raised by the call that caused the event,
    so that a test sees it. Sessions count from 1.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        *,
        client_id: str,
        inbox: Inbox,
        will: WillFor | None = None,
        max_packet_bytes: int = port.MAX_PACKET_BYTES,
        sees_retain: bool = False,
    ) -> None:
        self._broker = broker
        self.sees_retain = sees_retain
        self.max_packet_bytes = max_packet_bytes
        self.client_id = client_id
        self.inbox = inbox
        self.will_for = will
        self.will: Outgoing | None = None  # of the connection
        self.filters: dict[str, None] = {}  # in the order of subscribe()
        self.events: deque[port.LinkEvent] = deque()  # not yet delivered to the inbox
        self.kept: list[Outgoing] = []  # lasting messages for the next connection
        self.connected = False
        self.taken_over = False  # by a newer transport with this id
        self.closed = False
        self.delivering = False  # a thread calls the inbox, and delivers what other threads add

    def start(self) -> None:
        """Connect; ``LinkUp`` comes before this returns, unless the client is cut off. TransportError once closed."""
        with self._broker.changing():
            if self.closed:
                raise TransportError("this transport was closed: make a new one")
            if self not in self._broker.started:
                self._broker.started.append(self)
                self._broker.accept(self)

    def publish(self, message: Outgoing) -> None:
        """Deliver a message to each client that subscribes to its topic."""
        size_bytes, limit_bytes = message.packet_bytes, min(self.max_packet_bytes, self._broker.max_packet_bytes)
        with self._broker.changing():
            if not self.connected and (self.closed or not message.lasting):
                raise NotConnected(f"no connection to the broker now, so {message.topic} was not published")
            if size_bytes > limit_bytes:
                raise MessageTooLarge(topic=message.topic, size_bytes=size_bytes, limit_bytes=limit_bytes)
            if self.connected:
                self._broker.publish(self, message)
            else:
                self.kept.append(message)

    def together(self) -> AbstractContextManager[None]:
        """Nothing: a message is delivered at once."""
        return nullcontext()

    def take(self, delivery: port.Delivery) -> None:
        """Add a delivery to the events, unless it is larger than this client takes; the broker drops it then."""
        if len(delivery.payload) + len(delivery.topic) <= self.max_packet_bytes:
            self.events.append(delivery)

    def subscribe(self, *filters: str, confirm: bool = False) -> None:
        """Add filters; they are remembered and subscribed again at each connection."""
        with self._broker.changing():
            new = dict.fromkeys(name for name in filters if name not in self.filters)
            self.filters.update(new)
            if self.connected:
                self.events.extend(map(port.Subscribed, new if confirm else ()))
                self._broker.send_retained(self, new)

    def unsubscribe(self, *filters: str) -> None:
        """Remove filters."""
        with self._broker.changing():
            for name in filters:
                self.filters.pop(name, None)

    def close(self) -> None:
        """Disconnect without the will, and stop. Safe to call twice."""
        with self._broker.changing():
            self._broker.end(self, will=False)
