"""A front door dies with a request that it was just given: a sensor that publishes once gets its answer all the same.

Real brokers and real agents, each with links of its own that can be cut; the orchestrator's part is played here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from broker.protocol.codec import decode, encode
from broker.protocol.messages import (
    Heartbeat,
    Message,
    Result,
)
from broker.protocol.specs import ModuleSpec
from broker.protocol.topics import DEVICE_ASSIGNMENT, DEVICE_HEARTBEAT, RESULTS, TASK_REQUESTS, TASK_ROUTE, prefix_of
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, LinkUp, Outgoing
from edge_agent.config import AgentConfig
from edge_agent.modules import Module, Output, Value
from edge_agent.runtime.store import Store
from edge_agent.service import Agent
from tests.builders import assignment, encoder_route, module, profile

PROFILE = profile()
SPEC = module("y", memory_bytes=10, output_bytes=8)
FIRST, SECOND = "gw-a", "gw-b"


class Doors:
    """Two agents that hold the same module; on the first one it never ends."""

    def __init__(self, stack: ExitStack, url: str, site: str, proxy: Any, recorder: Any) -> None:
        self.prefix, self.heard, self.way = prefix_of(site), recorder, proxy
        self.taken, self._release = threading.Event(), threading.Event()
        self.ear = MqttTransport(url=url, client_id=f"{site}-ear", inbox=recorder)
        stack.callback(self.ear.close)
        self.ear.subscribe(DEVICE_HEARTBEAT.filter(self.prefix), RESULTS.filter(self.prefix))
        self.ear.start()
        recorder.wait_for(LinkUp)
        for name, way, compute in ((FIRST, proxy.url, self._hangs), (SECOND, url, answers)):
            config = AgentConfig(id=f"{site}-{name}", broker=way, site=site, heartbeat_interval_s=0.05)
            store = Store(100, load=partial(_loaded, compute))
            stack.enter_context(running(Agent(config, profile=PROFILE, store=store)))
        stack.callback(self._release.set)  # first of all, or the agent could not end
        self.first, self.second = f"{site}-{FIRST}", f"{site}-{SECOND}"
        for device in (self.first, self.second):
            self._say(DEVICE_ASSIGNMENT.at(self.prefix, device=device), assignment(SPEC))
        for device in (self.first, self.second):
            self._await_ready(device)

    def route(self, generation: int, front_door: str, second_door: tuple[str, ...]) -> None:
        known = encoder_route(
            "echo",
            tuple(dict.fromkeys((front_door, *second_door))),
            key=SPEC.key,
            generation=generation,
            group=generation,
            front_door=(front_door,),
            second_door=second_door,
        )
        self._say(TASK_ROUTE.at(self.prefix, task="echo"), known)

    def ask_once(self) -> None:
        """One publish, as of a plain sensor, once both doors have joined their groups; nothing is ever sent again."""
        self._await_members()
        reply_to = RESULTS.at(self.prefix, client="sensor", request="only")
        topic = TASK_REQUESTS.at(self.prefix, task="echo")
        self.ear.publish(Outgoing(topic, b"a cat", response_topic=reply_to, correlation=b"only", expiry_s=30))

    def answer(self) -> Result:
        topic = RESULTS.at(self.prefix, client="sensor", request="only")
        return decode(Result, self.heard.wait_for(lambda event: getattr(event, "topic", "") == topic).payload)

    def _await_members(self) -> None:
        """A request without text is answered by the front door at once; both doors read it over the same links."""
        topic = TASK_REQUESTS.at(self.prefix, task="echo")
        reply_to = RESULTS.at(self.prefix, client="sensor", request="probe")
        pause = threading.Event()
        for number in range(200):
            probe = Outgoing(topic, b"", response_topic=reply_to, correlation=b"%d" % number, expiry_s=30)
            self.ear.publish(probe)
            pause.wait(0.05)
            if any(event.topic == reply_to for event in self.heard.deliveries):
                return
        pytest.fail("the front door doesn't serve")

    def _await_ready(self, device: str) -> None:
        def ready(event: object) -> bool:
            if not isinstance(event, Delivery) or event.topic != DEVICE_HEARTBEAT.at(self.prefix, device=device):
                return False
            return any(held.state == "ready" for held in decode(Heartbeat, event.payload).modules.values())

        self.heard.wait_for(ready)

    def _say(self, topic: str, message: Message) -> None:
        self.ear.publish(Outgoing(topic, encode(message), retain=True))

    def _hangs(self, *_: Value) -> Output:
        self.taken.set()
        self._release.wait()
        return Output({}, {"label": "from the dead"})


def _loaded(module: Module, _: ModuleSpec) -> Module:
    return module


def answers(*_: Value) -> Output:
    return Output({}, {"label": "from the second door"})


@contextmanager
def running(agent: Agent) -> Iterator[None]:
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        yield
    finally:
        agent.stop()
        thread.join()


@pytest.fixture
def doors(broker_url: str, unique_prefix: str, proxy_to: Callable[[str], Any], recorder: Any) -> Iterator[Doors]:
    with ExitStack() as stack:
        yield Doors(stack, broker_url, unique_prefix, proxy_to(broker_url), recorder)


def test_the_second_door_answers_a_request_that_died_with_the_front_door(doors: Doors, patience_s: float) -> None:
    doors.route(1, doors.first, (doors.second,))
    doors.ask_once()
    assert doors.taken.wait(patience_s), "the front door has it, and computes"
    doors.way.close()
    result = doors.answer()
    assert (result.answer, result.coordinator) == ({"label": "from the second door"}, doors.second)


def test_it_does_not_wait_once_the_orchestrator_names_another_front_door(doors: Doors, patience_s: float) -> None:
    doors.route(1, doors.first, (doors.second,))
    doors.ask_once()
    assert doors.taken.wait(patience_s)
    doors.way.close()
    doors.route(2, doors.second, ())
    assert doors.answer().answer == {"label": "from the second door"}
