"""Real processes, a real Mosquitto, real photographs: something dies or lies, and no request is lost or wrong.

All tests share one site, which is put back into order before each test that ends or stops a process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from broker.client import Client, Response
from broker.protocol.codec import encode, encode_tensors
from broker.protocol.messages import Assignment, NodeInputs, Route
from broker.protocol.topics import DEVICE_ASSIGNMENT, TASK_REQUESTS, TASK_ROUTE, TENSORS
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import LinkUp, Outgoing
from s2m3.reference.pictures import REQUESTS
from s2m3.testbed.observer import Observer
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.replay.stage import Stage
from s2m3.testbed.site import Site
from tests.builders import node_inputs
from tests.patience import PATIENCE_S

START_S = 3 * PATIENCE_S
ANSWER_S = 2 * PATIENCE_S
PREFIX = "s2m3/v1"
# vision fits everywhere, the text encoder on gw-b and gw-c: if one dies, the others have room for everything
SCENARIO = Scenario.model_validate(
    {
        "name": "a site for the tests below",
        "fleet": [
            {"id": name, "memory": size} for name, size in (("gw-a", "48MiB"), ("gw-b", "160MiB"), ("gw-c", "160MiB"))
        ],
        "tasks": ["pocket/classify", "pocket/zero-shot", "pocket/vqa"],
        "load": {"rate_per_s": 1, "duration_s": 1, "deadline_s": 1},
    }
)


class Running:
    """A site that serves all three tasks, an observer, and a camera."""

    def __init__(self, site: Site, observer: Observer, client: Client) -> None:
        self.site, self.observer, self.client = site, observer, client

    def ask(self, count: int) -> list[Future[Response]]:
        """Send this many requests at once, in turn over the demo's table."""
        chosen = [REQUESTS[index % len(REQUESTS)] for index in range(count)]
        return [self.client.submit(r.task, r.inputs, deadline_s=ANSWER_S) for r in chosen]

    def check(self, futures: list[Future[Response]]) -> None:
        """Every request was answered, and rightly."""
        for index, future in enumerate(futures):
            response = future.result(ANSWER_S + 5)
            expected = REQUESTS[index % len(REQUESTS)].expected
            assert response.ok, response
            answer = response.result.answer or {}
            assert answer.get("label", answer.get("answer")) == expected

    def holder_of(self, family: str) -> str:
        """The device that serves this family's module; the test before may have left it on its way to another."""

        def holders(seen: Observer) -> list[str]:
            return [
                device
                for device, assignment in seen.assignments.items()
                if any((assigned.spec.family, assigned.role) == (family, "active") for assigned in assignment.modules)
            ]

        self.observer.look()
        assert self.observer.wait_for(lambda seen: bool(holders(seen)), START_S), self.observer.assignments
        return holders(self.observer)[0]

    def await_routes(self, *, without: str | None = None) -> None:
        """Wait until every task is served, and not by this device."""

        def served(seen: Observer) -> bool:
            return all(route.complete and without not in named(route) for route in seen.routes.values())

        assert self.observer.wait_for(served, START_S), self.observer.routes


def named(route: Route) -> set[str]:
    able = {device.device for node in route.nodes.values() for device in node.devices}
    return able.union(route.front_door)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage(SCENARIO) as stage:
        yield stage


@pytest.fixture
def running(stage: Stage) -> Running:
    """The site in order: everything runs, is served, and nothing moves."""
    stage.restore(standby=False)
    return Running(stage.site, stage.observer, stage.client)


@pytest.fixture
def steady(stage: Stage) -> Running:
    """The site as it is, for tests that leave it so."""
    if not stage.observer.routes:
        stage.restore(standby=False)
    return Running(stage.site, stage.observer, stage.client)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("efficientnet.encoder", id="front-door"),
        # the scenario encoder-killed-mid-request has this one in the ordinary run
        pytest.param("sentence.encoder", id="text-encoder", marks=pytest.mark.long),
    ],
)
def test_a_device_killed_while_requests_are_in_flight_costs_no_request(running: Running, family: str) -> None:
    running.check(running.ask(3))
    victim = running.holder_of(family)
    futures = running.ask(12)
    running.site.kill(victim)
    running.check(futures)
    running.await_routes(without=victim)
    # it comes back empty: it must not serve what was assigned to it before
    running.site.start_agent(victim)
    assert running.observer.wait_for(lambda seen: seen.devices[victim].status == "online", START_S)
    assert running.observer.wait_for(lambda seen: victim in seen.heartbeats, START_S)
    running.check(running.ask(3))


@pytest.mark.long  # the scenario hung-device has this in the ordinary run
def test_a_hung_device_is_replaced_though_its_connection_lives(running: Running) -> None:
    victim = running.holder_of("sentence.encoder")
    process = running.site.pid(victim)
    os.kill(process, signal.SIGSTOP)
    try:
        futures = running.ask(6)
        running.await_routes(without=victim)
        running.check(futures)
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.long  # the scenario orchestrator-restart has this in the ordinary run
def test_a_restarted_orchestrator_moves_nothing_and_serving_goes_on_without_it(running: Running) -> None:
    before = serving(running.observer)
    assert running.observer.leader is not None
    epoch = running.observer.leader.epoch
    running.site.kill("orchestrator")
    running.check(running.ask(6))
    running.site.start_orchestrator()
    assert running.observer.wait_for(lambda seen: all(r.epoch > epoch for r in seen.routes.values()), START_S)
    running.await_routes()
    running.observer.wait_for(lambda seen: all(a.epoch > epoch for a in seen.assignments.values()), START_S)
    assert serving(running.observer) == before
    running.check(running.ask(6))


def serving(seen: Observer) -> dict[tuple[str, str], str]:
    """The device of every node, the planned one of several: a busy site may get replicas, too."""
    return {
        (task, name): node.devices[0].device
        for task, route in seen.routes.items()
        for name, node in route.nodes.items()
    }


@pytest.mark.long  # the scenario broker-restart has this in the ordinary run
def test_a_restarted_broker_without_memory_costs_no_request(running: Running) -> None:
    before = serving(running.observer)
    futures = running.ask(6)
    running.site.kill_broker()
    futures += running.ask(6)
    running.site.start_broker()
    responses = [future.result(ANSWER_S + 5) for future in futures]
    assert all(response.ok for response in responses), responses
    running.await_routes()
    running.check(running.ask(6))
    after = serving(running.observer)
    assert after == before


def test_a_copy_of_a_request_is_answered_with_the_same(steady: Running, recorder: Any) -> None:
    transport = plain(steady, recorder)
    request = REQUESTS[0]
    reply_to, end_s = f"{PREFIX}/clients/plain/results/1", time.monotonic() + START_S
    transport.subscribe(reply_to)
    message = Outgoing(
        TASK_REQUESTS.at(PREFIX, task="classify"),
        request.inputs["image"].data,
        response_topic=reply_to,
        correlation=b"one",
        content_type="image/png",
        expiry_s=30,
    )
    transport.publish(message)
    first = recorder.wait_for(lambda event: getattr(event, "topic", "") == reply_to)
    answers, again_s = [first], 0.0
    while len(answers) < 2:  # the coordinator drops a copy until it hears that the request was answered
        if time.monotonic() > again_s:
            transport.publish(message)
            again_s = time.monotonic() + 1.0
        time.sleep(0.01)
        answers = [event for event in recorder.deliveries if event.topic == reply_to]
        assert time.monotonic() < end_s
    second = answers[1]
    transport.close()
    assert first.payload == second.payload  # the same timings, too: nothing was computed again
    assert first.correlation == b"one"


def test_hostile_messages_are_counted_and_the_device_goes_on(steady: Running, recorder: Any) -> None:
    transport = plain(steady, recorder)
    device = steady.holder_of("efficientnet.encoder")
    topic = TENSORS.at(PREFIX, sender="gw-x", receiver=device, request="r1", node="image-encoder")
    good = encode_tensors(stale_inputs(device), {"image/raw": np.zeros(4, dtype=np.uint8)})
    hostile = [b"", b"\0", b"\xff" * 8, (2**63).to_bytes(8, "little"), good[:100], good[:-2], good + b"x", b"{}" * 50]
    before = steady.observer.heartbeats[device].dropped.get("malformed", 0)
    for payload in hostile:
        transport.publish(Outgoing(topic, payload))
    for payload in (b"{", b'{"epoch": "x"}', b"[]", b"\xff\xfe"):
        transport.publish(Outgoing(DEVICE_ASSIGNMENT.at(PREFIX, device=device), payload))
        transport.publish(Outgoing(TASK_ROUTE.at(PREFIX, task="nope"), payload))

    def counted(seen: Observer) -> bool:
        return seen.heartbeats[device].dropped.get("malformed", 0) >= before + len(hostile) + 8

    assert steady.observer.wait_for(counted, START_S), steady.observer.heartbeats[device]
    transport.close()
    steady.check(steady.ask(3))


def test_a_site_that_hears_of_a_later_term_serves_again_soon(running: Running, recorder: Any) -> None:
    """An open broker lets anybody write the leader's topics; nobody leads that term, so it is given up."""
    transport = plain(running, recorder)
    assert running.observer.leader is not None
    epoch = running.observer.leader.epoch
    device = running.holder_of("efficientnet.encoder")
    lie = Assignment(epoch=epoch + 1000, generation=0)
    transport.publish(Outgoing(DEVICE_ASSIGNMENT.at(PREFIX, device=device), encode(lie), retain=True))
    assert running.observer.wait_for(lambda seen: seen.heartbeats[device].epoch == epoch + 1000, START_S)
    away = Route(task="classify", epoch=epoch + 1000, generation=0, group=0, unavailable="a lie")
    transport.publish(Outgoing(TASK_ROUTE.at(PREFIX, task="classify"), encode(away), retain=True))
    transport.close()
    assert running.observer.wait_for(lambda seen: seen.heartbeats[device].epoch == epoch, START_S)
    assert running.observer.leader is not None
    assert running.observer.leader.epoch == epoch, "the leader stayed"
    running.check(running.ask(3))


def test_messages_older_than_the_assignment_are_dropped_and_counted(steady: Running, recorder: Any) -> None:
    transport = plain(steady, recorder)
    device = steady.holder_of("efficientnet.encoder")
    stale = encode_tensors(stale_inputs(device), {"image/raw": np.zeros(4, dtype=np.uint8)})
    transport.publish(
        Outgoing(TENSORS.at(PREFIX, sender="gw-x", receiver=device, request="r1", node="image-encoder"), stale)
    )
    transport.publish(
        Outgoing(DEVICE_ASSIGNMENT.at(PREFIX, device=device), encode(Assignment(epoch=0, generation=0, modules=())))
    )

    def counted(seen: Observer) -> bool:
        dropped = seen.heartbeats[device].dropped
        return dropped.get("stale", 0) >= 1 and dropped.get("stale_assignment", 0) >= 1

    assert steady.observer.wait_for(counted, START_S), steady.observer.heartbeats[device]
    transport.close()
    steady.check(steady.ask(3))


def stale_inputs(device: str) -> NodeInputs:
    old: dict[str, Any] = {"epoch": 0, "generation": 0, "request": "r1", "task": "classify", "coordinator": "gw-x"}
    old["reply_to"] = f"{PREFIX}/clients/x/results/1"
    return node_inputs("image-encoder", device=device, content_types={"image": "image/png"}, **old)


def plain(running: Running, recorder: Any) -> MqttTransport:
    transport = MqttTransport(parse_url(running.site.url), client_id="plain", inbox=recorder)
    transport.start()
    recorder.wait_for(LinkUp)
    return transport
