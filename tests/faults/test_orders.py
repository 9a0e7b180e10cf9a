"""Deployed tasks and drains outlive a broker and an orchestrator that end in the same second: real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.protocol import topics
from broker.protocol.codec import decode, encode
from broker.protocol.messages import Drain, OrchestratorState
from broker.protocol.reports import TaskStatus
from broker.protocol.specs import TaskSpec
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, LinkUp, Outgoing
from tests.builders import chain, module
from tests.conftest import Recorder
from tests.patience import PATIENCE_S

PREFIX = topics.prefix_of()
TASKS = {name: chain(name, module("vision")) for name in ("classify", "caption", "vqa")}
ROUNDS = [0.0, 0.7, 1.5]  # seconds from the broker's return to the orchestrator's end


class Site:
    """A Mosquitto, and an orchestrator with its state directory."""

    def __init__(self, stack: ExitStack, folder: Path, *settings: str) -> None:
        self._stack = stack
        self.broker = stack.enter_context(MosquittoBroker(settings=settings))
        self.folder = folder
        self.orchestrator = self.start_orchestrator()

    def start_orchestrator(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator", "--broker", self.broker.url, "--state-dir", str(self.folder)]
        self.orchestrator = self._stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        self._stack.callback(self.orchestrator.kill)
        return self.orchestrator

    def kill_orchestrator(self) -> None:
        self.orchestrator.kill()
        self.orchestrator.wait()

    def retained(self, holds: Callable[[dict[str, bytes]], bool]) -> dict[str, bytes]:
        """Wait until the newest message of each topic holds; those messages."""
        recorder = Recorder()
        transport = MqttTransport(parse_url(self.broker.url), client_id="observer", inbox=recorder)
        transport.subscribe(f"{PREFIX}/#")
        transport.start()
        recorder.wait_for(LinkUp)
        heard = dict[str, bytes]()
        until_s = time.monotonic() + 3 * PATIENCE_S
        try:
            while not holds(heard):
                assert time.monotonic() < until_s, heard
                count = len(recorder.deliveries)
                heard = {seen.topic.removeprefix(f"{PREFIX}/"): seen.payload for seen in recorder.deliveries}
                if not holds(heard):
                    recorder.wait_for(Delivery, count=count + 1)
        finally:
            transport.close()
        return heard

    def publish(self, topic: topics.Topic, payload: bytes, **ids: str) -> None:
        recorder = Recorder()
        transport = MqttTransport(parse_url(self.broker.url), client_id="operator", inbox=recorder)
        transport.start()
        recorder.wait_for(LinkUp)
        transport.publish(Outgoing(topic.at(PREFIX, **ids), payload, retain=True))
        transport.close()

    def deploy(self, *names: str) -> None:
        for name in names:
            self.publish(topics.TASK_SPEC, encode(TASKS[name]), task=name)

    def undeploy(self, name: str) -> None:
        self.publish(topics.TASK_SPEC, b"", task=name)

    def drain(self, device: str) -> None:
        self.publish(topics.DEVICE_DRAIN, encode(Drain(drain=True)), device=device)

    @property
    def stored(self) -> dict[str, Any]:
        """The orders that the orchestrator keeps in its state directory."""
        stored: dict[str, Any] = json.loads((self.folder / "tasks.json").read_text(encoding="utf-8"))
        return stored

    def await_orders(self, tasks: set[str], drained: Collection[str] = ()) -> None:
        """Wait until the broker and the orchestrator have exactly these orders, and these tasks are routed."""

        def named(heard: dict[str, bytes], kind: str) -> set[str]:
            return {name.split("/")[1] for name, payload in heard.items() if name.endswith(f"/{kind}") and payload}

        def holds(heard: dict[str, bytes]) -> bool:
            state = heard.get("orchestrator/state")
            leader = decode(OrchestratorState, state) if state else None
            if leader is None or not leader.online or not (self.folder / "tasks.json").exists():
                return False
            if leader.change != self.stored["change"]:
                return False
            kept = {each["spec"]["task"] for each in self.stored["tasks"]}, set(self.stored["drains"])
            retained = named(heard, "spec"), named(heard, "drain")
            return kept == retained == (tasks, set(drained)) and named(heard, "route") == tasks

        self.retained(holds)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:
        yield lambda *settings: Site(stack, tmp_path / "state", *settings)


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param([0.0, 0.3, 0.7, 1.1, 1.5], marks=pytest.mark.long)])
def test_nothing_is_lost_whenever_a_broker_without_persistence_and_the_orchestrator_end(
    start: Callable[..., Site], rounds: list[float]
) -> None:
    """Each round begins with what the last one left."""
    site = start()
    site.deploy(*TASKS)
    site.drain("gw-z")
    site.await_orders(set(TASKS), {"gw-z"})
    for seconds in rounds:
        site.broker.kill()
        site.broker.start()
        pause(seconds)
        site.kill_orchestrator()
        site.start_orchestrator()
        site.await_orders(set(TASKS), {"gw-z"})
    site.broker.kill()
    site.kill_orchestrator()
    site.broker.start()
    site.start_orchestrator()
    site.await_orders(set(TASKS), {"gw-z"})


def test_the_last_five_revisions_outlive_a_broker_without_persistence_and_the_orchestrator(
    start: Callable[..., Site],
) -> None:
    specs = [chain("classify", module("vision"), weight=float(weight)) for weight in range(1, 7)]
    kept = {spec.revision: spec for spec in specs[1:]}

    def is_retained(revision: str, heard: dict[str, bytes]) -> bool:
        return f"tasks/classify/revisions/{revision}" in heard

    def hold(heard: dict[str, bytes]) -> bool:
        found = {name.rpartition("/")[2]: payload for name, payload in heard.items() if "/revisions/" in name}
        return {name: decode(TaskSpec, payload) for name, payload in found.items() if payload} == kept

    site = start()
    for spec in specs:
        site.publish(topics.TASK_SPEC, encode(spec), task="classify")
        site.retained(partial(is_retained, spec.revision))
    site.retained(hold)
    site.broker.kill()
    site.kill_orchestrator()
    site.broker.start()
    site.start_orchestrator()
    status = site.retained(lambda heard: hold(heard) and "tasks/classify/status" in heard)["tasks/classify/status"]
    assert decode(TaskStatus, status).revisions == tuple(spec.revision for spec in reversed(specs[1:]))


def test_a_task_that_was_undeployed_while_no_orchestrator_was_there_does_not_come_back(
    start: Callable[..., Site],
) -> None:
    site = start()
    site.deploy("classify", "caption")
    site.await_orders({"classify", "caption"})
    site.kill_orchestrator()
    site.undeploy("caption")
    site.start_orchestrator()
    site.await_orders({"classify"})


def test_nor_does_it_come_back_after_a_term_that_was_too_short_to_settle(start: Callable[..., Site]) -> None:
    site = start()
    site.deploy("classify", "caption")
    site.await_orders({"classify", "caption"})
    site.kill_orchestrator()
    session = site.stored["session"]
    site.start_orchestrator()
    while site.stored["session"] == session:
        pause(0.02)
    site.kill_orchestrator()
    site.undeploy("caption")
    site.start_orchestrator()
    site.await_orders({"classify"})


@pytest.mark.parametrize("together", [True, False], ids=["with the orchestrator", "alone"])
def test_a_broker_that_returns_with_an_old_memory_gets_what_changed_since(
    start: Callable[..., Site], tmp_path: Path, *, together: bool
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    site = start("persistence true", "autosave_interval 0", f"persistence_location {memory}/")
    site.deploy("classify", "caption")
    site.drain("gw-z")
    site.await_orders({"classify", "caption"}, {"gw-z"})
    os.kill(site.broker.pid, signal.SIGUSR1)  # Mosquitto saves its memory now
    while not (memory / "mosquitto.db").exists():
        pause(0.05)
    site.undeploy("caption")
    site.deploy("vqa")
    site.publish(topics.DEVICE_DRAIN, b"", device="gw-z")
    site.await_orders({"classify", "vqa"})
    site.broker.kill()
    if together:
        site.kill_orchestrator()
    site.broker.start()
    if together:
        site.start_orchestrator()
    site.await_orders({"classify", "vqa"})
