"""The client of sensors: it publishes requests, retries them by id until their deadline, and returns the answers.

Owns the thread, the futures and the transport; ``pending_requests`` owns the rules of when to send. Doesn't know
devices or modules.

Invariants:
- Each request ends in exactly one ``Response``, an answer or an error, by its deadline. A second answer to the same id
  is counted and dropped.
- Only ``close`` ends the client's thread. An unexpected error that concerns one request is raised by its future.
- No representation, error or log line has a password.
- An accepted request ends also when the client is closed meanwhile. A cancelled request is not resent.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Self

import structlog
from pydantic import JsonValue

from broker.given_inputs import File, Given, Text, read_given, read_raw
from broker.pending_requests import FIRST_RETRY_S, PendingRequest, PendingRequests
from broker.protocol.codec import MAX_CONTROL_BYTES, RawInput, decode_result, encode_request
from broker.protocol.errors import (
    ErrorCode,
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    RequestFailed,
    TransportError,
)
from broker.protocol.messages import MAX_DEADLINE_S, ErrorBody, Result, Route
from broker.protocol.specs import RequestId, TaskName
from broker.protocol.tensors import Tensors
from broker.protocol.topics import RESULTS, TASK_REQUESTS, TASK_ROUTE, prefix_of, read, require_id
from broker.protocol.trace_context import read_traceparent
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection, argument, connection_file, read_connection
from broker.transport.denials import Denials
from broker.transport.mailbox import Mailbox
from broker.transport.port import (
    Delivery,
    Denied,
    LinkDown,
    LinkEvent,
    LinkUp,
    MakeTransport,
    Outgoing,
    Subscribed,
    Undelivered,
)

log = structlog.get_logger()


@dataclass(frozen=True)
class Answer:
    """The answer to ``ask``."""

    answer: str  # the label, the text or the answer of the output; empty if it has none, as a mask or a vector
    output: dict[str, JsonValue]  # all that the task says
    tensors: Tensors  # its arrays, if it has any
    latency_s: float
    path: tuple[str, ...]  # the nodes that computed it, as NODE@DEVICE

    def __str__(self) -> str:
        return self.answer


@dataclass(frozen=True)
class Response:
    """The end of a request: an answer or an error."""

    result: Result
    latency_s: float
    attempts: int
    tensors: Tensors = field(default_factory=dict)  # the output, when it is a tensor
    failure: TransportError | None = None  # why it could not be asked: no connection, or an access rule

    @property
    def ok(self) -> bool:
        """Whether it is an answer."""
        return self.result.error is None


@dataclass(frozen=True)
class _Submitted:
    request: PendingRequest
    future: Future[Response]


class Client:
    """A sensor's client: ``client.ask("vqa", image="frame.jpg", text="what animal is this?").answer``.

    ``ask`` reads files, finds the inputs that they go to, and raises what goes wrong. ``request`` takes the inputs by
    their names, waits for a broker that is away, and returns errors; ``submit`` returns its future. ``ask_async`` and
    ``request_async`` are for asyncio. One client serves several threads of its process, and is a context manager.

    Args:
        broker: its address, ``mqtt://host:port`` or ``mqtts://host:port``, the ``pathlib.Path`` of a connection file,
            or a whole ``Connection``. What an address or a file leaves open, and without one everything, comes from
            the environment (``S2M3_BROKER``, ``S2M3_CA``, ...).
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
        broker: str | Path | Connection | None = None,
        *,
        client_id: str | None = None,
        site: str | None = None,
        first_retry_s: float = FIRST_RETRY_S,
        make_transport: MakeTransport = connect,
    ) -> None:
        if not isinstance(broker, Connection):
            if not (broker is None or isinstance(broker, (str, Path))):  # an error of the reader's would show the value
                kind = type(broker).__name__
                raise LocalProtocolError(
                    "broker must be an address such as mqtt://host:port, or the pathlib.Path of a connection file, "
                    f"got {kind}"
                )
            broker = read_connection(connection_file(broker) if isinstance(broker, Path) else argument(broker))
        connection = replace(broker, site=site or broker.site)
        self.client_id = client_id or connection.client_id or f"client-{uuid.uuid4().hex[:12]}"
        self.duplicates = 0
        """The number of answers to requests that already had one."""
        self._prefix, self._url = prefix_of(connection.site), connection.url
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
        self._process = os.getpid()
        self._transport.subscribe(RESULTS.filter(self._prefix, client=self.client_id))
        self._transport.start()
        self._thread.start()

    def submit(
        self,
        task: str,
        inputs: Mapping[str, RawInput | bytes | str],
        *,
        deadline_s: float = 30.0,
        traceparent: str | None = None,
    ) -> Future[Response]:
        """Send a request; returns the future of its response. Texts are sent as ``text/plain``, bytes without a type.

        A W3C ``traceparent`` goes with it, and stands in its trace; one that isn't valid is left out.

        Raises:
            LocalProtocolError: the task's name, an input or the deadline is not valid, or the client is closed.
        """
        self._check(task, deadline_s)
        payload, content_type = encode_request(read_raw(inputs))
        return self._submit(task, payload, content_type, deadline_s, traceparent=traceparent)

    def submit_given(
        self, task: str, given: Given, *, deadline_s: float, traceparent: str | None = None
    ) -> Future[Response]:
        """Send a request as ``ask`` does; returns the future of its response.

        Raises:
            LocalProtocolError: the task's name or the deadline is not valid, or the client is closed. The future raises
                it when the task has no such input.
        """
        self._check(task, deadline_s)
        return self._submit(task, b"", "", deadline_s, given, traceparent=traceparent)

    def _check(self, task: str, deadline_s: float) -> None:
        if not isinstance(deadline_s, Real) or not 0 < deadline_s <= MAX_DEADLINE_S:  # false for NaN, too
            raise LocalProtocolError(
                f"deadline_s must be greater than 0 and at most {MAX_DEADLINE_S:.0f}, got {deadline_s!r}"
            )
        TASK_REQUESTS.at(self._prefix, task=task)  # refuses an invalid name, at once

    def _submit(
        self,
        task: str,
        payload: bytes,
        content_type: str,
        deadline_s: float,
        given: Given | None = None,
        *,
        traceparent: str | None,
    ) -> Future[Response]:
        if os.getpid() != self._process:  # a fork has neither its thread nor its connection: nothing would ever end
            raise LocalProtocolError(
                "this client is another process's: make one in the process that asks, after its fork"
            )
        now_s = time.monotonic()
        pending = PendingRequest(uuid.uuid4().hex, task, payload, content_type, now_s, now_s + deadline_s, given=given)
        pending.traceparent = read_traceparent(*([traceparent] if isinstance(traceparent, str) else []))
        future: Future[Response] = Future()
        with self._closing:
            if self._closed:
                raise LocalProtocolError("this client is closed")
            taken = self._mailbox.put_control(_Submitted(pending, future))
        if not taken:
            text = "too many requests are pending here; submit fewer at a time"
            future.set_result(_response(pending, ErrorBody(code=ErrorCode.OVERLOADED, message=text)))
        return future

    def request(
        self,
        task: str,
        inputs: Mapping[str, RawInput | bytes | str],
        *,
        deadline_s: float = 30.0,
        traceparent: str | None = None,
    ) -> Response:
        """Send a request and wait for its response, which comes by the deadline."""
        return self.submit(task, inputs, deadline_s=deadline_s, traceparent=traceparent).result()

    async def request_async(
        self,
        task: str,
        inputs: Mapping[str, RawInput | bytes | str],
        *,
        deadline_s: float = 30.0,
        traceparent: str | None = None,
    ) -> Response:
        """Send a request and wait for its response without blocking the event loop."""
        return await asyncio.wrap_future(self.submit(task, inputs, deadline_s=deadline_s, traceparent=traceparent))

    def ask(
        self,
        task: str,
        *,
        image: File | None = None,
        text: Text | None = None,
        audio: File | None = None,
        deadline_s: float = 30.0,
        traceparent: str | None = None,
        **named: File | Text,
    ) -> Answer:
        """Ask a task and wait for its answer.

        Args:
            task: its name.
            image: the path or the bytes of a picture.
            text: a text, or a list of lines. Of a task with several texts each one goes to the next.
            audio: the path or the bytes of a sound.
            deadline_s: the longest wait.
            traceparent: W3C's, which stands in the request's trace; one that isn't valid is left out.
            named: values for the inputs of these names: texts, bytes, or a file as ``pathlib.Path``.

        Raises:
            RequestFailed: the task answers with an error: ``code`` and ``message`` say which.
            NotConnected: the broker can't be reached, or refuses this client; the message says why.
            BrokerRefused: an access rule of the broker forbids the question, or hides the answer.
            BadFile: a file can't be read, or holds another kind of input.
            LocalProtocolError: an argument is wrong, the task has no such input, or the client is closed.
        """
        given = read_given(image, text, audio, **named)
        return _answer_of(self.submit_given(task, given, deadline_s=deadline_s, traceparent=traceparent).result())

    async def ask_async(
        self,
        task: str,
        *,
        image: File | None = None,
        text: Text | None = None,
        audio: File | None = None,
        deadline_s: float = 30.0,
        traceparent: str | None = None,
        **named: File | Text,
    ) -> Answer:
        """``ask`` without blocking the event loop."""
        given = await asyncio.to_thread(read_given, image, text, audio, **named)
        pending = self.submit_given(task, given, deadline_s=deadline_s, traceparent=traceparent)
        return _answer_of(await asyncio.wrap_future(pending))

    def close(self) -> None:
        """Disconnect; pending requests end with an error. Safe to call twice, and in a fork, where it does nothing."""
        if os.getpid() != self._process:
            return
        with self._closing:
            self._closed = True
            self._mailbox.put_control(None)  # ends the wait for an event; when the mailbox is full, the thread is awake
        if threading.current_thread() is not self._thread:  # a future's callback may close the client
            self._thread.join()
        self._transport.close()

    def __repr__(self) -> str:
        return f"Client({self._url!r}, client_id={self.client_id!r})"

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
        is_small = len(delivery.payload) <= MAX_CONTROL_BYTES
        return is_small and TASK_ROUTE.match(self._prefix, delivery.topic) is not None

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
                self._pending.on_link_down(
                    reason, is_final=cause == "refused", is_taken=cause == "taken", is_absent=cause == "absent"
                )
            case Subscribed(topic):
                self._pending.on_subscribed(topic, now_s)
            case Undelivered(topic, token=str(request)):
                self._pending.on_undelivered(request, topic, now_s)
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
            request, self._pending.answered = incoming.ids["request"], True
            if request not in self._futures:
                self.duplicates += 1
                return
            result, tensors = decode_result(delivery.payload, delivery.content_type)
            code, wait_s = (result.error.code, result.error.retry_after_s) if result.error else (None, None)
            if code == ErrorCode.NO_ROUTE and wait_s is not None:
                self._pending.retry_after(request, wait_s, now_s)
            elif code != ErrorCode.OVERLOADED or self._pending.is_overloaded(request, wait_s or 0.0, now_s):
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
            if not isinstance(error, LocalProtocolError):
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
            if wanted == self._watched:
                return
            if new := [TASK_ROUTE.at(self._prefix, task=task) for task in sorted(wanted - self._watched)]:
                self._transport.subscribe(*new, confirm=True)
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
    failure = pending.failure if result.error else None
    return Response(result, time.monotonic() - pending.created_s, pending.attempts, tensors or {}, failure)


def _answer_of(response: Response) -> Answer:
    if response.failure is not None:
        raise response.failure
    result = response.result
    if result.error is not None:
        raise RequestFailed(result.error.code, result.error.message, retry_after_s=result.error.retry_after_s)
    output = result.answer or {}
    path = tuple(f"{timing.node}@{timing.device}" for timing in result.timings)
    return Answer(result.text, output, response.tensors, response.latency_s, path)
