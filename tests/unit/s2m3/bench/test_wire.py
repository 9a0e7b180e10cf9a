"""The figures of the wire bench without a broker: what its ratios are made of, and when they hold."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any, Self

import pytest

from broker.client import Client
from broker.protocol import topics
from broker.protocol.codec import encode_tensors
from broker.transport.connection import parse_url
from broker.transport.memory import MemoryBroker
from broker.transport.port import Delivery, LinkEvent
from edge_agent import wire
from s2m3.bench.wire import agents, ends, measure
from s2m3.cli.bench import wire as wire_command
from tests.patience import PATIENCE_S


class Hops:
    """Hops of stated seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.prepared, self.taken = seconds, list[int](), 0

    def prepare(self, size_bytes: int) -> None:
        self.prepared.append(size_bytes)

    def hop(self) -> float:
        self.taken += 1
        return self.seconds


def test_a_row_has_both_kinds_of_hops_and_the_ratio_of_their_medians() -> None:
    both = {"paho": Hops(0.001), "agents": Hops(0.0015)}
    row = measure._row(both, 2048, 3, 10)  # type: ignore[arg-type]
    assert [each.prepared for each in both.values()] == [[2048], [2048]]
    assert [each.taken for each in both.values()] == [3 * (10 + measure.WARM_UP)] * 2
    assert (row["ratio"], row["paho_s"]["p50"], row["agents_s"]["p95"]) == (1.5, 0.001, 0.0015)


@pytest.mark.parametrize(("agents_s", "request_s", "holds"), [(1.2, 4.0, True), (1.3, 4.0, False), (1.2, 4.1, False)])
def test_it_holds_when_each_hop_and_the_requests_do(
    agents_s: float,
    request_s: float,
    holds: bool,  # noqa: FBT001 - a parameter
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Asked:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def __call__(self, url: str, *_: object) -> Self:
            assert url.startswith("mqtt://")
            return self

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def ask(self) -> float:
            return self.seconds

    def hops(_: str, kind: str) -> Any:
        return nullcontext(Hops(1.0 if kind == "paho" else agents_s))

    class Broker:
        url = "mqtt://unused"

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

    monkeypatch.setattr(measure, "Hops", hops)
    monkeypatch.setattr(measure, "Agents", Asked(request_s))
    monkeypatch.setattr(measure, "Relays", Asked(3.5))
    monkeypatch.setattr(measure, "MosquittoBroker", Broker)
    monkeypatch.setattr(measure, "_version", lambda _: "1")
    found = measure.measure(brokers=("mosquitto",), sizes=(2048, 5_000_000), rounds=2, hops=10, progress=lambda _: None)
    assert found["ok"] is holds
    at = found["brokers"]["mosquitto"]
    assert [row["bytes"] for row in at["hops"]] == [2048, 5_000_000]
    request = at["request"]
    assert (request["floor_hops"], request["floor_ratios"], request["floor_s"]["p50"]) == (3.5, [3.5, 3.5], 3.5)
    assert (request["hops"], request["ratios"]) == (request_s, [request_s] * 2)
    wire_command._show(found)
    printed = capsys.readouterr().out
    assert {"3.50", f"{request_s:.2f}", f"{agents_s:.2f}"} <= set(printed.replace("│", " ").split())


def test_paho_sends_as_many_bytes_as_an_agent() -> None:
    arrays = {f"{ends.NEED}/{name}": each for name, each in ends.tensors_of(2048).items()}
    assert ends.payload_bytes(2048) == len(encode_tensors(ends.message(), arrays))
    assert sum(each.nbytes for each in arrays.values()) == 2048


def test_three_agents_serve_the_task_and_pack_each_message_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[str] = []

    def packing(message: Any, tensors: Any, really: Any = encode_tensors) -> Any:
        packed.append(message.node)
        return really(message, tensors)

    monkeypatch.setattr(wire, "encode_tensors", packing)
    broker = MemoryBroker()
    heard: list[str] = []

    def hear(event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            heard.append(event.topic.rpartition("/")[2])

    operator = broker.connect(client_id="operator", inbox=hear)
    operator.subscribe(topics.TENSORS.filter(agents.PREFIX))
    operator.start()
    for order in agents.orders():
        operator.publish(order)
    each = [agents.agent_of(name, parse_url("mqtt://unused"), broker.connect) for name in agents.NODES.values()]
    threads = [threading.Thread(target=agent.run) for agent in each]
    for thread in threads:
        thread.start()
    try:
        inputs = {"image": agents.IMAGE, "text": agents.TEXT}
        with Client("mqtt://unused", make_transport=broker.connect) as sensor:
            response = sensor.request(agents.TASK, inputs, deadline_s=PATIENCE_S)
            assert response.result.answer == {"label": "a cat"}
    finally:
        for agent in each:
            agent.stop()
        for thread in threads:
            thread.join()
    assert sorted(heard) == sorted(packed), "with each attempt, if a busy machine makes several"
    assert set(packed) >= {"image-encoder", "text-encoder", "head"}


@pytest.mark.long
@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_hops_and_requests_are_measured_on_a_real_broker(broker: Any) -> None:
    found = measure.measure(brokers=(broker,), sizes=(2048, 300_000), rounds=1, hops=3, progress=lambda _: None)
    at = found["brokers"][broker]
    assert [row["paho_s"]["p50"] > 0 and row["agents_s"]["p50"] > 0 for row in at["hops"]] == [True, True]
    assert at["request"]["request_s"]["p50"] > 0
    assert at["request"]["floor_s"]["p50"] > 0
