"""An agent that is asked to end does so in time, whatever it computes, and the others hear that it is gone.

The agent is a process of its own at a real Mosquitto. It ends by itself with exit code 0; only where native code keeps
the interpreter's lock, or a thread keeps Python from ending, its guard kills it, sooner here. No time is measured: the
guard's is the limit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.protocol.codec import decode, encode
from broker.protocol.messages import AssignedModule, Assignment, DeviceState, Heartbeat
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_HEARTBEAT,
    DEVICE_STATE,
    TASK_REQUESTS,
    TASK_ROUTE,
    prefix_of,
)
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, Outgoing
from edge_agent.end_guard import END_S
from tests.builders import able, module, route, route_node
from tests.patience import PATIENCE_S, until

GUARDED_S, LONGEST_S = 1.0, 5.0
SPEC, STUCK = module("y", memory_bytes=10, output_bytes=8), module("stuck", memory_bytes=10, output_bytes=8)
PROGRAM = """
import ctypes, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from broker.process import log_to_stderr, stopped_by_signals
from edge_agent import service
from edge_agent.config import AgentConfig
from edge_agent.end_guard import EndGuard
from edge_agent.modules import Output
from tests.builders import computing, part_of, profile, uncalibrated_store

with_lock, without_lock = ctypes.PyDLL(None).sleep, ctypes.CDLL(None).sleep
STUCK = {
    "keeps the lock": lambda: with_lock(3600),
    "leaves the lock": lambda: without_lock(3600),
    "waits for another thread": lambda: ThreadPoolExecutor().submit(without_lock, 3600).result(),
    "computes python": lambda: [None for _ in iter(int, 1)],
    "nothing": lambda: None,
}

def compute(value, *_):
    stuck = STUCK.get(getattr(value, "data", b"").decode())
    if stuck:
        print("stuck", flush=True)
        stuck()
    return Output({"bits": np.zeros(1, np.float32)}, {"label": "done"})

def load(spec):
    if part_of(spec) == "stuck":
        print("stuck", flush=True)
        STUCK[sys.argv[4]]()
    return computing(compute)

log_to_stderr()
config = AgentConfig(id=sys.argv[2], site=sys.argv[3], broker=sys.argv[1], heartbeat_interval_s=0.2)
agent = service.Agent(config, profile=profile(), store=uncalibrated_store(100, load))
guard = EndGuard(float(sys.argv[5]))
with stopped_by_signals(agent.stop, until_stdin_closes=False):
    agent.run()
"""


class World:
    """One agent, and a client that is its orchestrator and its sensor."""

    def __init__(self, url: str, name: str, recorder: Any, stuck: str, end_s: float) -> None:
        self.name, self.prefix, self.received = name, prefix_of(name), recorder
        self.client = MqttTransport(parse_url(url), client_id=f"{name}-client", inbox=recorder)
        self.client.subscribe(f"{self.prefix}/#")
        self.client.start()
        command = [sys.executable, "-c", PROGRAM, url, name, name, stuck, str(end_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.is_stuck = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        self.session = self.heartbeat(lambda _: True).session

    def _listen(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() == b"stuck\n":
            self.is_stuck.set()

    def heartbeat(self, fits: Callable[[Heartbeat], object]) -> Heartbeat:
        topic = DEVICE_HEARTBEAT.at(self.prefix, device=self.name)

        def fitting(event: object) -> bool:
            is_heartbeat = isinstance(event, Delivery) and event.topic == topic
            return is_heartbeat and bool(fits(decode(Heartbeat, getattr(event, "payload", b""))))

        return decode(Heartbeat, self.received.wait_for(fitting).payload)

    def assign(self, *specs: Any) -> None:
        modules = tuple(AssignedModule(module=f"m/{spec.source.part}", spec=spec) for spec in specs)
        assigned = Assignment(epoch=1, generation=1, modules=modules)
        self.client.publish(Outgoing(DEVICE_ASSIGNMENT.at(self.prefix, device=self.name), encode(assigned)))

    def load_stuck(self) -> None:
        """Have the agent load what never ends, and wait until it does."""
        self.assign(STUCK)
        assert self.is_stuck.wait(PATIENCE_S)

    def compute(self, payload: bytes) -> None:
        """Have the agent compute this, and wait until it does."""
        self.assign(SPEC)
        self.heartbeat(lambda seen: any(held.state == "ready" for held in seen.modules.values()))
        served = route("t", {"node": route_node(SPEC.key, ("image",), able(self.name))}, front_door=(self.name,))
        self.client.publish(Outgoing(TASK_ROUTE.at(self.prefix, task="t"), encode(served)))
        reply_to = f"{self.prefix}/clients/c/results/1"
        topic = TASK_REQUESTS.at(self.prefix, task="t")

        def is_stuck() -> bool:  # it joins its share group in its own time; copies of a request are one
            self.client.publish(Outgoing(topic, payload, response_topic=reply_to, expiry_s=3600))
            return self.is_stuck.wait(0.2)

        until(is_stuck)

    @property
    def is_known_to_be_gone(self) -> bool:
        """Whether the device's state says that it is offline, under the session that it had."""
        topic = DEVICE_STATE.at(self.prefix, device=self.name)
        said = [decode(DeviceState, event.payload) for event in self.received.deliveries if event.topic == topic]
        return any((state.status, state.session) == ("offline", self.session) for state in said)


@pytest.fixture
def start(mosquitto_url: str, unique_prefix: str, make_recorder: Any) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(stuck: str = "nothing", end_s: float = PATIENCE_S, url: str = mosquitto_url) -> World:
        worlds.append(World(url, unique_prefix, make_recorder(), stuck, end_s))
        return worlds[-1]

    yield make
    for world in worlds:
        world.client.close()
        world.process.kill()
        world.process.communicate()


def test_the_guard_leaves_the_agent_the_time_to_end_by_itself_and_no_more_than_five_seconds() -> None:
    assert END_S < LONGEST_S


@pytest.mark.parametrize("computes", ["leaves the lock", "computes python"])
def test_a_pass_that_goes_on_keeps_no_agent(start: Callable[..., World], computes: str) -> None:
    world = start()
    world.compute(computes.encode())
    world.process.send_signal(signal.SIGTERM)
    assert world.process.wait(PATIENCE_S) == 0
    until(lambda: world.is_known_to_be_gone)


@pytest.mark.parametrize("stuck", ["pass", "load"])
def test_a_thread_that_keeps_python_from_ending_is_killed_after_the_goodbye(
    start: Callable[..., World], stuck: str
) -> None:
    world = start("waits for another thread", end_s=3 * GUARDED_S)
    if stuck == "pass":
        world.compute(b"waits for another thread")
    else:
        world.load_stuck()
    world.process.send_signal(signal.SIGTERM)
    assert world.process.wait(PATIENCE_S) == -signal.SIGKILL
    until(lambda: world.is_known_to_be_gone)


@pytest.mark.parametrize("stuck", ["pass", "load"])
@pytest.mark.parametrize("asked_by", [signal.SIGTERM, signal.SIGINT])
def test_native_code_that_keeps_the_lock_is_killed_and_the_will_says_so(
    start: Callable[..., World], stuck: str, asked_by: signal.Signals
) -> None:
    world = start("keeps the lock", end_s=GUARDED_S)
    if stuck == "pass":
        world.compute(b"keeps the lock")
    else:
        world.load_stuck()
    world.process.send_signal(asked_by)
    assert world.process.wait(PATIENCE_S) == -signal.SIGKILL
    until(lambda: world.is_known_to_be_gone)


def test_a_load_that_goes_on_keeps_no_agent(start: Callable[..., World]) -> None:
    world = start("leaves the lock")
    world.load_stuck()
    world.process.send_signal(signal.SIGTERM)
    assert world.process.wait(PATIENCE_S) == 0
    until(lambda: world.is_known_to_be_gone)


def test_a_dead_broker_keeps_no_agent(
    start: Callable[..., World], start_mosquitto: Callable[..., MosquittoBroker]
) -> None:
    broker = start_mosquitto()
    world = start(url=broker.url)
    broker.kill()
    world.process.send_signal(signal.SIGTERM)
    assert world.process.wait(PATIENCE_S) == 0


def test_a_broker_that_takes_nothing_keeps_no_agent(
    start: Callable[..., World], start_mosquitto: Callable[..., MosquittoBroker]
) -> None:
    broker = start_mosquitto()
    world = start(url=broker.url)
    world.assign(SPEC)
    world.heartbeat(lambda seen: any(held.state == "ready" for held in seen.modules.values()))
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        world.process.send_signal(signal.SIGTERM)
        assert world.process.wait(PATIENCE_S) == 0
    finally:
        os.kill(broker.pid, signal.SIGCONT)
