"""A site behind the HTTP door in one process: an in-memory broker, and a front door whose answers a test chooses.

Owns the front door, which reads payloads as agents do. Doesn't know HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

from starlette.testclient import TestClient

from broker.protocol.codec import RawInput, decode_request, encode, encode_result
from broker.protocol.errors import ErrorCode, NotConnected, RequestFailed
from broker.protocol.messages import ErrorBody, Result, Route
from broker.protocol.specs import InputSpec
from broker.protocol.tensors import Tensors
from broker.protocol.topics import TASK_ROUTE, read, share_group_filter
from broker.transport.connection import Connection
from broker.transport.memory import MemoryBroker
from broker.transport.port import Delivery, LinkEvent, LinkUp, MakeTransport, Outgoing
from s2m3.http.app import Door, application
from s2m3.http.bodies import Room
from s2m3.http.server import Server
from s2m3.http.site import Site
from s2m3.listening import listening
from tests.builders import able, route, route_node
from tests.patience import PATIENCE_S, until

PREFIX = "s2m3/v1"
Inputs = Mapping[str, RawInput]
Answer = dict[str, Any] | ErrorBody | Tensors | None
IMAGE, TEXT = InputSpec(kind="image", bytes=1000), InputSpec(kind="text", bytes=100)


class FrontDoor:
    """The front door of all tasks of a broker: it answers with ``answer``, or not at all where that gives None."""

    def __init__(self, make_transport: MakeTransport, connection: Connection) -> None:
        self.requests: list[Delivery] = []
        self.inputs: list[Inputs] = []
        self.answer: Callable[[str, Inputs], Answer] = lambda _, inputs: {"got": sorted(inputs)}
        self.routes: dict[str, Route] = {}
        self.arrived = threading.Event()
        self.transport = make_transport(connection, client_id="gw-a", inbox=self._take)
        self.transport.start()

    def serve(self, task: str, inputs: Mapping[str, InputSpec], **changed: Any) -> None:
        """Serve a task that takes these inputs."""
        node = route_node("m", tuple(inputs), able("gw-a"))
        self.transport.subscribe(share_group_filter(PREFIX, task, 1, 1))
        self.announce(route(task, {"node": node}, inputs=dict(inputs), **changed))

    def announce(self, made: Route) -> None:
        """Publish a task's route."""
        self.routes[made.task] = made
        self._publish(made)

    def _publish(self, made: Route) -> None:
        message = Outgoing(TASK_ROUTE.at(PREFIX, task=made.task), encode(made), retain=True)
        with suppress(NotConnected):  # it is published at the connection
            self.transport.publish(message)

    def _take(self, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            for made in self.routes.values():
                self._publish(made)
        if not isinstance(event, Delivery):
            return
        self.requests.append(event)
        self.arrived.set()
        incoming = read(PREFIX, event.topic, event.payload)
        assert incoming is not None
        assert event.response_topic is not None
        assert event.correlation is not None
        ids = {"task": incoming.ids["task"], "request": event.correlation.decode()}  # on either topic of requests
        answered: Answer
        try:
            expected = self.routes[ids["task"]].inputs
            self.inputs.append(decode_request(event.payload, event.content_type or "", expected))
            answered = self.answer(ids["task"], self.inputs[-1])
        except RequestFailed as error:
            answered = ErrorBody(code=error.code, message=error.message, retry_after_s=error.retry_after_s)
        if answered is None:
            return
        payload, content_type = encode_result(*_result_of(ids, answered))
        self.transport.publish(Outgoing(event.response_topic, payload, content_type=content_type))


def _result_of(ids: dict[str, str], answered: Answer) -> tuple[Result, Tensors | None]:
    if isinstance(answered, ErrorBody):
        return Result(**ids, error=answered), None
    assert answered is not None
    if any(hasattr(each, "dtype") for each in answered.values()):
        return Result(**ids, answer={}), answered
    return Result(**ids, answer=dict(answered)), None


def failing(
    code: ErrorCode, message: str = "no", retry_after_s: float | None = None
) -> Callable[[str, Inputs], Answer]:
    """An ``answer`` that is always this error."""
    return lambda *_: ErrorBody(code=code, message=message, retry_after_s=retry_after_s)


class DoorSite:
    """A broker, a front door, and the HTTP door as an application that tests call; a context manager."""

    def __init__(self, *, token: str | None = None, room: Room | None = None) -> None:
        self.broker = MemoryBroker()
        self.front_door = FrontDoor(self.broker.connect, Connection())
        self.site = Site(Connection(), make_transport=self.broker.connect)
        self.app = application(Door(self.site, token, room or Room()))
        self.http = TestClient(self.app, base_url="http://127.0.0.1:8080", raise_server_exceptions=False)

    def call(self, method: str, path: str, headers: list[tuple[bytes, bytes]], pieces: list[bytes]) -> int:
        """The status of the response to any request at all, also to one that no HTTP library would send."""
        scope = {"type": "http", "method": method, "path": path, "raw_path": b"", "query_string": b"", "root_path": ""}
        left, statuses = [*pieces], list[int]()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left)}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        asyncio.run(self.app({**scope, "headers": headers}, receive, send))  # type: ignore[arg-type]
        (status,) = statuses
        return status

    @contextmanager
    def served(self) -> Iterator[int]:
        """The application behind the real server, in a thread; gives its port."""
        with listening("127.0.0.1", 0) as listener:
            server = Server(self.site, self.app)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            until(lambda: server.started)
            try:
                yield listener.getsockname()[1]
            finally:
                server.stop()
                thread.join(PATIENCE_S)
                assert not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()
        self.site.close()
