"""One connection for a client and the sources beside it: an account may have only one.

Owns which event goes to whom. The client's own requests, answers and routes work as over a connection of its own; both
watch routes, so the client can't unsubscribe one that the sources read, and hears the last one when it subscribes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from broker.protocol.topics import RESULTS, TASK_ROUTE, read
from broker.transport.connection import Connection
from broker.transport.port import (
    Delivery,
    Denied,
    Inbox,
    LinkEvent,
    MakeTransport,
    Outgoing,
    Subscribed,
    Transport,
    Undelivered,
    WillFor,
)


class SharedLink:
    """A connection that ``make`` makes for a ``Client``, and that the sources use, too.

    Args:
        make_transport: the ordinary one.
        prefix: of the site's topics.
        inbox: of the sources.
        will: of the connection.
    """

    def __init__(self, make_transport: MakeTransport, prefix: str, inbox: Inbox, will: WillFor) -> None:
        self._make_transport, self._prefix, self._will = make_transport, prefix, will
        self._inbox = inbox
        self._client: Inbox = lambda _: None
        self._transport: Transport | None = None
        self._routes: dict[str, Delivery | None] = {}  # by topic: those that the sources read, and the last message

    def make(
        self,
        connection: Connection,
        /,
        *,
        inbox: Inbox,
        **options: Any,  # noqa: ANN401 - those of ``MakeTransport``
    ) -> SharedLink:
        """The ``make_transport`` of the client."""
        self._client = inbox
        self._transport = self._make_transport(connection, inbox=self._receive, **{**options, "will": self._will})
        return self

    @property
    def transport(self) -> Transport:
        """The connection itself."""
        assert self._transport is not None, "make was not called"  # noqa: S101
        return self._transport

    def watch_routes(self, topics: set[str]) -> None:
        """Read these routes, and no others, beside those that the client reads."""
        new = sorted(topics - self._routes.keys())
        for topic in self._routes.keys() - topics:
            del self._routes[topic]  # the client may read it still, and unsubscribes it then
        self._routes |= dict.fromkeys(new)
        if new:
            self.transport.unsubscribe(*new)  # where the client reads it already, its last message must come again
            self.transport.subscribe(*new)

    # --- what the client uses ---

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.transport.connected

    def start(self) -> None:
        """Begin to connect."""
        self.transport.start()

    def publish(self, message: Outgoing) -> None:
        """Hand a message to the broker."""
        self.transport.publish(message)

    def together(self) -> AbstractContextManager[None]:
        """Nothing: several threads publish here."""
        return nullcontext()

    def subscribe(self, *filters: str, confirm: bool = False) -> None:
        """Add filters; of a route that is read already the last message is delivered again."""
        self.transport.subscribe(*(each for each in filters if each not in self._routes), confirm=confirm)
        for each in filters:
            if each in self._routes and confirm:
                self._client(Subscribed(each))
            if (last := self._routes.get(each)) is not None:
                self._client(last)

    def unsubscribe(self, *filters: str) -> None:
        """Remove filters, but for the routes that the sources read."""
        self.transport.unsubscribe(*(each for each in filters if each not in self._routes))

    def close(self) -> None:
        """Disconnect."""
        self.transport.close()

    # --- the network's thread ---

    def _receive(self, event: LinkEvent) -> None:
        for inbox in self._readers(event):
            inbox(event)

    def _readers(self, event: LinkEvent) -> tuple[Callable[[LinkEvent], None], ...]:
        match event:
            case Undelivered() | Subscribed():
                return (self._client,)
            case Delivery(topic=topic) | Denied(topic=topic):
                incoming = read(self._prefix, topic, b"")
                row = incoming.topic if incoming else None
                if row is TASK_ROUTE:
                    if isinstance(event, Delivery) and topic in self._routes:
                        self._routes[topic] = event
                    return self._client, self._inbox
                asks = topic.startswith((f"{self._prefix}/clients/", f"{self._prefix}/tasks/"))
                return (self._client,) if row is RESULTS or (isinstance(event, Denied) and asks) else (self._inbox,)
            case _:
                return self._client, self._inbox
