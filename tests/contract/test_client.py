"""The sensor's client over the in-memory twin, and over a real Mosquitto without TLS and with it.

Every request ends in exactly one response. A test that needs a fault inside the transport has the twin alone. Clients
here never retry by the clock within a test, unless a test says so: only an event can make them send again.
When they do is tested in ``tests/unit/broker/test_pending_requests.py``.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker import pending_requests
from broker.client import Client, Response
from broker.pending_requests import FIRST_RETRY_S
from broker.protocol.codec import SAFETENSORS, RawInput, encode
from broker.protocol.errors import ErrorCode, LocalProtocolError, NotConnected
from broker.protocol.messages import ErrorBody, Result, Route
from broker.protocol.tensors import pack, unpack
from broker.protocol.topics import RESULTS, TASK_ROUTE, prefix_of, share_group_filter
from broker.servers.ports import HOST
from broker.transport.connect import connect
from broker.transport.connection import Connection, parse_url
from broker.transport.memory import MemoryBroker, MemoryTransport
from broker.transport.port import Delivery, Inbox, LinkDown, LinkEvent, LinkUp, Outgoing, Transport
from s2m3.testbed.proxy import Proxy
from tests.builders import able, route, route_node
from tests.patience import PATIENCE_S, until

WAIT_S = PATIENCE_S
NEVER_S = 3600.0  # a first retry that no test sees


class Twin:
    """The in-memory broker."""

    prefix = "s2m3/v1"
    connection = Connection(HOST)

    def __init__(self) -> None:
        self._broker = MemoryBroker()
        self.partitioned = self._broker.partitioned

    def connect(
        self, _connection: Connection, transport: type[MemoryTransport] = MemoryTransport, **options: Any
    ) -> Transport:
        return transport(self._broker, **options)


class Real:
    """A site of its own at a real broker. Its clients' connection can be cut; the front door's can't."""

    def __init__(self, url: str, site: str) -> None:
        self.prefix = prefix_of(site)
        self._direct = replace(parse_url(url), site=site)
        self._proxy = Proxy(self._direct)
        self.connection = self._proxy.connection
        self._downs = 0

    def connect(self, connection: Connection, *, inbox: Inbox, **options: Any) -> Transport:
        def hear(event: LinkEvent) -> None:
            inbox(event)
            self._downs += isinstance(event, LinkDown)

        return connect(connection, inbox=hear, **options)

    @contextmanager
    def partitioned(self, _client: str) -> Iterator[None]:
        downs = self._downs
        self._proxy.cut()
        self._proxy.disconnect()
        until(lambda: self._downs > downs)
        yield
        self._proxy.restore()

    def reach(self, client_id: str, inbox: Inbox) -> Transport:
        return connect(self._direct, client_id=client_id, inbox=inbox)


Place = Twin | Real
twin_only = pytest.mark.parametrize("place", ["twin"], indirect=True)


class FrontDoor:
    """A front door that answers, or keeps silent for the first requests."""

    def __init__(self, place: Place) -> None:
        self.requests: list[Delivery] = []
        self.silent = 0
        self.prefix = place.prefix
        self.arrived = threading.Semaphore(0)
        self.up = threading.Event()
        self.reply: Callable[[Delivery], tuple[bytes, str]] = self._answer
        if isinstance(place, Twin):
            self.transport = place.connect(place.connection, client_id="gw-a", inbox=self._inbox)
        else:
            self.transport = place.reach("gw-a", self._inbox)
        self.transport.start()
        assert self.up.wait(WAIT_S)

    def serve(self, group: int = 1, **changed: object) -> None:
        self.transport.subscribe(share_group_filter(self.prefix, "classify", 1, group))
        nodes = {"node": route_node("m", ("image",), able("gw-a"))}
        self.announce(route("classify", nodes, **{"generation": group, "group": group} | changed))

    def announce(self, route: Route) -> None:
        self.transport.publish(Outgoing(TASK_ROUTE.at(self.prefix, task=route.task), encode(route), retain=True))

    def answer(self, request: Delivery, times: int = 1) -> None:
        assert request.response_topic is not None
        payload, content_type = self.reply(request)
        for _ in range(times):
            message = Outgoing(
                request.response_topic, payload, correlation=request.correlation, content_type=content_type
            )
            self.transport.publish(message)

    def _answer(self, request: Delivery) -> tuple[bytes, str]:
        assert request.correlation is not None
        result = Result(request=request.correlation.decode(), task="classify", answer={"label": "cat"})
        return encode(result), "application/json"

    def _inbox(self, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            self.up.set()
        if isinstance(event, Delivery) and event.response_topic:
            self.requests.append(event)
            self.arrived.release()
            if len(self.requests) > self.silent:
                with suppress(NotConnected):  # of two share groups the second copy may come while it is closed
                    self.answer(event)


@pytest.fixture(params=["twin", "mosquitto", "mosquitto_tls"])
def place(request: pytest.FixtureRequest, unique_prefix: str) -> Iterator[Place]:
    """Each broker in turn; the real ones serve the whole run."""
    if request.param == "twin":
        yield Twin()
        return
    real = Real(str(request.getfixturevalue(f"{request.param}_url")), unique_prefix)
    yield real
    real._proxy.close()


@pytest.fixture
def door(place: Place) -> Iterator[FrontDoor]:
    made = FrontDoor(place)
    yield made
    made.transport.close()


MakeClient = Callable[..., Client]


@pytest.fixture
def make_client(place: Place) -> Iterator[MakeClient]:
    made: list[Client] = []

    def make(name: str = "camera", first_retry_s: float = NEVER_S, **options: Any) -> Client:
        make_transport = partial(place.connect, **options)
        client = Client(place.connection, client_id=name, first_retry_s=first_retry_s, make_transport=make_transport)
        made.append(client)
        return client

    with capture_logs() as lines:
        yield make
        for client in made:
            client.close()
    assert not [line for line in lines if line.get("exc_info")]


@pytest.fixture
def client(make_client: MakeClient) -> Client:
    return make_client()


IMAGE = {"image": RawInput(b"\xff\xd8", "image/jpeg")}


def code_of(response: Response) -> ErrorCode | None:
    return response.result.error.code if response.result.error else None


def test_a_request_is_answered(client: Client, door: FrontDoor) -> None:
    door.serve()
    parent = f"00-{'4b' * 16}-{'0f' * 8}-01"
    response = client.request("classify", IMAGE, traceparent=parent)
    assert response.ok
    assert response.result.answer == {"label": "cat"}
    assert door.requests[0].traceparent == parent
    assert (door.requests[0].payload, door.requests[0].content_type) == (b"\xff\xd8", "image/jpeg")


@twin_only  # a broker takes off the seconds that a message waits
def test_a_request_expires_at_its_deadline(client: Client, door: FrontDoor) -> None:
    door.serve()
    client.request("classify", IMAGE)
    expiry_s = door.requests[0].expiry_s
    assert expiry_s is not None
    assert 20 <= expiry_s <= 30, "in whole seconds; the process may have stood still"


def test_requests_at_once_are_answered_each_with_its_own_answer(client: Client, door: FrontDoor) -> None:
    """Large ones, too: several records of TLS that arrive together."""

    def measure(request: Delivery) -> tuple[bytes, str]:
        assert request.correlation is not None
        result = Result(
            request=request.correlation.decode(),
            task="classify",
            answer={"bytes": len(request.payload), "long": "x" * 40_000},
        )
        return encode(result), "application/json"

    door.reply = measure
    door.serve()
    pending = [client.submit("classify", {"image": RawInput(bytes(30_000 * n), "image/png")}) for n in range(1, 21)]
    answers = [each.result(WAIT_S).result.answer for each in pending]
    assert [answer and answer["bytes"] for answer in answers] == [30_000 * n for n in range(1, 21)]


def test_the_async_twin_answers_the_same(client: Client, door: FrontDoor) -> None:
    door.serve()

    async def both() -> tuple[Response, Response]:
        return tuple(await asyncio.gather(*(client.request_async("classify", IMAGE) for _ in range(2))))  # type: ignore[return-value]

    assert [response.result.answer for response in asyncio.run(both())] == [{"label": "cat"}] * 2


def test_a_request_without_an_answer_is_resent(make_client: MakeClient, door: FrontDoor, place: Place) -> None:
    door.silent = 1
    door.serve()
    response = make_client(first_retry_s=FIRST_RETRY_S).request("classify", IMAGE)
    assert response.attempts == 2 or (
        response.attempts > 2 and isinstance(place, Real)
    )  # an answer may take long there
    assert len({request.correlation for request in door.requests}) == 1


@twin_only
def test_a_copy_that_is_refused_as_overloaded_leaves_the_first_its_answer(
    make_client: MakeClient, door: FrontDoor
) -> None:
    def refuse(request: Delivery) -> tuple[bytes, str]:
        assert request.correlation is not None
        body = ErrorBody(code=ErrorCode.OVERLOADED, message="ask later", retry_after_s=NEVER_S)
        return encode(Result(request=request.correlation.decode(), task="classify", error=body)), "application/json"

    door.silent = 2
    door.serve()
    pending = make_client(first_retry_s=0.5).submit("classify", IMAGE, deadline_s=WAIT_S)
    for _ in range(2):
        assert door.arrived.acquire(timeout=WAIT_S)
    for reply in (refuse, door._answer):
        door.reply = reply
        door.answer(door.requests[0])
    assert pending.result(WAIT_S).ok


def test_a_second_answer_is_counted_and_dropped(client: Client, door: FrontDoor) -> None:
    door.serve()
    client.request("classify", IMAGE)
    door.answer(door.requests[0])
    client.request("classify", IMAGE)  # its thread has seen the late one by now
    assert client.duplicates == 1


def test_a_new_front_door_gets_pending_requests_at_once(client: Client, door: FrontDoor) -> None:
    door.silent = 1
    door.serve()
    pending = client.submit("classify", IMAGE)
    assert door.arrived.acquire(timeout=WAIT_S)
    door.serve(group=2)
    assert pending.result(WAIT_S).ok


def test_a_request_waits_while_modules_are_loading(client: Client, door: FrontDoor) -> None:
    door.serve(front_door=())
    pending = client.submit("classify", IMAGE)
    door.serve(group=2)
    response = pending.result(WAIT_S)
    assert response.ok
    assert response.attempts == 1


@twin_only
def test_an_undelivered_request_is_resent_soon(make_client: MakeClient, door: FrontDoor) -> None:
    class JustTooEarly(MemoryTransport):
        def publish(self, message: Outgoing) -> None:
            super().publish(message)
            door.transport.subscribe(share_group_filter(door.prefix, "classify", 1, 2))

    door.serve()
    door.transport.unsubscribe(share_group_filter(door.prefix, "classify", 1, 1))
    response = make_client(transport=JustTooEarly).submit("classify", IMAGE).result(WAIT_S)
    assert (response.ok, response.attempts) == (True, 2)


def test_an_unknown_task_is_reported_within_a_second(client: Client) -> None:
    response = client.request("nope", IMAGE)
    assert code_of(response) == ErrorCode.NO_ROUTE
    assert response.result.error is not None
    assert "s2m3 deploy" in response.result.error.message


@pytest.mark.parametrize("place", ["mosquitto"], indirect=True)
def test_a_task_is_not_unknown_while_the_broker_is_slow_to_answer(
    client: Client, door: FrontDoor, place: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_requests, "ROUTE_WAIT_S", 0.1)
    monkeypatch.setattr(pending_requests, "SLOW_WAIT_S", NEVER_S)
    assert code_of(client.request("nope", IMAGE)) == ErrorCode.NO_ROUTE
    door.serve()
    place._proxy.cut()
    pending = client.submit("classify", IMAGE)
    until(lambda: place._proxy.waiting_bytes[0])  # its subscription is under way
    with pytest.raises(TimeoutError):
        pending.result(0.5)
    monkeypatch.undo()
    place._proxy.restore()
    assert pending.result(WAIT_S).ok


def test_an_unavailable_task_says_why(client: Client, door: FrontDoor) -> None:
    door.serve(unavailable="no device fits m", front_door=(), nodes={})
    response = client.request("classify", IMAGE)
    assert code_of(response) == ErrorCode.NO_ROUTE
    assert response.result.error is not None
    assert response.result.error.message == "no device fits m"


def test_a_request_without_an_answer_ends_at_its_deadline(client: Client, door: FrontDoor) -> None:
    door.silent = 1000
    door.serve()
    assert code_of(client.request("classify", IMAGE, deadline_s=1.0)) == ErrorCode.DEADLINE_EXCEEDED


def test_a_request_larger_than_the_broker_takes_is_never_sent(client: Client, door: FrontDoor) -> None:
    door.serve()
    response = client.request("classify", {"image": RawInput(bytes(17 * 1024 * 1024), "image/png")})
    assert code_of(response) == ErrorCode.TOO_LARGE
    assert not door.requests
    assert client.request("classify", IMAGE).ok


def test_several_inputs_are_sent_as_one_document(client: Client, door: FrontDoor) -> None:
    door.serve()
    client.request("classify", IMAGE | {"text": RawInput(b"a cat", "text/plain")})
    assert door.requests[0].content_type == SAFETENSORS
    arrays, content_types = unpack(door.requests[0].payload)
    assert arrays["text"].tobytes() == b"a cat"
    assert content_types == {"image": "image/jpeg", "text": "text/plain"}


def test_a_tensor_answer_comes_as_arrays(client: Client, door: FrontDoor) -> None:
    def mask(request: Delivery) -> tuple[bytes, str]:
        assert request.correlation is not None
        result = Result(request=request.correlation.decode(), task="classify")
        return pack({"mask": np.eye(2, dtype=np.float32)}, {"result": encode(result).decode()}), SAFETENSORS

    door.reply = mask
    door.serve()
    response = client.request("classify", IMAGE)
    assert response.tensors["mask"].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_malformed_answers_change_nothing(client: Client, door: FrontDoor) -> None:
    door.silent = 1
    door.serve()
    pending = client.submit("classify", IMAGE)
    assert door.arrived.acquire(timeout=WAIT_S)
    topic = door.requests[0].response_topic
    assert topic is not None
    door.transport.publish(Outgoing(topic, b"{"))
    assert client.request("classify", IMAGE).ok  # answers are read in turn: the malformed one has been
    assert not pending.done()
    door.answer(door.requests[0])
    assert pending.result(WAIT_S).ok


def test_pending_requests_are_resent_when_the_link_is_back(client: Client, door: FrontDoor, place: Place) -> None:
    door.silent = 1
    door.serve()
    pending = client.submit("classify", IMAGE)
    assert door.arrived.acquire(timeout=WAIT_S)
    with place.partitioned("camera"):
        pass
    assert pending.result(WAIT_S).attempts == 2


@pytest.mark.parametrize("place", ["twin", "mosquitto_tls"], indirect=True)  # six seconds each
def test_a_task_that_was_cleared_while_the_link_was_down_has_no_route(
    client: Client, door: FrontDoor, place: Place
) -> None:
    door.serve()
    assert client.request("classify", IMAGE).ok
    door.silent = 1000
    with place.partitioned("camera"):
        door.transport.publish(Outgoing(TASK_ROUTE.at(door.prefix, task="classify"), b"", retain=True))
        pending = client.submit("classify", IMAGE)
    assert code_of(pending.result(WAIT_S)) == ErrorCode.NO_ROUTE


def test_a_task_that_came_back_while_the_link_was_down_does_not_count_as_unavailable(
    client: Client, door: FrontDoor, place: Place
) -> None:
    door.serve(front_door=())
    loading = client.submit("classify", IMAGE)  # it keeps the route watched
    door.serve(unavailable="no device fits m", front_door=(), nodes={})
    assert code_of(loading.result(WAIT_S)) == ErrorCode.NO_ROUTE
    with place.partitioned("camera"):
        pending = client.submit("classify", IMAGE)
        door.serve(group=2)
    assert pending.result(WAIT_S).ok


@twin_only
def test_the_route_of_an_unserved_task_is_watched_only_while_a_request_waits(
    make_client: MakeClient, door: FrontDoor
) -> None:
    changes: list[tuple[str, str]] = []

    class Recording(MemoryTransport):
        def subscribe(self, *filters: str, confirm: bool = False) -> None:
            changes.extend(("+", name) for name in filters)
            super().subscribe(*filters, confirm=confirm)

        def unsubscribe(self, *filters: str) -> None:
            changes.extend(("-", name) for name in filters)
            super().unsubscribe(*filters)

    client = make_client(transport=Recording)
    door.serve()
    assert client.request("classify", IMAGE).ok
    assert code_of(client.request("nope", IMAGE)) == ErrorCode.NO_ROUTE
    assert client.request("classify", IMAGE).ok  # its thread has put the other away by now
    routes = [(sign, name) for sign, name in changes if name.endswith("/route")]
    nope, classify = (TASK_ROUTE.at(door.prefix, task=task) for task in ("nope", "classify"))
    assert routes == [("+", classify), ("+", nope), ("-", nope)]


def test_routes_keep_their_order_among_the_events_of_the_link(
    client: Client, door: FrontDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, late = client._mailbox.put_data, []

    def put_data(event: object, size_bytes: int) -> bool:
        late.append(event)  # these are overtaken by the link's going and coming
        return put(event, size_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(client._mailbox, "put_data", put_data)
    door.serve()
    assert client.request("classify", IMAGE).ok
    assert [event.topic for event in late if isinstance(event, Delivery)] == [door.requests[0].response_topic]


def test_a_cancelled_request_is_not_sent_again(client: Client, door: FrontDoor, place: Place) -> None:
    door.silent = 1
    door.serve()
    cancelled = client.submit("classify", IMAGE)
    assert door.arrived.acquire(timeout=WAIT_S)
    with place.partitioned("camera"):
        assert cancelled.cancel()
    assert client.request("classify", IMAGE).ok
    assert len(door.requests) == 2
    assert door.requests[0].correlation != door.requests[1].correlation


def test_a_request_cancelled_while_its_answer_comes_changes_nothing(
    make_client: MakeClient, door: FrontDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CancelledAtTheLastMoment(Future[Response]):
        def set_result(self, result: Response) -> None:
            self.cancel()
            super().set_result(result)

    client = make_client()
    door.serve()
    with monkeypatch.context() as patch:
        patch.setattr("broker.client.Future", CancelledAtTheLastMoment)
        client.submit("classify", IMAGE)
    assert client.request("classify", IMAGE).ok  # and no error was logged


@pytest.mark.parametrize("deadline_s", [float("inf"), float("nan"), 0.0, -1.0, 86_400.1])
def test_an_invalid_deadline_is_refused(client: Client, door: FrontDoor, deadline_s: float) -> None:
    door.serve()
    with pytest.raises(LocalProtocolError, match="deadline_s must be greater than 0 and at most 86400, got "):
        client.submit("classify", IMAGE, deadline_s=deadline_s)
    assert client.request("classify", IMAGE, deadline_s=86_400.0).ok


@twin_only
def test_an_error_of_the_transport_is_raised_by_the_future(make_client: MakeClient, door: FrontDoor) -> None:
    class Broken(MemoryTransport):
        broken = True

        def publish(self, message: Outgoing) -> None:
            if self.broken:
                self.broken = False
                raise RuntimeError("injected: publish")
            super().publish(message)

    client = make_client(transport=Broken)
    door.serve()
    with capture_logs() as lines, pytest.raises(RuntimeError, match="injected"):
        client.submit("classify", IMAGE).result(WAIT_S)
    assert [(line["event"], line["exc_info"]) for line in lines] == [("request_failed", True)]
    assert client.submit("classify", IMAGE).result(WAIT_S).ok


def test_an_event_that_fails_costs_nothing_else(
    client: Client, door: FrontDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("injected: link_down")

    door.serve()
    with capture_logs() as lines:
        monkeypatch.setattr(client._pending, "on_link_down", fail)
        client._put(LinkDown("a test"))
        assert client.submit("classify", IMAGE).result(WAIT_S).ok
    failures = [line for line in lines if line["event"] == "event_failed"]
    assert [(line["event_type"], line["exc_info"]) for line in failures] == [("LinkDown", True)]


def test_closing_ends_pending_requests_and_refuses_new_ones(client: Client, door: FrontDoor) -> None:
    door.silent = 1000
    door.serve()
    pending = client.submit("classify", IMAGE)
    client.close()
    client.close()
    assert not pending.result(WAIT_S).ok
    with pytest.raises(LocalProtocolError, match="closed"):
        client.submit("classify", IMAGE)


class WatchedLock:
    """A lock that notes when a thread has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.contended = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.contended.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_request_submitted_while_the_client_is_closed_ends(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    put, lock = client._mailbox.put_control, WatchedLock()
    closing, submitting = threading.Thread(target=client.close), threading.current_thread()

    def close_first(event: Any, *size_bytes: int) -> bool:
        if threading.current_thread() is submitting:  # and not the network's, when the link comes up
            closing.start()
            until(lambda: lock.contended.is_set() or not closing.is_alive())  # held back, or closed
        return put(event, *size_bytes)

    monkeypatch.setattr(client, "_closing", lock)
    monkeypatch.setattr(client._mailbox, "put_control", close_first)
    pending = client.submit("classify", IMAGE)
    assert not pending.result(WAIT_S).ok
    closing.join(WAIT_S)
    assert not closing.is_alive()


def test_requests_in_a_full_mailbox_end_at_closing(client: Client, door: FrontDoor) -> None:
    busy, go_on = threading.Event(), threading.Event()

    def block(_: object) -> None:
        busy.set()
        go_on.wait(WAIT_S)

    door.silent = 1
    door.serve()
    first = client.submit("classify", IMAGE)
    first.add_done_callback(block)
    assert door.arrived.acquire(timeout=WAIT_S)
    door.answer(door.requests[0])
    assert busy.wait(WAIT_S)  # its thread is in the callback
    behind = client.submit("classify", IMAGE)
    while client._mailbox.dropped == 0:
        client._put(LinkDown("a test"))
    assert code_of(client.submit("classify", IMAGE).result(WAIT_S)) == ErrorCode.OVERLOADED
    closing = threading.Thread(target=client.close)
    closing.start()
    go_on.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert not behind.result(WAIT_S).ok


def test_a_callback_may_close_the_client(client: Client, door: FrontDoor) -> None:
    door.silent = 1
    door.serve()
    closed = threading.Event()

    def close(_: object) -> None:
        client.close()
        closed.set()

    pending = client.submit("classify", IMAGE)
    pending.add_done_callback(close)
    assert door.arrived.acquire(timeout=WAIT_S)
    door.answer(door.requests[0])
    assert closed.wait(WAIT_S)


def test_a_path_is_that_of_a_connection_file(tmp_path: Path) -> None:
    file = tmp_path / "connection.yaml"
    file.write_text("broker: mqtts://broker.lan\nuser: cam-1\nclient_id: cam-1\nsite: plant-4\n", encoding="utf-8")
    reached: list[Connection] = []

    def reach(connection: Connection, **options: Any) -> Transport:
        reached.append(connection)
        return MemoryTransport(MemoryBroker(), **options)

    with Client(file, make_transport=reach) as client:
        assert client.client_id == "cam-1"
    assert [(each.url, each.user, each.site) for each in reached] == [("mqtts://broker.lan:8883", "cam-1", "plant-4")]
    with pytest.raises(LocalProtocolError, match=r"or the pathlib.Path of a connection file, got bytes$"):
        Client(cast("Any", b"mqtt://u:p@h"))


@twin_only
def test_a_fork_can_not_ask_with_its_parents_client(
    client: Client, door: FrontDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.serve()
    with monkeypatch.context() as child:
        child.setattr("broker.client.os.getpid", lambda: 0)
        with pytest.raises(LocalProtocolError, match="make one in the process that asks"):
            client.submit("classify", IMAGE)
        client.close()
    assert client.request("classify", IMAGE).ok, "the child closes nothing of the parent's"


def test_an_invalid_client_id_is_refused(make_client: MakeClient) -> None:
    with pytest.raises(LocalProtocolError, match="is not a valid id"):
        make_client(name="Camera 1")


def test_an_invalid_task_name_is_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(LocalProtocolError, match="is not a valid id"):
        client.submit("no/task", IMAGE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task": None}, "task None is not a valid id"),
        ({"inputs": None}, "inputs must be a mapping of names to texts or bytes, got NoneType"),
        ({"inputs": [b"x"]}, "inputs must be a mapping of names to texts or bytes, got list"),
        (
            {"inputs": {"image": Path("cat.jpg")}},
            "the input image must be a text, or the bytes of a file, got Posix",
        ),
        ({"inputs": {"text": ["a cat"]}}, "the input text must be a text, or the bytes of a file, got list"),
        ({"inputs": {"text": "\ud800"}}, "text is not text"),
        ({"deadline_s": "5"}, "deadline_s must be greater than 0 and at most 86400, got '5'"),
        ({"deadline_s": None}, "deadline_s must be greater than 0 and at most 86400, got None"),
    ],
)
def test_an_argument_of_a_wrong_type_is_told(client: Client, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(LocalProtocolError, match=f"^{re.escape(says)}"):
        client.submit(**{"task": "classify", "inputs": IMAGE} | arguments)


def test_a_client_id_or_a_trace_context_of_a_wrong_type_is_told_or_left_out(
    make_client: MakeClient, door: FrontDoor
) -> None:
    with pytest.raises(LocalProtocolError, match="client 5 is not a valid id"):
        make_client(name=cast("Any", 5))
    door.serve()
    assert make_client().request("classify", IMAGE, traceparent=cast("Any", b"00-ab")).ok


def test_answers_come_back_below_the_clients_own_topic(client: Client, door: FrontDoor) -> None:
    door.serve()
    client.request("classify", IMAGE)
    topic = door.requests[0].response_topic
    assert topic is not None
    ids = RESULTS.match(door.prefix, topic)
    assert ids is not None
    assert ids["client"] == "camera"


def test_an_answer_with_a_retry_time_does_not_end_a_request(client: Client, door: FrontDoor) -> None:
    def not_yet(request: Delivery) -> tuple[bytes, str]:
        assert request.correlation is not None
        door.reply = door._answer
        body = ErrorBody(code=ErrorCode.NO_ROUTE, message="its modules are being loaded", retry_after_s=0.05)
        return encode(Result(request=request.correlation.decode(), task="classify", error=body)), "application/json"

    door.reply = not_yet
    door.serve()
    response = client.request("classify", IMAGE)
    assert response.ok
    assert response.attempts == 2
