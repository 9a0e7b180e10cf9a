"""A forward pass that never ends: the agent restarts under its process id, and ends in time when it is asked to.

The agent is a process of its own at a real Mosquitto; its limits are shorter, so that the test is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.protocol.codec import decode, decode_result, encode
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import AssignedModule, Assignment, DeviceState, Heartbeat
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_STATE,
    TASK_REQUESTS,
    TASK_ROUTE,
    prefix_of,
)
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import LinkUp, Outgoing
from edge_agent.restart import EXIT_HUNG, VARIABLE
from tests.builders import able, module, route, route_node
from tests.one_node import is_ready, next_heartbeat, serve_one_node
from tests.patience import PATIENCE_S

SPEC = module("y", memory_bytes=10, output_bytes=8)
DEADLINE_S = 3600  # of the hung request: no pass is hung by its sensor's word
PROGRAM = """
import re, sys, threading
import numpy as np
from broker.process import log_to_stderr, stopped_by_signals
from edge_agent import service, watchdog, workers
from edge_agent.config import AgentConfig
from edge_agent.modules import Output
from edge_agent.restart import PassLost, restart
from tests.builders import computing, profile, uncalibrated_store

workers.HUNG_S, service.FAREWELL_S, watchdog.LIMIT_S = 3600.0, 0.5, 3.0

def compute(value, *_):
    if getattr(value, "data", b"") == b"hang":
        workers.HUNG_S = float(sys.argv[4])  # no other pass counts as hung where a machine stands still
        threading.Event().wait()
    if getattr(value, "data", b"") == b"spin":
        re.match("(a|a)*b", "a" * 50)  # 2^50 steps under the interpreter's lock
    return Output({"bits": np.zeros(1, np.float32)}, {"label": "done"})

log_to_stderr()
config = AgentConfig(id=sys.argv[2], site=sys.argv[3], broker=sys.argv[1], heartbeat_interval_s=0.2)
store, dog = uncalibrated_store(100, lambda _: computing(compute)), watchdog.Watchdog(0.2)
agent = service.Agent(config, profile=profile(), store=store, on_turn=dog.reset)
with stopped_by_signals(agent.stop, until_stdin_closes=False):
    try:
        agent.run()
    except PassLost:
        sys.exit(restart())
"""


class World:
    """Agents in processes of their own, and a client that is their orchestrator and their sensor."""

    def __init__(
        self, url: str, name: str, recorder: Any, hung_s: float, environ: dict[str, str], *others: str
    ) -> None:
        self.name, self.prefix, self.received = name, prefix_of(name), recorder
        self.client = MqttTransport(parse_url(url), client_id=f"{name}-client", inbox=recorder)
        self.client.subscribe(f"{self.prefix}/#")
        self.client.start()
        recorder.wait_for(LinkUp)  # nothing is published before
        command = [sys.executable, "-c", PROGRAM, url]
        self.process, *self.others = (
            subprocess.Popen([*command, device, name, str(hung_s)], env=environ) for device in (name, *others)
        )

    def serve(self) -> None:
        serve_one_node(self.client, self.received, self.prefix, self.name, SPEC)

    def serve_with(self, *devices: str) -> None:
        """Two nodes on any of these devices at once, and the output node on the front door."""
        wanted = Assignment(epoch=1, generation=1, modules=(AssignedModule(module="y", spec=SPEC),))
        nodes = {node: route_node(SPEC.key, ("image",), able(*devices)) for node in ("first", "second")}
        nodes["output"] = route_node(SPEC.key, ("first", "second"), able(self.name))
        for device in (self.name, *devices):
            self.client.publish(Outgoing(DEVICE_ASSIGNMENT.at(self.prefix, device=device), encode(wanted), retain=True))
        for device in (self.name, *devices):
            self.heartbeat(is_ready, device)
        served = route("t", nodes, front_door=(self.name,))
        self.client.publish(Outgoing(TASK_ROUTE.at(self.prefix, task="t"), encode(served), retain=True))

    def heartbeat(self, fits: Callable[[Heartbeat], object], device: str | None = None) -> Heartbeat:
        return next_heartbeat(self.received, self.prefix, device or self.name, fits)

    def ask(self, payload: bytes) -> None:
        reply_to = f"{self.prefix}/clients/c/results/{payload.decode()}"
        topic = TASK_REQUESTS.at(self.prefix, task="t")
        self.client.publish(Outgoing(topic, payload, response_topic=reply_to, expiry_s=DEADLINE_S))

    def serves(self, payload: bytes) -> None:
        """Ask until there is an answer: the agent joins its share group in its own time."""
        topic = f"{self.prefix}/clients/c/results/{payload.decode()}"
        pause = threading.Event()
        until_s = time.monotonic() + PATIENCE_S
        while not any(event.topic == topic for event in self.received.deliveries):
            assert time.monotonic() < until_s, "the agent doesn't answer"
            self.ask(payload)
            pause.wait(0.2)
        assert self.answer(payload).answer == {"label": "done"}

    def answer(self, payload: bytes) -> Any:
        topic = f"{self.prefix}/clients/c/results/{payload.decode()}"
        found = self.received.wait_for(lambda event: getattr(event, "topic", "") == topic)
        return decode_result(found.payload, found.content_type)[0]


@pytest.fixture
def start(mosquitto_url: str, unique_prefix: str, make_recorder: Any) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(hung_s: float, restarts: str = "", others: tuple[str, ...] = ()) -> World:
        environ, name = {**os.environ, VARIABLE: restarts}, f"{unique_prefix}-{len(worlds)}"
        worlds.append(World(mosquitto_url, name, make_recorder(), hung_s, environ, *others))
        if others:
            worlds[-1].serve_with(*others)
        else:
            worlds[-1].serve()
        return worlds[-1]

    yield make
    for world in worlds:
        world.client.close()
        for process in (world.process, *world.others):
            process.kill()
            process.wait()


def test_an_agent_with_a_hung_pass_says_so_and_begins_anew_under_its_process_id(start: Callable[..., World]) -> None:
    world = start(1.0)
    before = world.heartbeat(lambda _: True).session
    world.serves(b"good")
    world.ask(b"hang")
    error = world.answer(b"hang").error
    assert (error.code, "hangs on" in error.message) == (ErrorCode.MODULE_FAILED, True)
    topic = DEVICE_STATE.at(world.prefix, device=world.name)
    offline = world.received.wait_for(
        lambda event: getattr(event, "topic", "") == topic and decode(DeviceState, event.payload).status == "offline"
    )
    assert decode(DeviceState, offline.payload).session == before
    again = world.heartbeat(
        lambda seen: seen.session != before and any(held.state == "ready" for held in seen.modules.values())
    )
    assert again.session != before
    assert world.process.poll() is None, "the same process"
    world.serves(b"better")


def test_a_request_that_hangs_every_pass_takes_two_of_three_devices_along_and_its_sensor_is_told(
    start: Callable[..., World],
) -> None:
    devices = ("gw-b", "gw-c", "gw-d")
    world = start(8.0, others=devices)
    world.serves(b"good")
    world.ask(b"hang")
    error = world.answer(b"hang").error
    assert (error.code, "hangs on" in error.message) == (ErrorCode.MODULE_FAILED, True)
    world.serves(b"better")
    topics = {DEVICE_STATE.at(world.prefix, device=device) for device in devices}
    states = [event for event in world.received.deliveries if event.topic in topics]
    gone = {event.topic for event in states if decode(DeviceState, event.payload).status == "offline"}
    assert len(gone) == 2, "each said so as it left"


def test_a_pass_that_keeps_the_interpreters_lock_ends_the_process_for_its_supervisor(
    start: Callable[..., World],
) -> None:
    world = start(1.0)
    world.serves(b"good")
    world.ask(b"spin")
    assert world.process.wait(PATIENCE_S) == -signal.SIGPROF


def test_after_three_restarts_it_ends_with_an_exit_code_of_its_own(start: Callable[..., World]) -> None:
    now_s = time.monotonic()
    world = start(1.0, restarts=",".join(str(now_s - ago_s) for ago_s in (1, 2, 3)))
    world.serves(b"good")
    world.ask(b"hang")
    assert world.process.wait(PATIENCE_S) == EXIT_HUNG


def test_sigterm_ends_an_agent_with_a_hung_pass(start: Callable[..., World]) -> None:
    world = start(3600.0)
    world.serves(b"good")
    world.ask(b"hang")
    world.ask(b"waits")
    world.heartbeat(lambda seen: any(held.uses and held.queue == 0 for held in seen.modules.values()))
    world.process.send_signal(signal.SIGTERM)
    assert world.process.wait(PATIENCE_S) == 0  # the pass would end in an hour; test_sigterm has the five seconds
