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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from broker.protocol.errors import LocalProtocolError, MessageTooLarge, NotConnected, TransportError
from broker.transport.port import (
    MAX_PACKET_BYTES,
    Delivery,
    Inbox,
    LinkDown,
    LinkEvent,
    LinkUp,
    Outgoing,
    Undelivered,
    Will,
    WillFor,
)

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


@dataclass(eq=False)
class _Client:
    """The broker's state of one transport."""

    client_id: str
    inbox: Inbox
    will_for: WillFor | None
    filters: dict[str, None] = field(default_factory=dict)  # in the order of subscribe()
    events: deque[LinkEvent] = field(default_factory=deque)  # not yet delivered to the inbox
    kept: list[Outgoing] = field(default_factory=list)  # lasting messages for the next connection
    will: Will | None = None
    connected: bool = False
    closed: bool = False
    delivering: bool = False  # a thread calls the inbox, and delivers what other threads add


@dataclass
class _Switch:
    """The inside of the broker: connections, retained messages, and the way of each message.

    Every method except ``deliver`` is called with the lock and adds events to clients; then ``deliver`` is called
    without the lock.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    retained: dict[str, Outgoing] = field(default_factory=dict)
    connected: dict[str, _Client] = field(default_factory=dict)  # by client id
    waiting: dict[str, _Client] = field(default_factory=dict)  # started, and to be reconnected
    started: list[_Client] = field(default_factory=list)  # and not closed or crashed
    cut: set[str] = field(default_factory=set)
    turns: dict[str, int] = field(default_factory=dict)  # share filter -> messages handed out
    sessions: int = 0
    dropping: list[str] = field(default_factory=list)
    duplicating: list[str] = field(default_factory=list)
    delaying: list[str] = field(default_factory=list)
    delayed: list[tuple[_Client, Outgoing]] = field(default_factory=list)  # publisher, message

    def publish(self, publisher: _Client, message: Outgoing) -> None:
        """Route a message, or delay it."""
        if any(matches(each, message.topic) for each in self.delaying):
            self.delayed.append((publisher, message))
        else:
            self.route(publisher, message)

    def route(self, publisher: _Client, message: Outgoing) -> None:
        """Add a message to each receiver's events, or ``Undelivered`` to the publisher's."""
        if any(matches(each, message.topic) for each in self.dropping):
            return
        if message.retain and message.payload:
            self.retained[message.topic] = message
        elif message.retain:
            self.retained.pop(message.topic, None)
        receivers = self.receivers(message.topic)
        times = 2 if any(matches(each, message.topic) for each in self.duplicating) else 1
        for receiver in receivers:
            receiver.events.extend([_delivery(message, retain=False)] * times)
        if not receivers and publisher.connected and message.qos == 1 and message.token is not None:
            publisher.events.append(Undelivered(message.topic, message.token))

    def receivers(self, topic: str) -> list[_Client]:
        """Each client with a matching filter, once; and one member of each matching share group, in turn."""
        chosen: list[_Client] = []
        groups: dict[str, list[_Client]] = {}
        for client in self.connected.values():
            filters = tuple(client.filters)  # a test may ask while another thread subscribes
            shared = [name for name in filters if name.startswith(_SHARE)]
            for name in shared:
                if matches(name.split("/", 2)[2], topic):
                    groups.setdefault(name, []).append(client)
            if any(matches(name, topic) for name in filters if name not in shared):
                chosen.append(client)
        for name, members in groups.items():
            turn = self.turns.get(name, 0)
            self.turns[name] = turn + 1
            chosen.append(members[turn % len(members)])
        return chosen

    def connect(self, client: _Client) -> None:
        """Connect a client, unless it is cut off. An older one of the same id is disconnected and stays away."""
        if client.client_id in self.cut:
            self.waiting[client.client_id] = client
            return
        self.disconnect(client.client_id, "the broker ended the connection: session taken over")
        self.waiting.pop(client.client_id, None)
        self.sessions += 1
        client.connected = True
        client.will = client.will_for(self.sessions) if client.will_for else None
        client.events.append(LinkUp(self.sessions))
        self.connected[client.client_id] = client
        self.send_retained(client, tuple(client.filters))
        kept, client.kept = client.kept, []
        for message in kept:
            self.publish(client, message)

    def disconnect(self, client_id: str, reason: str, *, will: bool = True) -> None:
        """End a connection; both sides see this."""
        client = self.connected.pop(client_id, None)
        if client is None:
            return
        self.waiting[client_id] = client
        client.connected = False
        client.events.append(LinkDown(reason))
        if will and client.will is not None:
            last = client.will
            self.publish(client, Outgoing(last.topic, last.payload, last.qos, last.retain))

    def connect_waiting(self) -> None:
        """Reconnect each waiting client that isn't cut off."""
        for client in tuple(self.waiting.values()):
            self.connect(client)

    def end(self, client: _Client, *, will: bool) -> None:
        """Remove a closed or crashed client."""
        if self.connected.get(client.client_id) is client:
            self.disconnect(client.client_id, "", will=will)
        if self.waiting.get(client.client_id) is client:
            del self.waiting[client.client_id]
        if client in self.started:
            self.started.remove(client)
        client.closed = True
        client.events.clear()

    def send_retained(self, client: _Client, filters: tuple[str, ...]) -> None:
        """Add the retained messages of new filters to a client's events; share groups get none."""
        for name in filters:
            found = (state for topic, state in self.retained.items() if matches(name, topic))
            client.events.extend(_delivery(state, retain=True) for state in found)

    def deliver(self) -> None:
        """Call each inbox with its events, without the lock, until no event waits."""
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


class MemoryBroker:
    """The broker of memory transports; it causes faults on request.

    Args:
        max_packet_bytes: larger messages are refused.
    """

    def __init__(self, *, max_packet_bytes: int = MAX_PACKET_BYTES) -> None:
        self.max_packet_bytes = max_packet_bytes
        self.switch = _Switch()

    @contextmanager
    def dropping(self, topic_filter: str) -> Iterator[None]:
        """Lose each message published there: it is accepted, and never delivered."""
        with self._fault(self.switch.dropping, topic_filter):
            yield

    @contextmanager
    def duplicating(self, topic_filter: str) -> Iterator[None]:
        """Deliver each message published there twice."""
        with self._fault(self.switch.duplicating, topic_filter):
            yield

    @contextmanager
    def delaying(self, topic_filter: str) -> Iterator[None]:
        """Delay messages published there until the end; then they are delivered in order."""
        try:
            with self._fault(self.switch.delaying, topic_filter):
                yield
        finally:
            with self._change() as switch:
                delayed = switch.delayed
                switch.delayed = []
                for publisher, message in delayed:
                    switch.publish(publisher, message)

    @contextmanager
    def partitioned(self, client_id: str) -> Iterator[None]:
        """Cut one client off until the end: it sees ``LinkDown``, and the others see its will."""
        with self._change() as switch:
            switch.cut.add(client_id)
            switch.disconnect(client_id, "the connection was lost")
        try:
            yield
        finally:
            with self._change() as switch:
                switch.cut.discard(client_id)
                switch.connect_waiting()

    def connect(self, url: str = "", *, client_id: str, inbox: Inbox, will: WillFor | None = None) -> MemoryTransport:  # noqa: ARG002
        """A transport to this broker, whatever the ``url`` (see ``MakeTransport``)."""
        return MemoryTransport(self, client_id=client_id, inbox=inbox, will=will)

    def crash(self, client_id: str) -> None:
        """End a client like a killed process: its will is published, and it receives and publishes nothing.

        Raises:
            LocalProtocolError: no started client has this id.
        """
        with self._change() as switch:
            client = switch.connected.get(client_id) or switch.waiting.get(client_id)
            if client is None:
                raise LocalProtocolError(f"no client {client_id!r} is started, so it can't crash")
            switch.end(client, will=True)

    def restart(self, *, keep_retained: bool = False) -> None:
        """Restart the broker: each connection ends without its will, and comes back with a new session."""
        with self._change() as switch:
            for client_id in tuple(switch.connected):
                switch.disconnect(client_id, "the broker went away", will=False)
            if not keep_retained:
                switch.retained.clear()
            switch.turns.clear()
            switch.connect_waiting()

    @contextmanager
    def _change(self) -> Iterator[_Switch]:
        with self.switch.lock:
            yield self.switch
        self.switch.deliver()

    @contextmanager
    def _fault(self, faults: list[str], topic_filter: str) -> Iterator[None]:
        with self.switch.lock:
            faults.append(topic_filter)
        try:
            yield
        finally:
            with self.switch.lock:
                faults.remove(topic_filter)


class MemoryTransport:
    """A connection to a ``MemoryBroker`` (see ``Transport``). When a call returns, its events are delivered.

    An exception of an inbox is raised by the call that caused the event, so that a test sees it.

    Args:
        broker: the broker.
        client_id: unique at the broker, which ends the older of two connections with the same id.
        inbox: called in the thread that caused the event.
        will: makes the will for each connection's session number; sessions count from 1.
        max_packet_bytes: larger messages are refused.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        *,
        client_id: str,
        inbox: Inbox,
        will: WillFor | None = None,
        max_packet_bytes: int = MAX_PACKET_BYTES,
    ) -> None:
        self._switch = broker.switch
        self._client = _Client(client_id, inbox, will)
        self._max_packet_bytes = min(max_packet_bytes, broker.max_packet_bytes)

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._client.connected

    def start(self) -> None:
        """Connect; ``LinkUp`` comes before this returns, unless the client is cut off.

        Raises:
            TransportError: it is closed.
        """
        with self._switch.lock:
            if self._client.closed:
                raise TransportError("this transport was closed: make a new one")
            if self._client not in self._switch.started:
                self._switch.started.append(self._client)
                self._switch.connect(self._client)
        self._switch.deliver()

    def publish(self, message: Outgoing) -> None:
        """Deliver a message to each client that subscribes to its topic.

        Raises:
            NotConnected: there is no connection, and the message isn't lasting.
            MessageTooLarge: larger than the broker's or our own limit.
        """
        size_bytes = message.packet_bytes
        with self._switch.lock:
            if not self._client.connected and (self._client.closed or not message.lasting):
                raise NotConnected(f"no connection to the broker now, so {message.topic} was not published")
            if size_bytes > self._max_packet_bytes:
                raise MessageTooLarge(topic=message.topic, size_bytes=size_bytes, limit_bytes=self._max_packet_bytes)
            if self._client.connected:
                self._switch.publish(self._client, message)
            else:
                self._client.kept.append(message)
        self._switch.deliver()

    def subscribe(self, *filters: str) -> None:
        """Add filters; they are remembered and subscribed again at each connection."""
        with self._switch.lock:
            new = tuple(name for name in dict.fromkeys(filters) if name not in self._client.filters)
            self._client.filters.update(dict.fromkeys(new))
            if self._client.connected:
                self._switch.send_retained(self._client, new)
        self._switch.deliver()

    def unsubscribe(self, *filters: str) -> None:
        """Remove filters."""
        with self._switch.lock:
            for name in filters:
                self._client.filters.pop(name, None)

    def close(self) -> None:
        """Disconnect without the will, and stop. Safe to call twice."""
        with self._switch.lock:
            self._switch.end(self._client, will=False)


def _delivery(message: Outgoing, *, retain: bool) -> Delivery:
    return Delivery(
        topic=message.topic,
        payload=message.payload,
        retain=retain,
        response_topic=message.response_topic,
        correlation=message.correlation,
        content_type=message.content_type,
        expiry_s=message.expiry_s,
    )
