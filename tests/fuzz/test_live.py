"""Mutated messages at a live site: real Mosquitto, orchestrator and agents, while a client asks good questions.

The broker is open, so mutants may undeploy tasks, drain devices and end terms. What must hold: no process ends, no
exception but a refusal, heartbeats go on, the memory stays flat, and the site serves again once an operator has
deployed its tasks again.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from broker.client import Response
from broker.protocol import topics
from broker.protocol.codec import RawInput
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, LinkEvent, LinkUp, Outgoing
from s2m3.catalogue import load_task
from s2m3.testbed.site import ORCHESTRATOR, Site
from tests.fuzz import corpus
from tests.fuzz.mutate import Mutator
from tests.fuzz.record import AGENTS, TASKS
from tests.media import picture_bytes
from tests.patience import PATIENCE_S

SITES, OF_A_SITE = 5, 4_000
PER_S = 100
LOOK_EVERY = 200  # mutants between two good requests
GROWTH_BYTES = 256 * 1024 * 1024  # of one process, from a quarter of the run to its end
BAD_WORDS = ("Traceback", "event_failed", "link_event_failed", "action_failed", "internal_error")


class HeartbeatGaps:
    """An inbox that notes the longest time between two heartbeats of each process."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.longest_s: dict[str, float] = {}
        self._last_s: dict[str, float] = {}

    def __call__(self, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            self.up.set()
        if isinstance(event, Delivery) and (event.topic.endswith("gw-a/heartbeat") or "gw-b" in event.topic):
            now_s, last_s = time.monotonic(), self._last_s.get(event.topic)
            self._last_s[event.topic] = now_s
            if last_s is not None:
                self.longest_s[event.topic] = max(self.longest_s.get(event.topic, 0.0), now_s - last_s)


def picture() -> RawInput:
    return RawInput(picture_bytes(Image.fromarray(np.full((8, 8, 3), 90, np.uint8))), "image/png")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(SITES))
def test_a_live_site_reads_mutated_messages_and_serves(part: int, tmp_path: Path) -> None:
    originals = [each for deliveries in corpus.recorded().values() for each in deliveries]
    mutator = Mutator([*originals, *corpus.found()], seed=100 + part)
    specs = [load_task(name) for name in TASKS]
    gaps, outcomes = HeartbeatGaps(), Counter[str]()
    with ExitStack() as stack:
        site = stack.enter_context(Site("mosquitto", AGENTS, logs=tmp_path))
        flood = MqttTransport(site.connection, client_id="fuzz.flood", inbox=gaps, max_queued=10_000)
        stack.callback(flood.close)
        flood.subscribe(topics.DEVICE_HEARTBEAT.filter(corpus.PREFIX))
        flood.start()
        assert gaps.up.wait(PATIENCE_S)
        site.serve(specs)
        processes = {name: psutil.Process(site.pid(name)) for name in (ORCHESTRATOR, *site.devices)}
        asked: list[Future[Response]] = []
        before: dict[str, int] = {}
        began_s = time.monotonic()
        for number in range(OF_A_SITE):
            flood.publish(outgoing(mutator.mutant()))
            if number % LOOK_EVERY == 0:
                asked.append(site.client.submit("classify", {"image": picture()}, deadline_s=10))
                site.check()
            if number == OF_A_SITE // 4:
                before = {name: process.memory_info().rss for name, process in processes.items()}
            threading.Event().wait(max(0.0, began_s + number / PER_S - time.monotonic()))
        outcomes.update(outcome_of(each.result()) for each in asked)
        site.check()
        grown = {name: process.memory_info().rss - before[name] for name, process in processes.items()}
        restore(site)
        site.serve(specs, patient=True)
        response = site.client.request("classify", {"image": picture()}, deadline_s=2 * PATIENCE_S)
        assert response.ok, response
    words = [
        f"{path.stem}: {word}" for path in tmp_path.glob("*.log") for word in BAD_WORDS if word in path.read_text()
    ]
    longest = {topic.split("/")[-2]: round(gap_s, 2) for topic, gap_s in gaps.longest_s.items()}
    megabytes = {name: round(size / 2**20) for name, size in grown.items()}
    sys.stdout.write(
        f"{OF_A_SITE} mutants at a live site: longest time between heartbeats {longest} s, growth {megabytes} MiB, "
        f"requests meanwhile {dict(outcomes)}\n"
    )
    assert words == []
    assert max(gaps.longest_s.values()) < PATIENCE_S
    assert max(grown.values()) < GROWTH_BYTES


def outcome_of(response: Response) -> str:
    return str(response.result.error.code) if response.result.error else "answered"


def outgoing(mutant: Delivery) -> Outgoing:
    """A mutant as any client of the broker can send it."""
    topic = "".join(sign for sign in mutant.topic if sign not in "+#\0")
    reply_to = mutant.response_topic if mutant.response_topic and "#" not in mutant.response_topic else None
    return Outgoing(
        topic or "x",
        mutant.payload,
        qos=0,
        retain=mutant.retain,
        response_topic=reply_to,
        correlation=mutant.correlation,
        content_type="".join(sign for sign in mutant.content_type or "" if sign != "\0") or None,
        expiry_s=mutant.expiry_s,
    )


def restore(site: Site) -> None:
    """Do what an operator does: undeploy strangers' tasks, end their drains."""
    site.observer.look()
    for device in sorted(site.observer.drained):
        site.observer.set_drain(device, drain=False)
    for task in sorted(site.observer.routes):
        site.observer.undeploy(task, 1.0)
