"""Mutated messages at a live site: no process ends or stands still, no honest request is lost, nothing grows.

A real Mosquitto without access rules, an orchestrator and two agents as processes. A stranger publishes mutants of the
recorded messages, and of this site's own, to their real topics. After each batch every process must answer: an agent a
request for the task that it alone serves, the orchestrator one for a task that doesn't exist. A process stands still if
it computes for more than a second between two such answers, by its own processor time: on a busy machine seconds prove
nothing, and a process that waits forever answers nothing.

Access rules stand between a stranger and what an operator orders, what a leader tells of its tasks and orders its
devices, and what a device says about itself: where a mutant of it is valid, it goes to names that nothing honest needs.
A leader's own topic is left as it is: the leader puts it right.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from broker.client import Client
from broker.protocol import topics
from broker.protocol.codec import RawInput
from broker.protocol.errors import LocalProtocolError, RemoteProtocolError
from broker.protocol.messages import Heartbeat
from broker.transport.port import Acknowledged, Delivery, LinkEvent, Outgoing
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.testbed.replay.stage import connected
from s2m3.testbed.site import Site
from tests.fuzz import corpus
from tests.fuzz.mutate import Mutator
from tests.media import picture_bytes
from tests.patience import PATIENCE_S, until

SHORT, LONG = 200, 20_000
BATCH = 25
SEED = int(os.environ.get("S2M3_FUZZ_SEED", "16"))
ASK_AGAIN_S = 5.0  # a message may be lost while the leader changes
STALL_S = 1.0  # of a process's own processor time, between two of its answers
GROWTH_BYTES = 48 * 1024 * 1024  # of a process, from a quarter of the mutants to their end
AGENTS = [
    AgentConfig.model_validate({"id": device, "memory": "256MiB", "tasks": [task]})
    for device, task in (("gw-a", "classify"), ("gw-b", "zero-shot"))
]
PICTURE = RawInput(picture_bytes(Image.fromarray(np.full((8, 8, 3), 90, np.uint8))), "image/png")
ASKED = {
    "classify": {"image": PICTURE},
    "zero-shot": {"image": PICTURE, "text": RawInput(b"a cat\na dog", "text/plain")},
}
OF_THEIR_OWNER = {
    topics.TASK_SPEC,
    topics.TASK_REVISION,
    topics.TASK_ROUTE,
    topics.SOURCE_SPEC,
    topics.DEVICE_DRAIN,
    topics.DEVICE_ASSIGNMENT,
    topics.DEVICE_STATE,
    topics.DEVICE_HEARTBEAT,
}
NOBODY = {"task": "fuzzed", "device": "gw-x", "source": "fuzzed", "revision": "0" * 12}
WRONG = ("Traceback", "internal_error=", "event_failed", "action_failed", "work_failed", "heartbeat_failed", "hung")


class FuzzedSite:
    """A site, the stranger's connection, and one that hears everything."""

    def __init__(self, site: Site, batch: Path, stack: ExitStack) -> None:
        self.site, self.batch = site, batch
        self.kept: dict[str, Delivery] = {}  # what the broker kept when these connections began
        self.heartbeats: dict[str, list[Heartbeat]] = {}
        self._heard: set[str] = set()  # the topics of the orchestrator's answers
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._taken: set[object] = set()
        self._foreign: set[str] = set()  # topics at which the broker keeps a mutant, and nothing of the site
        self._witness = stack.enter_context(connected(site.connection, self._hear, f"{corpus.PREFIX}/#"))
        self._stranger = stack.enter_context(connected(site.connection, self._acknowledge))
        self.processes = {name: psutil.Process(site.pid(name)) for name in site.running}
        assert site.broker_pid is not None
        self.processes["broker"] = psutil.Process(site.broker_pid)

    def publish(self, mutants: list[Delivery]) -> None:
        """Publish these mutants, but for those that aren't MQTT, and wait until the broker has them."""
        for number, mutant in enumerate(mutants):
            try:
                self._stranger.publish(_outgoing(mutant, qos=number % 2))
            except LocalProtocolError:
                continue
            if mutant.retain and mutant.topic not in self.kept:
                self._foreign.add(mutant.topic)
        self._flush()

    def clear(self) -> None:
        """Clear the mutants that the broker keeps."""
        for topic in self._foreign:
            self._stranger.publish(Outgoing(topic, b"", retain=True))
        self._foreign.clear()
        self._flush()

    def probe_orchestrator(self) -> None:
        """Wait until the orchestrator answered a request for an unknown task: it has read all that came before."""
        ids = {"task": "unknown", "client": "prober"}
        with self._changed:
            before, until_s = len(self._heard), time.monotonic() + PATIENCE_S
            while len(self._heard) == before:
                assert time.monotonic() < until_s, "the orchestrator answers nothing"
                number = str(next(self._numbers))
                self._witness.publish(Outgoing(topics.CLIENT_REQUESTS.at(corpus.PREFIX, request=number, **ids), b"x"))
                self._changed.wait_for(lambda: len(self._heard) > before, ASK_AGAIN_S)

    def processor_s(self) -> dict[str, float]:
        """The processor time that each process used so far."""
        times = {name: process.cpu_times() for name, process in self.processes.items()}
        return {name: each.user + each.system for name, each in times.items()}

    def memory_bytes(self) -> dict[str, int]:
        """The memory that each process holds."""
        return {name: process.memory_info().rss for name, process in self.processes.items()}

    def _flush(self) -> None:
        token = object()
        self._stranger.publish(Outgoing(f"{corpus.PREFIX}/clients/stranger/done", b"", token=token, confirm=True))
        until(lambda: token in self._taken)

    def _acknowledge(self, event: LinkEvent) -> None:
        if isinstance(event, Acknowledged):
            self._taken.add(event.token)

    def _hear(self, event: LinkEvent) -> None:
        if not isinstance(event, Delivery):
            return
        if event.topic.startswith(f"{corpus.PREFIX}/clients/prober/"):
            with self._changed:
                self._heard.add(event.topic)
                self._changed.notify_all()
        elif event.retain:
            self.kept.setdefault(event.topic, event)
        elif event.topic.endswith("/heartbeat"):
            incoming = topics.read(corpus.PREFIX, event.topic, event.payload)
            try:
                said = None if incoming is None else incoming.decode()
            except RemoteProtocolError:
                return
            if incoming is not None and isinstance(said, Heartbeat):
                self.heartbeats.setdefault(incoming.ids["device"], []).append(said)


def _outgoing(mutant: Delivery, *, qos: int) -> Outgoing:
    """A mutant as it is sent; what only its owner may say goes to names that nobody needs."""
    incoming, payload, topic = topics.read(corpus.PREFIX, mutant.topic, mutant.payload), mutant.payload, mutant.topic
    if incoming is not None and incoming.topic in OF_THEIR_OWNER:
        try:
            order = incoming.decode()
        except RemoteProtocolError:
            pass
        else:
            topic = incoming.topic.at(corpus.PREFIX, **{name: NOBODY[name] for name in incoming.ids})
            named = {name: NOBODY[name] for name in ("task", "source") if hasattr(order, name)}
            payload = json.dumps(json.loads(payload) | named).encode() if named else payload
    return Outgoing(
        topic,
        payload,
        qos=1 if qos else 0,
        retain=mutant.retain,
        response_topic=mutant.response_topic or None,
        correlation=mutant.correlation,
        content_type=mutant.content_type,
        expiry_s=mutant.expiry_s or None,
    )


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedSite]:
    """A site that serves both tasks; when it has ended, its logs are looked at."""
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as stack:
        site = stack.enter_context(Site("mosquitto", AGENTS, logs=logs))
        site.serve([load_task(f"pocket/{task}") for task in ASKED])
        yield FuzzedSite(site, tmp_path_factory.mktemp("batch"), stack)
    assert not wrong_lines(logs)


def wrong_lines(logs: Path) -> list[str]:
    """The lines of the processes' logs that tell of an error of their own."""
    lines = [f"{path.stem}: {line}" for path in logs.glob("*.log") for line in path.read_text().splitlines()]
    return [line for line in lines if any(word in line for word in WRONG)]


def test_mutants_at_a_live_site_stop_nothing(fuzzed: FuzzedSite) -> None:
    fuzz(fuzzed, recorded(fuzzed), SEED, SHORT)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_thousand_mutants_at_a_live_site_stop_nothing(fuzzed: FuzzedSite) -> None:
    """Also of this site's own messages, which differ each time."""
    own = [each for _, each in sorted(fuzzed.kept.items())]
    fuzz(fuzzed, [*recorded(fuzzed), *own], SEED + 1, int(os.environ.get("S2M3_FUZZ_COUNT", LONG)))


def fuzz(fuzzed: FuzzedSite, messages: list[Delivery], seed: int, count: int) -> None:
    """Publish so many mutants of these messages, in batches."""
    until(lambda: fuzzed.heartbeats.keys() >= {config.id for config in AGENTS})
    since = {config.id: fuzzed.heartbeats[config.id][-1] for config in AGENTS}
    mutator, most, base = Mutator(messages, seed), dict[str, float](), fuzzed.memory_bytes()
    for number in range(count // BATCH):
        mutants = [mutator.mutant() for _ in range(BATCH)]
        if number == count // BATCH // 4:
            base = fuzzed.memory_bytes()
        used_s = play(fuzzed, mutants, f"batch {number} of seed {seed}")
        if max(used_s.values()) > STALL_S:  # what a stall takes, it takes again
            used_s = play(fuzzed, mutants, f"batch {number} of seed {seed}, again")
            assert max(used_s.values()) < STALL_S, (number, used_s)
        most = {name: max(most.get(name, 0.0), each) for name, each in used_s.items()}
    grown = {name: now - base[name] for name, now in fuzzed.memory_bytes().items()}
    sys.stdout.write(
        f"seed {seed}: {count} mutants; most processor time of {BATCH}: {most}; grown: "
        + ", ".join(f"{name} {each / 2**20:+.1f} MiB" for name, each in grown.items())
        + "\n"
    )
    assert all(each < GROWTH_BYTES for each in grown.values()), grown
    with Client(fuzzed.site.connection) as later:  # what the broker keeps by now misleads nobody
        assert all(later.request(task, inputs, deadline_s=PATIENCE_S).ok for task, inputs in ASKED.items())
    for device, first in since.items():
        own = [each for each in fuzzed.heartbeats[device] if each.session == first.session and each.seq >= first.seq]
        missing = set(range(first.seq, own[-1].seq)) - {each.seq for each in own}
        assert not missing, f"{device} left out heartbeats {missing}"
        assert own[-1].seq > first.seq
        assert not own[-1].dropped.get("internal_error"), own[-1].dropped


def play(fuzzed: FuzzedSite, mutants: list[Delivery], name: str) -> dict[str, float]:
    """Publish a batch, and wait until every process has answered; returns the processor time that each used for it."""
    where, site, before = f"{name}, kept in {fuzzed.batch}", fuzzed.site, fuzzed.processor_s()
    for place, mutant in enumerate(mutants):
        corpus.write(fuzzed.batch, str(place), mutant)
    fuzzed.publish(mutants)
    during = [site.client.submit(task, inputs, deadline_s=PATIENCE_S) for task, inputs in ASKED.items()]
    fuzzed.clear()
    for response in [each.result(2 * PATIENCE_S) for each in during]:
        assert response.ok, (where, response)
    for task, inputs in ASKED.items():
        assert site.client.request(task, inputs, deadline_s=PATIENCE_S).ok, (where, task)
    fuzzed.probe_orchestrator()
    site.check()
    return {name: used_s - before[name] for name, used_s in fuzzed.processor_s().items()}


def recorded(fuzzed: FuzzedSite) -> list[Delivery]:
    """The recorded messages, in this site's own term, and what once broke something."""
    route = fuzzed.site.observer.routes["classify"]
    found = [each for messages in corpus.recorded().values() for each in messages]
    return [*(corpus.of_one_term(each, route.epoch, route.generation) for each in found), *corpus.found()]
