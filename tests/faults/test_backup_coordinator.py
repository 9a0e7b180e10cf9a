"""A front door dies with a request that it just got: a sensor that publishes once gets its answer nevertheless.

Real brokers and real agents, each with links of its own that can be cut; the test plays the orchestrator.
"""

from __future__ import annotations

import itertools
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
from broker.protocol.topics import (
    CLIENT_REQUESTS,
    DEVICE_ASSIGNMENT,
    DEVICE_HEARTBEAT,
    RESULTS,
    TASK_REQUESTS,
    TASK_ROUTE,
    prefix_of,
)
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, LinkUp, Outgoing
from edge_agent.config import AgentConfig
from edge_agent.modules import Module, Output, Value
from edge_agent.service import Agent
from tests.builders import assignment, computing, encoder_route, module, profile, uncalibrated_store
from tests.patience import until

PROFILE = profile()
SPEC = module("y", memory_bytes=10, output_bytes=8)
FRONT, BACKUP = "gw-a", "gw-b"


class Agents:
    """Two agents that hold the same module; on the first one a pass never ends."""

    def __init__(self, stack: ExitStack, url: str, site: str, proxy: Any, recorder: Any) -> None:
        self.prefix, self.received, self.way = prefix_of(site), recorder, proxy
        self.taken, self._release = threading.Event(), threading.Event()
        self.observer = MqttTransport(parse_url(url), client_id=f"{site}-observer", inbox=recorder)
        stack.callback(self.observer.close)
        self.observer.subscribe(DEVICE_HEARTBEAT.filter(self.prefix), RESULTS.filter(self.prefix))
        self.observer.start()
        recorder.wait_for(LinkUp)
        for name, way, compute in ((FRONT, proxy.url, self._compute_forever), (BACKUP, url, answers)):
            config = AgentConfig(id=f"{site}-{name}", broker=way, site=site, heartbeat_interval_s=0.05)
            store = uncalibrated_store(100, partial(_loaded, compute))
            stack.enter_context(running(Agent(config, profile=PROFILE, store=store)))
        stack.callback(self._release.set)  # before all others, so that the agent can end
        self.front, self.backup = f"{site}-{FRONT}", f"{site}-{BACKUP}"
        for device in (self.front, self.backup):
            self._publish(DEVICE_ASSIGNMENT.at(self.prefix, device=device), assignment(SPEC))
        for device in (self.front, self.backup):
            self._await_ready(device)

    def route(self, generation: int, front_door: str, backups: tuple[str, ...]) -> None:
        known = encoder_route(
            "echo",
            tuple(dict.fromkeys((front_door, *backups))),
            key=SPEC.key,
            generation=generation,
            group=generation,
            front_door=(front_door,),
            second_door=backups,
        )
        self._publish(TASK_ROUTE.at(self.prefix, task="echo"), known)

    def ask_once(self, *, names_client: bool = False) -> None:
        """One publish, as of a plain sensor, once both agents have joined their groups; nothing is resent."""
        self._await_members()
        ids = {"client": "sensor", "request": "only"}
        if names_client:
            topic = CLIENT_REQUESTS.at(self.prefix, task="echo", **ids)
            self.observer.publish(Outgoing(topic, b"a cat", expiry_s=30))
            return
        topic, reply_to = TASK_REQUESTS.at(self.prefix, task="echo"), RESULTS.at(self.prefix, **ids)
        self.observer.publish(Outgoing(topic, b"a cat", response_topic=reply_to, correlation=b"only", expiry_s=30))

    def answer(self) -> Result:
        topic = RESULTS.at(self.prefix, client="sensor", request="only")
        return decode(Result, self.received.wait_for(lambda event: getattr(event, "topic", "") == topic).payload)

    def _await_members(self) -> None:
        """A request without text is answered by the front door at once; both agents read it over the same links."""
        topic = TASK_REQUESTS.at(self.prefix, task="echo")
        reply_to = RESULTS.at(self.prefix, client="sensor", request="probe")
        pause, numbers = threading.Event(), itertools.count()

        def answered() -> bool:
            correlation = str(next(numbers)).encode()
            self.observer.publish(Outgoing(topic, b"", response_topic=reply_to, correlation=correlation, expiry_s=30))
            pause.wait(0.05)
            return any(event.topic == reply_to for event in self.received.deliveries)

        until(answered)

    def _await_ready(self, device: str) -> None:
        def ready(event: object) -> bool:
            if not isinstance(event, Delivery) or event.topic != DEVICE_HEARTBEAT.at(self.prefix, device=device):
                return False
            return any(held.state == "ready" for held in decode(Heartbeat, event.payload).modules.values())

        self.received.wait_for(ready)

    def _publish(self, topic: str, message: Message) -> None:
        self.observer.publish(Outgoing(topic, encode(message), retain=True))

    def _compute_forever(self, *_: Value) -> Output:
        self.taken.set()
        self._release.wait()
        return Output({}, {"label": "from the dead front door"})


def _loaded(compute: Callable[..., Output], _: ModuleSpec) -> Module:
    return computing(compute)


def answers(*_: Value) -> Output:
    return Output({}, {"label": "from the backup coordinator"})


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
def agents(broker_url: str, unique_prefix: str, proxy_to: Callable[[str], Any], recorder: Any) -> Iterator[Agents]:
    with ExitStack() as stack:
        yield Agents(stack, broker_url, unique_prefix, proxy_to(broker_url), recorder)


@pytest.mark.parametrize("names_client", [False, True])
def test_the_backup_answers_a_request_that_died_with_the_front_door(
    agents: Agents, patience_s: float, *, names_client: bool
) -> None:
    agents.route(1, agents.front, (agents.backup,))
    agents.ask_once(names_client=names_client)
    assert agents.taken.wait(patience_s), "the front door has the request and computes"
    agents.way.close()
    result = agents.answer()
    assert (result.answer, result.coordinator) == ({"label": "from the backup coordinator"}, agents.backup)


def test_it_does_not_wait_once_the_orchestrator_names_another_front_door(agents: Agents, patience_s: float) -> None:
    agents.route(1, agents.front, (agents.backup,))
    agents.ask_once()
    assert agents.taken.wait(patience_s)
    agents.way.close()
    agents.route(2, agents.backup, ())
    assert agents.answer().answer == {"label": "from the backup coordinator"}
