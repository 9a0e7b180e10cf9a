"""The client of sensors: it publishes requests, retries them by id until their deadline, and returns the answers.

Owns the thread, the futures and the transport; ``pending_requests`` owns the rules of when to send. Doesn't know
devices or modules.

Invariants:
- Each request ends in exactly one ``Response``, an answer or an error, by its deadline. A second answer to the same id
  is counted and dropped.
- Only ``close`` ends the client's thread. An unexpected error that concerns one request is raised by its future.
- An accepted request ends also when the client is closed meanwhile. A cancelled request is not resent.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

import structlog

from broker.pending_requests import FIRST_RETRY_S, PendingRequest, PendingRequests
from broker.protocol.codec import MAX_CONTROL_BYTES, RawInput, decode_result, encode_request
from broker.protocol.errors import ErrorCode, LocalProtocolError, MessageTooLarge, RemoteProtocolError, TransportError
from broker.protocol.messages import MAX_DEADLINE_S, ErrorBody, Result, Route
from broker.protocol.specs import RequestId, TaskName
from broker.protocol.tensors import Tensors
from broker.protocol.topics import RESULTS, TASK_REQUESTS, TASK_ROUTE, prefix_of, read, require_id
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection, command_line, read_connection
from broker.transport.denials import Denials
from broker.transport.mailbox import Mailbox
from broker.transport.port import Delivery, Denied, LinkDown, LinkEvent, LinkUp, MakeTransport, Outgoing, Undelivered

log = structlog.get_logger()


@dataclass(frozen=True)
class Response:
    """The end of a request: an answer or an error."""

    result: Result
    latency_s: float
    attempts: int
    tensors: Tensors = field(default_factory=dict)  # the output, when it is a tensor

    @property
    def ok(self) -> bool:
        """Whether it is an answer."""
        return self.result.error is None


@dataclass(frozen=True)
class _Submitted:
    request: PendingRequest
    future: Future[Response]


class Client:
    """A sensor's client. ``submit`` returns a future, ``request`` waits, ``request_async`` is for asyncio.

    Args:
        broker: its address, ``mqtt://host:port`` or ``mqtts://host:port``, or a whole ``Connection``. What an address
            leaves open, and without one everything, comes from the environment (``S2M3_BROKER``, ``S2M3_CA``, ...).
        client_id: a unique id, also of its MQTT connection; answers come back below its topic. Default: the
            connection's, or else a new one.
        site: the site's topic prefix, when it has one; default: the connection's.
        first_retry_s: time without an answer before a request is resent; it doubles with each attempt, up to 5 s.
            Raise it where answers take long.
        make_transport: a test passes that of the in-memory broker.

    Raises:
        LocalProtocolError: the client id is not valid.
        BadFile: the address, or a file of the connection, can't be used.
    """

    def __init__(
        self,
        broker: str | Connection | None = None,
        *,
        client_id: str | None = None,
        site: str | None = None,
        first_retry_s: float = FIRST_RETRY_S,
        make_transport: MakeTransport = connect,
    ) -> None:
        connection = broker if isinstance(broker, Connection) else read_connection(command_line(broker=broker))
        connection = replace(connection, site=site or connection.site)
        self.client_id = client_id or connection.client_id or f"client-{uuid.uuid4().hex[:12]}"
        self.duplicates = 0
        """The number of answers to requests that already had one."""
        self._prefix = prefix_of(connection.site)
        require_id("client", self.client_id)
        self._mailbox: Mailbox[LinkEvent | _Submitted | None] = Mailbox()
        self._pending = PendingRequests(self._prefix, self.client_id, str(connection), first_retry_s=first_retry_s)
        self._denials = Denials(self._prefix)
        self._futures: dict[RequestId, Future[Response]] = {}
        self._watched: frozenset[TaskName] = frozenset()
        mqtt_id = client_id or client_id_for(connection)
        self._transport = make_transport(connection, client_id=mqtt_id, inbox=self._put)
        self._thread = threading.Thread(target=self._run, name=f"client[{self.client_id}]", daemon=True)
        self._closing = threading.Lock()  # guards _closed: a request that was submitted before it is set still ends
        self._closed = False
        self._transport.subscribe(RESULTS.filter(self._prefix, client=self.client_id))
        self._transport.start()
        self._thread.start()

    def submit(
        self, task: str, inputs: Mapping[str, RawInput | bytes | str], *, deadline_s: float = 30.0
    ) -> Future[Response]:
        """Send a request; returns the future of its response. Texts are sent as ``text/plain``, bytes without a type.

        Raises:
            LocalProtocolError: the task's name or the deadline is not valid, or the client is closed.
        """
        if not 0 < deadline_s <= MAX_DEADLINE_S:  # false for NaN, too
            raise LocalProtocolError(
                f"deadline_s must be greater than 0 and at most {MAX_DEADLINE_S:.0f}, got {deadline_s}"
            )
        TASK_REQUESTS.at(self._prefix, task=task)  # refuses an invalid name, at once
        payload, content_type = encode_request({name: _raw(value) for name, value in inputs.items()})
        now_s = time.monotonic()
        pending = PendingRequest(uuid.uuid4().hex, task, payload, content_type, now_s, now_s + deadline_s)
        future: Future[Response] = Future()
        with self._closing:
            if self._closed:
                raise LocalProtocolError("this client is closed")
            taken = self._mailbox.put_control(_Submitted(pending, future))
        if not taken:
            text = "too many requests are pending here; submit fewer at a time"
            future.set_result(_response(pending, ErrorBody(code=ErrorCode.OVERLOADED, message=text)))
        return future

    def request(self, task: str, inputs: Mapping[str, RawInput | bytes | str], *, deadline_s: float = 30.0) -> Response:
        """Send a request and wait for its response, which comes by the deadline."""
        return self.submit(task, inputs, deadline_s=deadline_s).result()

    async def request_async(
        self, task: str, inputs: Mapping[str, RawInput | bytes | str], *, deadline_s: float = 30.0
    ) -> Response:
        """Send a request and wait for its response without blocking the event loop."""
        return await asyncio.wrap_future(self.submit(task, inputs, deadline_s=deadline_s))

    def close(self) -> None:
        """Disconnect; pending requests end with an error. Safe to call twice."""
        with self._closing:
            self._closed = True
            self._mailbox.put_control(None)  # ends the wait for an event; when the mailbox is full, the thread is awake
        if threading.current_thread() is not self._thread:  # a future's callback may close the client
            self._thread.join()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the transport's threads ---

    def _put(self, event: LinkEvent) -> None:
        if isinstance(event, Delivery) and not self._is_route(event):
            self._mailbox.put_data(event, len(event.payload))
        else:
            self._mailbox.put_control(event, len(event.payload) if isinstance(event, Delivery) else 0)

    def _is_route(self, delivery: Delivery) -> bool:
        """Routes stay in order with the link's events: a route of the old link must not count for the new one."""
        incoming = read(self._prefix, delivery.topic, delivery.payload, retained=delivery.retain)
        return incoming is not None and incoming.topic is TASK_ROUTE and len(delivery.payload) <= MAX_CONTROL_BYTES

    # --- the client's own thread ---

    def _run(self) -> None:
        while not self._closed:
            next_s = self._pending.next_deadline_s()
            event = self._mailbox.get(None if next_s is None else max(0.0, next_s - time.monotonic()))
            try:
                self._handle(event)
            except RemoteProtocolError as error:
                log.warning("message_refused", client=self.client_id, error=str(error))
            except Exception:
                log.exception("event_failed", client=self.client_id, event_type=type(event).__name__)
            self._pending.drop_unconfirmed_routes(time.monotonic())
            for request in self._pending.ids:
                self._advance(request)
            self._watch()
        while event := self._mailbox.get(0):
            if isinstance(event, _Submitted):
                self._take(event)
        closed = ErrorBody(code=ErrorCode.DEADLINE_EXCEEDED, message="the client was closed")
        for request in self._pending.ids:
            self._answer(request, closed)

    def _handle(self, event: LinkEvent | _Submitted | None) -> None:
        now_s = time.monotonic()
        match event:
            case _Submitted():
                self._take(event)
            case Delivery():
                self._receive(event, now_s)
            case LinkUp():
                self._pending.on_link_up(now_s)
            case LinkDown(reason, cause):
                self._pending.on_link_down(reason, is_final=cause == "refused")
            case Undelivered(topic, token=str(request)):
                self._pending.on_undelivered(request, now_s)
                self._pending.on_topic_refused(topic, now_s)
            case Denied(topic, reason, token):
                if self._denials.is_new(event):
                    log.warning("denied_by_broker", client=self.client_id, topic=topic, reason=reason)
                self._pending.on_denied(topic, reason, token if isinstance(token, str) else None, now_s)

    def _take(self, submitted: _Submitted) -> None:
        self._futures[submitted.request.id] = submitted.future
        self._pending.add(submitted.request, time.monotonic())

    def _receive(self, delivery: Delivery, now_s: float) -> None:
        incoming = read(self._prefix, delivery.topic, delivery.payload, retained=delivery.retain)
        if incoming is not None and incoming.topic is TASK_ROUTE:
            route = incoming.decode()
            self._pending.on_route(incoming.ids["task"], route if isinstance(route, Route) else None, now_s)
        elif incoming is not None and incoming.topic is RESULTS:
            request = incoming.ids["request"]
            if request not in self._futures:
                self.duplicates += 1
                return
            result, tensors = decode_result(delivery.payload, delivery.content_type)
            wait_s = result.error.retry_after_s if result.error else None
            if result.error and result.error.code == ErrorCode.NO_ROUTE and wait_s is not None:
                self._pending.retry_after(request, wait_s, now_s)
            else:
                self._answer(request, result, tensors)

    def _advance(self, request: RequestId) -> None:
        try:
            if self._futures[request].cancelled():
                self._end(request)
                return
            step = self._pending.step(request, time.monotonic())
            if isinstance(step, ErrorBody):
                self._answer(request, step)
            elif step is not None:
                self._publish(request, step)
        except Exception as error:
            log.exception("request_failed", client=self.client_id, request=request)
            future = self._end(request)[1]
            if future is not None:
                future.set_exception(error)

    def _publish(self, request: RequestId, message: Outgoing) -> None:
        try:
            self._transport.publish(message)
        except TransportError:
            self._pending.on_not_sent(request, time.monotonic())
        except MessageTooLarge as error:
            self._answer(request, ErrorBody(code=ErrorCode.TOO_LARGE, message=str(error)))

    def _watch(self) -> None:
        """Subscribe to the watched routes only."""
        try:
            wanted = self._pending.prune_watches(time.monotonic())
            if new := [TASK_ROUTE.at(self._prefix, task=task) for task in sorted(wanted - self._watched)]:
                self._transport.subscribe(*new)
            if old := [TASK_ROUTE.at(self._prefix, task=task) for task in sorted(self._watched - wanted)]:
                self._transport.unsubscribe(*old)
            self._watched = wanted
        except Exception:
            log.exception("watching_failed", client=self.client_id)

    def _answer(self, request: RequestId, answer: Result | ErrorBody, tensors: Tensors | None = None) -> None:
        pending, future = self._end(request)
        if pending is not None and future is not None:
            future.set_result(_response(pending, answer, tensors))

    def _end(self, request: RequestId) -> tuple[PendingRequest | None, Future[Response] | None]:
        """Remove a request; its future is None when the caller cancelled it."""
        pending, future = self._pending.remove(request), self._futures.pop(request, None)
        awaited = future is not None and future.set_running_or_notify_cancel()
        return pending, future if awaited else None


def _response(pending: PendingRequest, answer: Result | ErrorBody, tensors: Tensors | None = None) -> Response:
    result = answer if isinstance(answer, Result) else Result(request=pending.id, task=pending.task, error=answer)
    return Response(result, time.monotonic() - pending.created_s, pending.attempts, tensors or {})


def _raw(value: RawInput | bytes | str) -> RawInput:
    if isinstance(value, RawInput):
        return value
    if isinstance(value, str):
        return RawInput(value.encode(), "text/plain")
    return RawInput(value)
