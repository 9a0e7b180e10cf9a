"""The port in one process, without a broker: the twin of ``mqtt``, for unit tests and for users' own tests.

Owns an MQTT broker's behaviour as far as the port shows it: retained messages, wildcards, share groups in turn, wills,
"no matching subscribers", the packet limit; and faults to order. Held to the same contract tests as the real thing.

Invariants:
- Deterministic: no clock (nothing expires), no chance, no thread of its own. An event is delivered in the thread that
  caused it.
- The inbox is never called under the lock, so it may publish; the events of one receiver keep their order.
- A crash, a partition or a restart is seen by both sides at once.
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
    """Whether an MQTT filter (without ``$share``) takes in a topic."""
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
    """What the broker knows of one transport."""

    client_id: str
    inbox: Inbox
    will_for: WillFor | None
    filters: dict[str, None] = field(default_factory=dict)  # in the order made
    events: deque[LinkEvent] = field(default_factory=deque)  # not yet handed over
    kept: list[Outgoing] = field(default_factory=list)  # lasting messages for the next connection
    will: Will | None = None
    linked: bool = False
    closed: bool = False
    delivering: bool = False  # some thread is in the inbox; it goes on with what others add


@dataclass
class _Switch:
    """The broker's inside: who is connected, what is retained, who gets what.

    Every method but ``hand_over`` is called under the lock and leaves events at clients; then ``hand_over`` is called
    without it.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    retained: dict[str, Outgoing] = field(default_factory=dict)
    linked: dict[str, _Client] = field(default_factory=dict)  # by client id
    waiting: dict[str, _Client] = field(default_factory=dict)  # started, and to be connected again
    started: list[_Client] = field(default_factory=list)  # and neither closed nor crashed
    cut: set[str] = field(default_factory=set)
    turns: dict[str, int] = field(default_factory=dict)  # share filter -> messages handed out
    sessions: int = 0
    dropping: list[str] = field(default_factory=list)
    duplicating: list[str] = field(default_factory=list)
    holding: list[str] = field(default_factory=list)
    held: list[tuple[_Client, Outgoing]] = field(default_factory=list)  # publisher, message

    def publish(self, publisher: _Client, message: Outgoing) -> None:
        """Take a message in, or hold it."""
        if any(matches(held, message.topic) for held in self.holding):
            self.held.append((publisher, message))
        else:
            self.route(publisher, message)

    def route(self, publisher: _Client, message: Outgoing) -> None:
        """Leave a message with everybody who gets it, and word with the publisher when nobody does."""
        if any(matches(lost, message.topic) for lost in self.dropping):
            return
        if message.retain and message.payload:
            self.retained[message.topic] = message
        elif message.retain:
            self.retained.pop(message.topic, None)
        receivers = self.receivers(message.topic)
        times = 2 if any(matches(twice, message.topic) for twice in self.duplicating) else 1
        for receiver in receivers:
            receiver.events.extend([_delivery(message, retain=False)] * times)
        if not receivers and publisher.linked and message.qos == 1 and message.token is not None:
            publisher.events.append(Undelivered(message.topic, message.token))

    def receivers(self, topic: str) -> list[_Client]:
        """Everybody with a filter of their own, once each; and one member of each share group, in turn."""
        chosen: list[_Client] = []
        groups: dict[str, list[_Client]] = {}
        for client in self.linked.values():
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

    def link(self, client: _Client) -> None:
        """Connect a client, unless it is cut off. An older one of the same id is ended, and doesn't fight."""
        if client.client_id in self.cut:
            self.waiting[client.client_id] = client
            return
        self.lose(client.client_id, "the broker ended the connection: session taken over")
        self.waiting.pop(client.client_id, None)
        self.sessions += 1
        client.linked = True
        client.will = client.will_for(self.sessions) if client.will_for else None
        client.events.append(LinkUp(self.sessions))
        self.linked[client.client_id] = client
        self.send_retained(client, tuple(client.filters))
        kept, client.kept = client.kept, []
        for message in kept:
            self.publish(client, message)

    def lose(self, client_id: str, reason: str, *, will: bool = True) -> None:
        """End a connection; both sides see it."""
        client = self.linked.pop(client_id, None)
        if client is None:
            return
        self.waiting[client_id] = client
        client.linked = False
        client.events.append(LinkDown(reason))
        if will and client.will is not None:
            last = client.will
            self.publish(client, Outgoing(last.topic, last.payload, last.qos, last.retain))

    def link_waiting(self) -> None:
        """Everybody who can connects again."""
        for client in tuple(self.waiting.values()):
            self.link(client)

    def end(self, client: _Client, *, will: bool) -> None:
        """A client is gone for good: closed or crashed."""
        if self.linked.get(client.client_id) is client:
            self.lose(client.client_id, "", will=will)
        if self.waiting.get(client.client_id) is client:
            del self.waiting[client.client_id]
        if client in self.started:
            self.started.remove(client)
        client.closed = True
        client.events.clear()

    def send_retained(self, client: _Client, filters: tuple[str, ...]) -> None:
        """What a new subscription gets at once; share groups get nothing."""
        for name in filters:
            found = (state for topic, state in self.retained.items() if matches(name, topic))
            client.events.extend(_delivery(state, retain=True) for state in found)

    def hand_over(self) -> None:
        """Call every inbox with what waits for it, without the lock, until nothing waits."""
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
    """What all memory transports of a test connect to, and the faults to order.

    Args:
        max_packet_bytes: larger messages are refused.
    """

    def __init__(self, *, max_packet_bytes: int = MAX_PACKET_BYTES) -> None:
        self.max_packet_bytes = max_packet_bytes
        self.switch = _Switch()

    @contextmanager
    def dropping(self, topic_filter: str) -> Iterator[None]:
        """Lose what is published there: accepted, and never delivered."""
        with self._fault(self.switch.dropping, topic_filter):
            yield

    @contextmanager
    def duplicating(self, topic_filter: str) -> Iterator[None]:
        """Deliver everything published there twice."""
        with self._fault(self.switch.duplicating, topic_filter):
            yield

    @contextmanager
    def holding(self, topic_filter: str) -> Iterator[None]:
        """Hold back what is published there; it is released in order at the end."""
        try:
            with self._fault(self.switch.holding, topic_filter):
                yield
        finally:
            with self._change() as switch:
                held = switch.held
                switch.held = []
                for publisher, message in held:
                    switch.publish(publisher, message)

    @contextmanager
    def partitioned(self, client_id: str) -> Iterator[None]:
        """Cut one client off: it sees its link go, the others see its will; it comes back at the end."""
        with self._change() as switch:
            switch.cut.add(client_id)
            switch.lose(client_id, "the connection was lost")
        try:
            yield
        finally:
            with self._change() as switch:
                switch.cut.discard(client_id)
                switch.link_waiting()

    def connect(self, url: str = "", *, client_id: str, inbox: Inbox, will: WillFor | None = None) -> MemoryTransport:  # noqa: ARG002
        """A transport to this broker, whatever the ``url`` (see ``MakeTransport``)."""
        return MemoryTransport(self, client_id=client_id, inbox=inbox, will=will)

    def crash(self, client_id: str) -> None:
        """End a client as a killed process ends: its will is published, and it hears and says nothing any more.

        Raises:
            LocalProtocolError: no such client is started.
        """
        with self._change() as switch:
            client = switch.linked.get(client_id) or switch.waiting.get(client_id)
            if client is None:
                raise LocalProtocolError(f"no client {client_id!r} is started, so it can't crash")
            switch.end(client, will=True)

    def restart(self, *, keep_retained: bool = False) -> None:
        """End and start the broker: every link goes without a will, and comes back with a new session."""
        with self._change() as switch:
            for client_id in tuple(switch.linked):
                switch.lose(client_id, "the broker went away", will=False)
            if not keep_retained:
                switch.retained.clear()
            switch.turns.clear()
            switch.link_waiting()

    @contextmanager
    def _change(self) -> Iterator[_Switch]:
        with self.switch.lock:
            yield self.switch
        self.switch.hand_over()

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
    """A connection to a ``MemoryBroker`` (see ``Transport``). What a call causes has happened when it returns.

    An exception of an inbox is raised where it was caused: in a test that is what one wants to see.

    Args:
        broker: what to connect to.
        client_id: two connections must not have the same; the broker ends the older one.
        inbox: called in the thread that caused the event.
        will: makes the will for each connection's session number; sessions count from 1.
        max_packet_bytes: larger messages are refused here.
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
        """Whether a publish has a chance now."""
        return self._client.linked

    def start(self) -> None:
        """Connect; ``LinkUp`` has come when this returns, unless the client is cut off.

        Raises:
            TransportError: it was closed before.
        """
        with self._switch.lock:
            if self._client.closed:
                raise TransportError("this transport was closed: make a new one")
            if self._client not in self._switch.started:
                self._switch.started.append(self._client)
                self._switch.link(self._client)
        self._switch.hand_over()

    def publish(self, message: Outgoing) -> None:
        """Deliver a message to everybody who subscribes to its topic.

        Raises:
            NotConnected: there is no connection, and the message isn't lasting.
            MessageTooLarge: beyond the broker's or our own limit.
        """
        size_bytes = message.packet_bytes
        with self._switch.lock:
            if not self._client.linked and (self._client.closed or not message.lasting):
                raise NotConnected(f"no connection to the broker now, so {message.topic} was not published")
            if size_bytes > self._max_packet_bytes:
                raise MessageTooLarge(topic=message.topic, size_bytes=size_bytes, limit_bytes=self._max_packet_bytes)
            if self._client.linked:
                self._switch.publish(self._client, message)
            else:
                self._client.kept.append(message)
        self._switch.hand_over()

    def subscribe(self, *filters: str) -> None:
        """Add filters; they are remembered and made again at each connection."""
        with self._switch.lock:
            new = tuple(name for name in dict.fromkeys(filters) if name not in self._client.filters)
            self._client.filters.update(dict.fromkeys(new))
            if self._client.linked:
                self._switch.send_retained(self._client, new)
        self._switch.hand_over()

    def unsubscribe(self, *filters: str) -> None:
        """Take filters away."""
        with self._switch.lock:
            for name in filters:
                self._client.filters.pop(name, None)

    def close(self) -> None:
        """Disconnect cleanly (no will) and stop. Safe to call twice."""
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
