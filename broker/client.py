"""Requests for sensors: publish, await, retry by id until the deadline. Synchronous, with an async twin.

Owns every request that this process made: each ends in exactly one ``Response``, an answer or an error, by its
deadline; a second answer to the same id is counted and dropped. Knows nothing of devices or modules: a task's route
only tells it when to send again at once.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self

import structlog

from broker.codec import SAFETENSORS, RawInput, decode, encode_request
from broker.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, TransportError
from broker.mailbox import Mailbox
from broker.messages import ErrorBody, Result, Route
from broker.mqtt import MqttTransport
from broker.tensors import Tensors, unpack
from broker.topics import RESULTS, TASK_REQUESTS, TASK_ROUTE, prefix_of
from broker.transport import Delivery, Denied, Inbox, LinkDown, LinkEvent, LinkUp, Outgoing, Transport, Undelivered

log = structlog.get_logger()

ROUTE_WAIT_S = 0.7  # a retained route arrives within milliseconds of the subscription; then there is none
FIRST_RETRY_S = 1.0  # doubles up to the longest
LONGEST_RETRY_S = 5.0
SOON_S = 0.1  # after "nobody subscribes", or a new front door that is about to

MakeTransport = Callable[[str, Inbox], Transport]
"""Makes a transport from a client id and an inbox."""


@dataclass(frozen=True)
class Response:
    """How a request ended, as its sensor sees it."""

    result: Result
    latency_s: float
    attempts: int
    tensors: Tensors = field(default_factory=dict)  # when the task's output is one

    @property
    def ok(self) -> bool:
        """Whether it is an answer, not an error."""
        return self.result.error is None


@dataclass
class _Pending:
    request: str
    task: str
    payload: bytes
    content_type: str
    asked_s: float
    deadline_s: float
    future: Future[Response]
    next_send_s: float
    attempts: int = 0


@dataclass(frozen=True)
class _Ask:
    pending: _Pending


@dataclass(frozen=True)
class _Stop:
    pass


class Client:
    """A sensor's way in.

    Args:
        url: the broker, ``mqtt://host:port``.
        client_id: below which topic answers come back; a new one when not given.
        site: the site's topic prefix, when it has one.
        make_transport: for tests over the in-memory twin; paho by default.
    """

    def __init__(
        self,
        url: str = "mqtt://127.0.0.1:1883",
        *,
        client_id: str | None = None,
        site: str | None = None,
        make_transport: MakeTransport | None = None,
    ) -> None:
        self.client_id = client_id or f"client-{uuid.uuid4().hex[:12]}"
        self.duplicates = 0
        """Answers to requests that already had one."""
        self._url = url
        self._prefix = prefix_of(site)
        self._mailbox: Mailbox[LinkEvent | _Ask | _Stop] = Mailbox()
        make = make_transport or (lambda name, inbox: MqttTransport(url=url, client_id=name, inbox=inbox))
        self._transport = make(self.client_id, self._put)
        self._pending: dict[str, _Pending] = {}
        self._routes: dict[str, Route] = {}
        self._watched_s: dict[str, float] = {}  # task -> since when its route is awaited
        self._link = False
        self._thread = threading.Thread(target=self._run, name=f"client[{self.client_id}]", daemon=True)
        self._closed = False
        self._transport.subscribe(RESULTS.filter(self._prefix, client=self.client_id))
        self._transport.start()
        self._thread.start()

    def submit(
        self, task: str, inputs: Mapping[str, RawInput | bytes | str], *, deadline_s: float = 30.0
    ) -> Future[Response]:
        """Ask, and go on. Texts are sent as ``text/plain``; bytes without a content type.

        Raises:
            LocalProtocolError: the task's name is none, or the client is closed.
        """
        if self._closed:
            raise LocalProtocolError("this client is closed")
        TASK_REQUESTS.at(self._prefix, task=task)  # refuses a name that is none, here and now
        payload, content_type = encode_request({name: _raw(value) for name, value in inputs.items()})
        now_s = time.monotonic()
        pending = _Pending(
            uuid.uuid4().hex, task, payload, content_type, now_s, now_s + deadline_s, Future(), next_send_s=now_s
        )
        if not self._mailbox.put_control(_Ask(pending)):
            pending.future.set_result(self._failed(pending, ErrorCode.OVERLOADED, "too many requests wait here"))
        return pending.future

    def request(self, task: str, inputs: Mapping[str, RawInput | bytes | str], *, deadline_s: float = 30.0) -> Response:
        """Ask and wait for how it ends: an answer or an error, by the deadline."""
        return self.submit(task, inputs, deadline_s=deadline_s).result()

    async def request_async(
        self, task: str, inputs: Mapping[str, RawInput | bytes | str], *, deadline_s: float = 30.0
    ) -> Response:
        """The same without blocking the event loop."""
        return await asyncio.wrap_future(self.submit(task, inputs, deadline_s=deadline_s))

    def close(self) -> None:
        """Disconnect; requests that still wait end with an error. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._mailbox.put_control(_Stop())
            self._thread.join()
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the client's own thread ---

    def _put(self, event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            self._mailbox.put_data(event, len(event.payload))
        else:
            self._mailbox.put_control(event)

    def _run(self) -> None:
        while True:
            times = [min(p.next_send_s, p.deadline_s) for p in self._pending.values()]
            wait_s = max(0.0, min(times) - time.monotonic()) if times else None
            event = self._mailbox.get(wait_s)
            if isinstance(event, _Stop):
                break
            try:
                self._handle(event)
            except RemoteProtocolError as error:
                log.warning("message_refused", client=self.client_id, error=str(error))
            for pending in list(self._pending.values()):
                self._advance(pending, time.monotonic())
        for pending in list(self._pending.values()):
            self._end(pending, self._failed(pending, ErrorCode.DEADLINE_EXCEEDED, "the client was closed"))

    def _handle(self, event: LinkEvent | _Ask | _Stop | None) -> None:
        match event:
            case _Ask(pending):
                self._pending[pending.request] = pending
                self._watch(pending.task)
            case Delivery():
                self._receive(event)
            case LinkUp():
                self._link = True
                now_s = time.monotonic()
                self._watched_s = dict.fromkeys(self._watched_s, now_s)
                self._hurry(lambda _: True, now_s)
            case LinkDown():
                self._link = False
            case Undelivered(_, token):
                self._hurry(lambda pending: pending.request == token, time.monotonic() + SOON_S)
            case Denied(topic, reason):
                log.error("denied_by_broker", client=self.client_id, topic=topic, reason=reason)
            case _:
                pass

    def _receive(self, delivery: Delivery) -> None:
        if ids := TASK_ROUTE.match(self._prefix, delivery.topic):
            self._follow(ids["task"], decode(Route, delivery.payload) if delivery.payload else None)
        elif ids := RESULTS.match(self._prefix, delivery.topic):
            pending = self._pending.get(ids["request"])
            if pending is None:
                self.duplicates += 1
                return
            tensors: Tensors = {}
            body = delivery.payload
            if delivery.content_type == SAFETENSORS:
                tensors, metadata = unpack(body)
                body = metadata.get("result", "").encode()
            result = decode(Result, body)
            self._end(pending, Response(result, time.monotonic() - pending.asked_s, pending.attempts, tensors))

    def _follow(self, task: str, route: Route | None) -> None:
        known = self._routes.get(task)
        if route is None:
            self._routes.pop(task, None)
            return
        self._routes[task] = route
        if known is None or (known.epoch, known.group) != (route.epoch, route.group):
            wait_s = SOON_S if known else 0.0  # the members of a new front door are about to join
            self._hurry(lambda pending: pending.task == task, time.monotonic() + wait_s)

    def _watch(self, task: str) -> None:
        if task not in self._watched_s:
            self._watched_s[task] = time.monotonic()
            self._transport.subscribe(TASK_ROUTE.at(self._prefix, task=task))

    def _hurry(self, which: Callable[[_Pending], bool], send_s: float) -> None:
        for pending in self._pending.values():
            if which(pending):
                pending.next_send_s = min(pending.next_send_s, send_s)

    def _advance(self, pending: _Pending, now_s: float) -> None:
        """Send, send again, or end what is due."""
        route = self._routes.get(pending.task)
        if now_s >= pending.deadline_s:
            self._end(pending, self._failed(pending, ErrorCode.DEADLINE_EXCEEDED, self._why_late(route)))
        elif route and route.unavailable:
            self._end(pending, self._failed(pending, ErrorCode.NO_ROUTE, route.unavailable))
        elif now_s < pending.next_send_s:
            pass
        elif not self._link:
            pending.next_send_s = now_s + LONGEST_RETRY_S  # LinkUp comes first
        elif route is None:
            self._await_route(pending, now_s)
        elif not route.front_door:
            pending.next_send_s = now_s + LONGEST_RETRY_S  # the next route comes first
        else:
            self._send(pending, now_s)

    def _await_route(self, pending: _Pending, now_s: float) -> None:
        until_s = max(self._watched_s[pending.task], pending.asked_s) + ROUTE_WAIT_S
        if now_s >= until_s:
            text = f"no task is called {pending.task}; see `s2m3 status`, deploy it with `s2m3 deploy FILE`"
            self._end(pending, self._failed(pending, ErrorCode.NO_ROUTE, text))
        else:
            pending.next_send_s = until_s

    def _send(self, pending: _Pending, now_s: float) -> None:
        message = Outgoing(
            TASK_REQUESTS.at(self._prefix, task=pending.task),
            pending.payload,
            response_topic=RESULTS.at(self._prefix, client=self.client_id, request=pending.request),
            correlation=pending.request.encode(),
            content_type=pending.content_type,
            expiry_s=max(1, math.ceil(pending.deadline_s - now_s)),
            token=pending.request,
        )
        try:
            self._transport.publish(message)
        except TransportError:
            pending.next_send_s = now_s + SOON_S
        except LocalProtocolError as error:
            self._end(pending, self._failed(pending, ErrorCode.TOO_LARGE, str(error)))
        else:
            pending.next_send_s = now_s + min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**pending.attempts)
            pending.attempts += 1

    def _why_late(self, route: Route | None) -> str:
        if not self._link:
            return f"no connection to the broker at {self._url}; is it running?"
        if route is None or not route.front_door:
            return "the task's modules were still being loaded; allow more time"
        return "no answer in time; allow more time or add devices"

    def _failed(self, pending: _Pending, code: ErrorCode, message: str) -> Response:
        result = Result(request=pending.request, task=pending.task, error=ErrorBody(code=code, message=message))
        return Response(result, time.monotonic() - pending.asked_s, pending.attempts)

    def _end(self, pending: _Pending, response: Response) -> None:
        self._pending.pop(pending.request, None)
        if not pending.future.cancelled():
            pending.future.set_result(response)


def _raw(value: RawInput | bytes | str) -> RawInput:
    if isinstance(value, RawInput):
        return value
    if isinstance(value, str):
        return RawInput(value.encode(), "text/plain")
    return RawInput(value)
