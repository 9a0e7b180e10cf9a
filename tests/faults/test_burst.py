"""Three thousand requests at once at one agent: each ends in an answer or an error before its deadline."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from broker.protocol.codec import decode_result, encode
from broker.protocol.messages import AssignedModule, Assignment
from broker.protocol.topics import CLIENT_REQUESTS, DEVICE_ASSIGNMENT, TASK_REQUESTS, TASK_ROUTE, prefix_of
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, LinkUp, Outgoing
from edge_agent.config import AgentConfig
from edge_agent.device import broker_drops
from edge_agent.modules import Output, Value
from edge_agent.service import Agent
from tests.builders import able, computing, module, profile, route, route_node, uncalibrated_store
from tests.patience import PATIENCE_S, until

REQUESTS = 3_000
WARM_UP = 1_000_000  # the number of the first request that only finds out whether the task is served
BYTES = 14_000  # a small JPEG
DEADLINE_S = 20
PASS_S = 0.02
FLOOD_S, FLOOD_PER_S, MODEST = 5, 500, 10
SPEC = module("y", memory_bytes=10, output_bytes=8)


def echo(_: Value) -> Output:
    threading.Event().wait(PASS_S)
    return Output({"bits": np.zeros(1, dtype=np.float32)}, {"label": "echo"})


class Sensor:
    """A client that publishes plain requests as fast as it can, and notes when each one ended and how.

    Each has its own number, in the Correlation Data or, ``by_client``, in its topic.
    """

    def __init__(self, url: str, prefix: str, name: str = "sensor") -> None:
        self.url, self.prefix, self.name = url, prefix, name
        self.by_client, self.qos, self.size_bytes, self.is_warm = False, 1, BYTES, False
        self.invents_names = False  # a client's name for each request; it hears no answers then
        self.ended: dict[int, tuple[float, str]] = {}
        self.up = threading.Event()
        self.transport = MqttTransport(
            parse_url(url),
            client_id=name,
            inbox=self._put,
            max_queued=2 * REQUESTS,
            max_queued_bytes=2 * REQUESTS * BYTES,
        )
        self.transport.subscribe(f"{prefix}/clients/{name}/results/+")
        self.transport.start()

    def _put(self, event: object) -> None:
        if isinstance(event, LinkUp):
            self.up.set()
        if isinstance(event, Delivery):
            result, _ = decode_result(event.payload, event.content_type)
            how = result.error.code if result.error else "answered"
            number = int(event.correlation or event.topic.rpartition("/")[2])
            if number < WARM_UP or not self.is_warm:
                self.ended.setdefault(number, (time.monotonic(), str(how)))

    def ask(self, number: int) -> float:
        picture = number.to_bytes(4, "big") * (self.size_bytes // 4)
        properties: dict[str, Any] = {"qos": self.qos, "content_type": "image/jpeg", "expiry_s": DEADLINE_S}
        if self.by_client:
            name = f"{self.name}-{number}" if self.invents_names else self.name
            topic = CLIENT_REQUESTS.at(self.prefix, task="echo", client=name, request=str(number))
        else:
            topic = TASK_REQUESTS.at(self.prefix, task="echo")
            properties["response_topic"] = f"{self.prefix}/clients/{self.name}/results/1"
            properties["correlation"] = str(number).encode()
        self.transport.publish(Outgoing(topic, picture, **properties))
        return time.monotonic()


@pytest.fixture
def burst(start_mosquitto: Callable[..., Any]) -> Iterator[Callable[..., Sensor]]:
    """A sensor at a Mosquitto with the shipped configuration, where one agent serves the task ``echo``."""
    running: list[tuple[Agent, threading.Thread, Sensor]] = []

    def start(*settings: str) -> Sensor:
        url, prefix = start_mosquitto(*settings).url, prefix_of()
        sensor = Sensor(url, prefix)
        store = uncalibrated_store(100, lambda _: computing(echo))
        agent = Agent(AgentConfig(id="gw-a", broker=url), profile=profile(), store=store)
        thread = threading.Thread(target=agent.run)
        thread.start()
        running.append((agent, thread, sensor))
        assert sensor.up.wait(PATIENCE_S)
        wanted = Assignment(epoch=1, generation=1, modules=(AssignedModule(module="y", spec=SPEC),))
        served = route("echo", {"node": route_node(SPEC.key, ("image",), able("gw-a", compute_s=PASS_S))})
        for topic, message in (
            (DEVICE_ASSIGNMENT.at(prefix, device="gw-a"), wanted),
            (TASK_ROUTE.at(prefix, task="echo"), served),
        ):
            sensor.transport.publish(Outgoing(topic, encode(message), retain=True))
        number = WARM_UP
        while not any(how == "answered" for _, how in list(sensor.ended.values())):
            sensor.ask(number)
            number += 1
            time.sleep(0.1)
        sensor.is_warm = True
        sensor.ended.clear()
        return sensor

    yield start
    for agent, thread, sensor in running:
        agent.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        sensor.transport.close()


@pytest.mark.parametrize(("qos", "by_client"), [(1, False), (1, True), (0, True)])
def test_each_of_three_thousand_requests_at_once_ends_before_its_deadline(
    burst: Callable[..., Sensor], qos: int, *, by_client: bool
) -> None:
    sensor = burst()
    sensor.qos, sensor.by_client = qos, by_client
    sent_s = [sensor.ask(number) for number in range(REQUESTS)]
    ended = sensor.ended
    until(lambda: len(ended) >= REQUESTS or time.monotonic() > sent_s[-1] + DEADLINE_S + 1, 2 * DEADLINE_S)
    how = Counter(code for _, code in ended.values())
    assert len(ended) == REQUESTS, how
    assert set(how) == {"answered", "overloaded"}
    assert [n for n, at_s in enumerate(sent_s) if ended[n][0] > at_s + DEADLINE_S] == [], "late"


def test_a_sensor_with_five_hundred_requests_a_second_takes_no_request_of_another(burst: Callable[..., Sensor]) -> None:
    """Its device can do a tenth of them; each of the other sensor's few is answered, as if it were alone."""
    greedy = burst()
    modest = Sensor(greedy.url, greedy.prefix, "modest")
    assert modest.up.wait(PATIENCE_S)
    for sensor in (greedy, modest):
        sensor.by_client, sensor.size_bytes = True, 100
    began_s, pause = time.monotonic(), threading.Event()
    for number in range(FLOOD_S * FLOOD_PER_S):
        greedy.ask(number)
        if number % (FLOOD_S * FLOOD_PER_S // MODEST) == 0:
            modest.ask(number)
        pause.wait(max(0.0, began_s + number / FLOOD_PER_S - time.monotonic()))
    until(lambda: len(modest.ended) >= MODEST and len(greedy.ended) >= FLOOD_S * FLOOD_PER_S, 2 * DEADLINE_S)
    modest.transport.close()
    assert Counter(how for _, how in modest.ended.values()) == {"answered": MODEST}
    assert {how for _, how in greedy.ended.values()} == {"answered", "overloaded"}


def test_a_sensor_that_invents_a_name_for_each_request_takes_no_request_of_another(
    burst: Callable[..., Sensor],
) -> None:
    """As above, at a broker without access rules. The other sensor has asked once before."""
    greedy = burst()
    modest = Sensor(greedy.url, greedy.prefix, "modest")
    assert modest.up.wait(PATIENCE_S)
    for sensor in (greedy, modest):
        sensor.by_client, sensor.size_bytes = True, 100
    greedy.invents_names = True
    modest.ask(FLOOD_S * FLOOD_PER_S)
    until(lambda: modest.ended)
    began_s, pause = time.monotonic(), threading.Event()
    for number in range(FLOOD_S * FLOOD_PER_S // 2):
        greedy.ask(number)
        if number % (FLOOD_S * FLOOD_PER_S // 2 // MODEST) == 0:
            modest.ask(number)
        pause.wait(max(0.0, began_s + number / FLOOD_PER_S - time.monotonic()))
    until(lambda: len(modest.ended) > MODEST, 2 * DEADLINE_S)
    modest.transport.close()
    assert Counter(how for _, how in modest.ended.values()) == {"answered": MODEST + 1}


def test_an_agent_tells_of_a_broker_whose_queue_is_too_small(
    burst: Callable[..., Sensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    class Log:
        def warning(self, action: str, *, dropped_since_its_start: int, **_: object) -> None:
            assert action == "broker_drops_messages"
            told.append(dropped_since_its_start)

    monkeypatch.setattr(broker_drops, "log", Log())
    sensor = burst("max_queued_messages 20", "sys_interval 1")
    for number in range(REQUESTS):
        sensor.ask(number)
    until(lambda: told)
    assert told[0] > 0
