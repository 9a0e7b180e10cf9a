"""The bench's own coordinator on a real broker: it sends branches in parallel, or each after the one before is done."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from broker.protocol.codec import decode_tensors, encode, encode_tensors
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody, NodeDone, NodeFailed, NodeInputs, Result, RouteNode
from broker.protocol.specs import InputSpec
from broker.protocol.topics import TENSORS, prefix_of
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, LinkEvent, LinkUp, Outgoing
from s2m3.bench.latency import branches
from s2m3.bench.latency.branches import COORDINATOR, Coordinator
from s2m3.bench.requests import text_input
from s2m3.testbed.site import SiteFailed
from tests.builders import able, done, route, route_node
from tests.patience import PATIENCE_S

PREFIX = prefix_of(None)
DEVICE = "gw-bench"
INPUTS = {"left": text_input("l"), "right": text_input("r")}


def node(*needs: str) -> RouteNode:
    return route_node("k", needs, able(DEVICE))


ROUTE = route(
    "pair",
    {"a": node("left"), "b": node("right"), "head": node("a", "b")},
    inputs={name: InputSpec(kind="text", bytes=1) for name in INPUTS},
    front_door=(DEVICE,),
)


class Device:
    """Stands for an agent: notes what comes, and lets the test say what to answer."""

    def __init__(self, url: str) -> None:
        self.inputs: queue.Queue[NodeInputs] = queue.Queue()
        up = threading.Event()

        def take(event: LinkEvent) -> None:
            if isinstance(event, LinkUp):
                up.set()
            elif isinstance(event, Delivery):
                message, _ = decode_tensors(event.payload)
                assert isinstance(message, NodeInputs)
                self.inputs.put(message)

        self.transport = MqttTransport(parse_url(url), client_id=DEVICE, inbox=take)
        self.transport.subscribe(TENSORS.filter(PREFIX, receiver=DEVICE))
        self.transport.start()
        assert up.wait(PATIENCE_S)

    def tell(self, message: NodeInputs, told: NodeDone | NodeFailed) -> None:
        topic = TENSORS.at(PREFIX, sender=DEVICE, receiver=COORDINATOR, request=message.request, node=message.node)
        self.transport.publish(Outgoing(topic, encode_tensors(told, {})))

    def answer(self, message: NodeInputs) -> None:
        result = Result(request=message.request, task=message.task, answer={"label": "x"})
        self.transport.publish(Outgoing(message.reply_to, encode(result)))


Ask = Callable[..., queue.Queue[object]]


@pytest.fixture
def device(mosquitto_url: str) -> Iterator[Device]:
    made = Device(mosquitto_url)
    yield made
    made.transport.close()


@pytest.fixture
def ask(mosquitto_url: str) -> Iterator[Ask]:
    """Asks in a thread; what comes of it is put on a queue."""
    with Coordinator(parse_url(mosquitto_url)) as coordinator:

        def start(*, sequential: bool) -> queue.Queue[object]:
            ended: queue.Queue[object] = queue.Queue()

            def run() -> None:
                try:
                    ended.put(coordinator.ask(ROUTE, INPUTS, sequential=sequential))
                except SiteFailed as error:
                    ended.put(error)

            threading.Thread(target=run, daemon=True).start()
            return ended

        yield start


def test_in_parallel_both_branches_come_before_either_is_done(device: Device, ask: Ask) -> None:
    ended = ask(sequential=False)
    first, second = device.inputs.get(timeout=PATIENCE_S), device.inputs.get(timeout=PATIENCE_S)
    assert {first.node, second.node} == {"a", "b"}
    device.answer(second)
    assert isinstance(ended.get(timeout=PATIENCE_S), float)


def test_in_turn_the_second_branch_comes_only_when_the_first_is_done(device: Device, ask: Ask) -> None:
    ended = ask(sequential=True)
    first = device.inputs.get(timeout=PATIENCE_S)
    device.tell(first, done(first).model_copy(update={"request": "another"}))  # not the one that it waits for
    with pytest.raises(queue.Empty):
        device.inputs.get(timeout=0.2)
    device.tell(first, done(first))
    second = device.inputs.get(timeout=PATIENCE_S)
    assert (first.node, second.node) == ("a", "b")
    device.tell(second, done(second))
    device.answer(second)
    assert isinstance(ended.get(timeout=PATIENCE_S), float)


def test_a_node_that_fails_ends_the_trial_with_the_reason(device: Device, ask: Ask) -> None:
    ended = ask(sequential=True)
    message = device.inputs.get(timeout=PATIENCE_S)
    body = ErrorBody(code=ErrorCode.MODULE_FAILED, message="out of memory")
    told = done(message).model_dump(exclude={"kind", "queue_s"}) | {"device": DEVICE, "retry": False, "error": body}
    device.tell(message, NodeFailed.model_validate(told))
    error = ended.get(timeout=PATIENCE_S)
    assert isinstance(error, SiteFailed)
    assert "out of memory" in str(error)


def test_an_answer_that_never_comes_ends_the_trial(device: Device, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "DEADLINE_S", 0.1)
    error = ask(sequential=False).get(timeout=PATIENCE_S)
    assert isinstance(error, SiteFailed)
    assert device.inputs.get(timeout=PATIENCE_S).task == "pair"
