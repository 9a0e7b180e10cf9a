"""``Client.ask`` over the in-memory twin: an answer for a person, or an exception with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.client import Answer, Client
from broker.protocol.codec import encode
from broker.protocol.errors import BadFile, ErrorCode, LocalProtocolError, NotConnected, RequestFailed
from broker.protocol.messages import ErrorBody, Result, Timing
from broker.protocol.tensors import unpack
from broker.protocol.topics import TASK_ROUTE, share_group_filter
from broker.transport.connection import Connection
from broker.transport.memory import MemoryBroker, MemoryTransport
from broker.transport.port import Delivery, Inbox, LinkDown, LinkEvent, Outgoing
from tests.builders import able, route, route_node

PREFIX = "s2m3/v1"
PICTURE = b"\xff\xd8\xff a picture"
PASSWORD = "s3cret-w0rd"  # noqa: S105 - of a test


class FrontDoor:
    """It serves ``classify``, which takes an image and a text, and answers each request with ``said``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.said: dict[str, Any] = {"answer": {"label": "cat", "score": 0.5}}
        self.requests: list[Delivery] = []
        self._transport = MemoryTransport(broker, client_id="gw-a", inbox=self._inbox)
        self._transport.start()
        self._transport.subscribe(share_group_filter(PREFIX, "classify", 1, 1))
        served = route("classify", {"node": route_node("m", ("image", "text"), able("gw-a"))})
        self._transport.publish(Outgoing(TASK_ROUTE.at(PREFIX, task="classify"), encode(served), retain=True))

    def _inbox(self, event: LinkEvent) -> None:
        if isinstance(event, Delivery) and event.response_topic and event.correlation:
            self.requests.append(event)
            timing = Timing(node="node", device="gw-a", queue_s=0, compute_s=0, output_bytes=1, attempt=1)
            result = Result(request=event.correlation.decode(), task="classify", timings=(timing,), **self.said)
            self._transport.publish(Outgoing(event.response_topic, encode(result), correlation=event.correlation))


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def door(broker: MemoryBroker) -> FrontDoor:
    return FrontDoor(broker)


@pytest.fixture
def client(broker: MemoryBroker) -> Iterator[Client]:
    address = f"mqtt://alice:{PASSWORD}@127.0.0.1"
    with capture_logs() as lines, Client(address, client_id="camera", make_transport=broker.connect) as made:
        yield made
    assert not [line for line in lines if line.get("exc_info")]
    assert PASSWORD not in str(lines)


def test_an_answer_has_the_text_that_a_person_wants_and_all_the_rest(client: Client, door: FrontDoor) -> None:
    answer = client.ask("classify", image=PICTURE, text=["a cat", "a dog"], traceparent="not valid: left out")
    assert door.requests[0].traceparent is None
    assert (answer.answer, str(answer), answer.output) == ("cat", "cat", {"label": "cat", "score": 0.5})
    assert (answer.path, answer.tensors) == (("node@gw-a",), {})
    assert answer.latency_s > 0
    arrays, content_types = unpack(door.requests[0].payload)
    assert (arrays["image"].tobytes(), arrays["text"].tobytes()) == (PICTURE, b"a cat\na dog")
    assert content_types == {"image": "image/jpeg", "text": "text/plain"}


@pytest.mark.parametrize(
    ("output", "text"),
    [({"answer": "a cat", "score": 1}, "a cat"), ({"text": "hello"}, "hello"), ({"vector": [1, 2]}, "")],
)
def test_the_text_is_the_label_the_text_or_the_answer(
    client: Client, door: FrontDoor, output: dict[str, Any], text: str
) -> None:
    door.said = {"answer": output}
    assert client.ask("classify", image=PICTURE, text="x").answer == text


def test_several_threads_and_an_event_loop_ask_one_client(client: Client, door: FrontDoor) -> None:
    async def ask() -> list[Answer]:
        return await asyncio.gather(*(client.ask_async("classify", image=PICTURE, text="x") for _ in range(8)))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.ask("classify", image=PICTURE, text="x"), range(32)))
    answers += asyncio.run(ask())
    assert [answer.answer for answer in answers] == ["cat"] * 40
    assert len(door.requests) == len({request.correlation for request in door.requests}) == 40


def test_an_error_is_raised_with_its_code_and_its_sentence(client: Client, door: FrontDoor) -> None:
    door.said = {"error": ErrorBody(code=ErrorCode.OVERLOADED, message="ask later", retry_after_s=2.0)}
    with pytest.raises(RequestFailed, match="overloaded: ask later") as raised:
        client.ask("classify", image=PICTURE, text="x")
    assert (raised.value.code, raised.value.message, raised.value.retry_after_s) == ("overloaded", "ask later", 2.0)


def test_a_wrong_address_is_called_the_brokers_and_no_option() -> None:
    for address in ("http://127.0.0.1:1883", "localhost", "mqtt://"):
        with pytest.raises(BadFile, match=r"^the broker's address: .*; write mqtt://host:port"):
            Client(address)


def test_a_wrong_argument_is_raised_before_anything_is_sent(client: Client, door: FrontDoor, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, LocalProtocolError, "classify takes image .image., text .text."),
        ({"audio": b"RIFF0000WAVE"}, LocalProtocolError, "classify takes image .*, not a sound"),
        ({"image": ""}, LocalProtocolError, "image is an empty path: name a file, or give the bytes of one"),
        ({"image": b""}, BadFile, "image: is empty; name a file that holds something"),
        ({"photo": PICTURE}, LocalProtocolError, "classify has no input called photo"),
        ({"image": tmp_path / "none.jpg"}, BadFile, "none.jpg: No such file"),
        (
            {"image": PICTURE},
            LocalProtocolError,
            "classify takes image .image., text .text., and text is missing: give it",
        ),
        ({"image": PICTURE, "deadline_s": 0}, LocalProtocolError, "deadline_s must be greater than 0"),
    ]
    for given, kind, sentence in wrong:
        with pytest.raises(kind, match=sentence):
            client.ask("classify", **given)
        with pytest.raises(kind, match=sentence):
            asyncio.run(client.ask_async("classify", **given))
    assert not door.requests
    assert client.ask("classify", image=PICTURE, text="x").answer == "cat"


def test_a_task_that_nobody_serves_is_named(client: Client, door: FrontDoor) -> None:
    with pytest.raises(RequestFailed, match="no_route: no task is called klassify"):
        client.ask("klassify", image=PICTURE)
    assert not door.requests


@pytest.mark.parametrize("cause", ["absent", "lost", "refused", "taken"])
def test_a_connection_that_fails_is_raised_at_once_with_its_reason(broker: MemoryBroker, cause: Any) -> None:
    class Failing(MemoryTransport):
        def start(self) -> None:
            inboxes[0](LinkDown("this is why", cause))

    def connect(_connection: Connection, **options: Any) -> MemoryTransport:
        inboxes.append(options["inbox"])
        return Failing(broker, **options)

    inboxes: list[Inbox] = []

    with Client(client_id="camera", make_transport=connect) as client:
        for _ in range(2):
            with pytest.raises(NotConnected, match=r"^this is why$"):
                client.ask("classify", image=PICTURE, deadline_s=3600)


def test_a_password_is_in_no_representation_and_no_error(client: Client) -> None:
    assert repr(client) == "Client('mqtt://127.0.0.1:1883', client_id='camera')"
    for wrong in (f"mqtt://alice:{PASSWORD}#@127.0.0.1", f"alice:{PASSWORD}@127.0.0.1"):
        with pytest.raises(BadFile) as raised:
            Client(wrong)
        assert PASSWORD not in repr(raised.value)
    with pytest.raises(LocalProtocolError, match=r"got bytes$"):
        Client(f"mqtt://alice:{PASSWORD}@127.0.0.1".encode())  # type: ignore[arg-type]
