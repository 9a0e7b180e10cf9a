"""The sensor's client over the in-memory twin: every request ends in exactly one response."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from broker.client import Client, Response
from broker.codec import SAFETENSORS, RawInput, encode
from broker.errors import ErrorCode, LocalProtocolError
from broker.memory import MemoryBroker, MemoryTransport
from broker.messages import Result, Route, RouteDevice, RouteNode
from broker.specs import InputSpec
from broker.tensors import pack, unpack
from broker.topics import RESULTS, TASK_ROUTE, front_door_filter
from broker.transport import Delivery, LinkEvent, Outgoing

PREFIX = "s2m3/v1"
WAIT_S = 20.0


class FrontDoor:
    """A front door that answers, or keeps silent for the first requests."""

    def __init__(self, broker: MemoryBroker, name: str = "gw-a") -> None:
        self.requests: list[Delivery] = []
        self.silent = 0
        self.arrived = threading.Semaphore(0)
        self.transport = MemoryTransport(broker, client_id=name, inbox=self._inbox)
        self.reply: Callable[[Delivery], tuple[bytes, str]] = self._answer
        self.transport.start()

    def serve(self, group: int = 1, **changed: object) -> None:
        self.transport.subscribe(front_door_filter(PREFIX, "classify", 1, group))
        able = RouteDevice(device="gw-a", compute_s=0.01, latency_s=0.0, bandwidth_bits_per_s=1e9)
        node = RouteNode(module="m", key="m", needs=("image",), output_bytes=8, devices=(able,))
        fields: dict[str, object] = {
            "task": "classify",
            "epoch": 1,
            "generation": group,
            "group": group,
            "inputs": {"image": InputSpec(kind="image", bytes=10)},
            "nodes": {"node": node},
            "output": "node",
            "front_door": ("gw-a",),
        }
        self.announce(Route.model_validate(fields | changed))

    def announce(self, route: Route) -> None:
        self.transport.publish(Outgoing(TASK_ROUTE.at(PREFIX, task=route.task), encode(route), retain=True))

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
        if isinstance(event, Delivery) and event.response_topic:
            self.requests.append(event)
            self.arrived.release()
            if len(self.requests) > self.silent:
                self.answer(event)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def door(broker: MemoryBroker) -> FrontDoor:
    return FrontDoor(broker)


@pytest.fixture
def client(broker: MemoryBroker) -> Iterator[Client]:
    def make(name: str, inbox: Callable[[LinkEvent], None]) -> MemoryTransport:
        return MemoryTransport(broker, client_id=name, inbox=inbox)

    with Client(client_id="camera", make_transport=make) as made:
        yield made


IMAGE = {"image": RawInput(b"\xff\xd8", "image/jpeg")}


def code_of(response: Response) -> ErrorCode | None:
    return response.result.error.code if response.result.error else None


def test_a_request_is_answered(client: Client, door: FrontDoor) -> None:
    door.serve()
    response = client.request("classify", IMAGE)
    assert response.ok
    assert response.result.answer == {"label": "cat"}
    assert (door.requests[0].payload, door.requests[0].content_type) == (b"\xff\xd8", "image/jpeg")
    assert door.requests[0].expiry_s == 30


def test_the_async_twin_answers_the_same(client: Client, door: FrontDoor) -> None:
    door.serve()

    async def both() -> tuple[Response, Response]:
        return tuple(await asyncio.gather(*(client.request_async("classify", IMAGE) for _ in range(2))))  # type: ignore[return-value]

    assert [response.result.answer for response in asyncio.run(both())] == [{"label": "cat"}] * 2


def test_silence_is_met_by_the_same_request_again(client: Client, door: FrontDoor) -> None:
    door.silent = 1
    door.serve()
    response = client.request("classify", IMAGE)
    assert response.attempts == 2
    assert door.requests[0].correlation == door.requests[1].correlation


def test_a_second_answer_is_counted_and_dropped(client: Client, door: FrontDoor) -> None:
    door.serve()
    client.request("classify", IMAGE)
    door.answer(door.requests[0])
    client.request("classify", IMAGE)  # its thread has seen the late one by now
    assert client.duplicates == 1


def test_a_new_front_door_gets_what_is_pending_at_once(client: Client, door: FrontDoor) -> None:
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


def test_nobody_subscribing_is_met_by_a_quick_retry(client: Client, door: FrontDoor) -> None:
    door.serve()
    door.transport.unsubscribe(front_door_filter(PREFIX, "classify", 1, 1))
    pending = client.submit("classify", IMAGE)
    door.transport.subscribe(front_door_filter(PREFIX, "classify", 1, 2))
    assert pending.result(WAIT_S).ok


def test_an_unknown_task_is_told_within_a_second(client: Client) -> None:
    response = client.request("nope", IMAGE)
    assert code_of(response) == ErrorCode.NO_ROUTE
    assert response.result.error is not None
    assert "s2m3 deploy" in response.result.error.message


def test_an_unavailable_task_says_why(client: Client, door: FrontDoor) -> None:
    door.serve(unavailable="no device fits m", front_door=(), nodes={})
    response = client.request("classify", IMAGE)
    assert code_of(response) == ErrorCode.NO_ROUTE
    assert response.result.error is not None
    assert response.result.error.message == "no device fits m"


def test_a_request_that_nobody_answers_ends_at_its_deadline(client: Client, door: FrontDoor) -> None:
    door.silent = 1000
    door.serve()
    assert code_of(client.request("classify", IMAGE, deadline_s=0.3)) == ErrorCode.DEADLINE_EXCEEDED


def test_a_request_larger_than_the_broker_takes_is_never_sent(client: Client, door: FrontDoor) -> None:
    door.serve()
    response = client.request("classify", {"image": RawInput(bytes(17 * 1024 * 1024), "image/png")})
    assert code_of(response) == ErrorCode.TOO_LARGE
    assert not door.requests
    assert client.request("classify", IMAGE).ok


def test_several_inputs_travel_as_one_document(client: Client, door: FrontDoor) -> None:
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
    assert not pending.done()
    door.answer(door.requests[0])
    assert pending.result(WAIT_S).ok


def test_a_request_survives_the_link(client: Client, door: FrontDoor, broker: MemoryBroker) -> None:
    door.serve()
    with broker.partitioned("camera"):
        pending = client.submit("classify", IMAGE)
    assert pending.result(WAIT_S).ok


def test_closing_ends_what_waits_and_refuses_more(door: FrontDoor, broker: MemoryBroker) -> None:
    door.silent = 1000
    door.serve()
    closing = Client(
        client_id="other", make_transport=lambda name, inbox: MemoryTransport(broker, client_id=name, inbox=inbox)
    )
    pending = closing.submit("classify", IMAGE)
    closing.close()
    closing.close()
    assert not pending.result(WAIT_S).ok
    with pytest.raises(LocalProtocolError, match="closed"):
        closing.submit("classify", IMAGE)


def test_a_name_that_is_no_task_is_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(LocalProtocolError, match="is no id"):
        client.submit("no/task", IMAGE)


def test_answers_come_back_below_the_clients_own_topic(client: Client, door: FrontDoor) -> None:
    door.serve()
    client.request("classify", IMAGE)
    topic = door.requests[0].response_topic
    assert topic is not None
    ids = RESULTS.match(PREFIX, topic)
    assert ids is not None
    assert ids["client"] == "camera"
