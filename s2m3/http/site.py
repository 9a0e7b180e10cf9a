"""The site behind the door: one connection, with the requests of all HTTP clients and the tasks that are deployed.

Owns the connection. It is one, because an access rule may bind the account to one client id. The client's rules of when
to send, and when to resend, are those of any sensor.

Invariants:
- While there is no connection to the broker, a request is refused at once, with the reason.
- Routes of an older connection don't count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from broker.client import Client, Response
from broker.protocol.codec import MAX_CONTROL_BYTES, RawInput
from broker.protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from broker.protocol.messages import Route
from broker.protocol.specs import MAX_TASKS
from broker.protocol.topics import TASK_ROUTE, prefix_of, read
from broker.transport.connect import connect
from broker.transport.connection import Connection
from broker.transport.port import (
    Delivery,
    Denied,
    Inbox,
    LinkDown,
    LinkEvent,
    LinkUp,
    MakeTransport,
    Transport,
)
from s2m3.http.refusals import UNAVAILABLE, Refusal, no_task, refusal_of

log = structlog.get_logger()

BACK_S = 2.0  # a broker that restarts is back soon


class Site:
    """Asks the tasks of a site, for any number of HTTP clients.

    Args:
        connection: the broker, and how to reach it.
        who: what asks, as its clients call it.
        make_transport: a test passes that of the in-memory broker.

    Raises:
        BadFile: a file of the connection can't be used.
    """

    def __init__(
        self, connection: Connection, *, who: str = "HTTP door", make_transport: MakeTransport = connect
    ) -> None:
        self.why_away: str | None = f"the broker at {connection} has not answered yet"
        """The reason why no request can be sent now."""
        self.why_hidden: str | None = None
        """The reason why the deployed tasks can't be listed."""
        self._who = who
        self._prefix = prefix_of(connection.site)
        self._filter = TASK_ROUTE.filter(self._prefix)
        self._routes: dict[str, Route] = {}
        self._make_transport = make_transport
        self._ended = False
        self._client = Client(connection, make_transport=self._connect)

    @property
    def routes(self) -> Mapping[str, Route]:
        """The routes of the deployed tasks, by task."""
        return dict(sorted(self._routes.copy().items()))

    async def ask(
        self, task: str, inputs: Mapping[str, RawInput], deadline_s: float, traceparent: str | None = None
    ) -> Response:
        """The answer to a request; its trace has the ``traceparent``.

        Raises:
            Refusal: the request ended without an answer.
        """
        if refusal := self.refusal():
            raise refusal
        try:
            pending = self._client.submit(task, inputs, deadline_s=deadline_s, traceparent=traceparent)
        except LocalProtocolError as error:
            raise self.refusal() or no_task(task) from error  # no task can have this name
        response = await asyncio.wrap_future(pending)
        failure = response.result.error
        if failure is None:
            return response
        if failure.code in {ErrorCode.NO_ROUTE, ErrorCode.DEADLINE_EXCEEDED} and (refusal := self.refusal()):
            raise refusal
        if failure.code == ErrorCode.NO_ROUTE and self.why_hidden is None and task not in self._routes:
            raise no_task(task)
        raise refusal_of(failure)

    def close(self) -> None:
        """Disconnect; requests that are still pending are refused. Safe to call twice."""
        self._ended = True
        self.why_away = f"this {self._who} is ending"
        self._client.close()

    def refusal(self) -> Refusal | None:
        """The refusal of every request while none can be sent; None while the broker is connected."""
        why = self.why_away
        if why is None:
            return None
        return Refusal(UNAVAILABLE, ErrorCode.NO_ROUTE, f"{why}: try again later", retry_after_s=BACK_S)

    # --- the transport's threads ---

    def _connect(
        self,
        connection: Connection,
        /,
        *,
        inbox: Inbox,
        **options: Any,  # noqa: ANN401 - those of ``MakeTransport``
    ) -> Transport:
        """The client's transport, whose events this class sees first."""

        def see(event: LinkEvent) -> None:
            self._see(event)
            inbox(event)

        transport = self._make_transport(connection, inbox=see, **options)
        transport.subscribe(self._filter)
        return transport

    def _see(self, event: LinkEvent) -> None:
        match event:
            case LinkUp():
                self.why_away = None if not self._ended else self.why_away
                log.info("broker_reached")
            case LinkDown(reason):
                self.why_away, self.why_hidden = f"no connection to the broker: {reason}", None
                self._routes.clear()
            case Denied(topic, reason) if topic == self._filter:
                self.why_hidden = f"the broker refused {topic}: {reason}"
            case Delivery():
                self._note(event)

    def _note(self, event: Delivery) -> None:
        incoming = read(self._prefix, event.topic, event.payload, retained=event.retain)
        if incoming is None or incoming.topic is not TASK_ROUTE or len(event.payload) > MAX_CONTROL_BYTES:
            return
        task = incoming.ids["task"]
        try:
            route = incoming.decode()
        except RemoteProtocolError as error:
            log.warning("message_refused", topic=event.topic, error=str(error))
            return
        if not isinstance(route, Route):
            self._routes.pop(task, None)
        elif task in self._routes or len(self._routes) < MAX_TASKS:
            self._routes[task] = route
