"""Hostile pictures of one sensor cost an agent neither its life nor its memory, and no other sensor's request.

The agent is a process of its own at a real Mosquitto; its module prepares pictures as EfficientNet does.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from broker.protocol.codec import decode_result
from broker.protocol.errors import ErrorCode
from broker.protocol.topics import CLIENT_REQUESTS, RESULTS, prefix_of
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Outgoing
from edge_agent.modules.inputs.limits import MAX_PICTURE_BYTES
from edge_agent.requests.execute import MAX_PENDING_BYTES
from tests.builders import module
from tests.hostile.cases import CASES
from tests.media import picture_bytes
from tests.one_node import next_heartbeat, serve_one_node
from tests.patience import PATIENCE_S, until

SPEC = module("y", memory_bytes=10, output_bytes=8)
DEADLINE_S = int(10 * PATIENCE_S)
HOSTILE = {
    "JPEG: 4,000 scans": ErrorCode.TOO_LARGE,
    "PNG: the most pixels, 16-bit grey": ErrorCode.TOO_LARGE,
    "PNG: the most pixels, 16-bit colour with alpha": ErrorCode.TOO_LARGE,
    "JPEG: EXIF in 400,000 pieces": ErrorCode.TOO_LARGE,
    "JPEG: EXIF that names 6 MB 20,000 times": None,
    "JPEG: 8 MB of fill bytes": None,
    "PNG: largest, colour with alpha, interlaced": None,  # it is taken: the most memory that a picture may take
    "PNG: 600,000 empty deflate blocks": ErrorCode.BAD_INPUT,
    "other: WebP, animated": None,
    "other: TIFF": ErrorCode.BAD_INPUT,
}
PROGRAM = """
import sys
import numpy as np
from broker.process import log_to_stderr, stopped_by_signals
from edge_agent import service
from edge_agent.config import AgentConfig
from edge_agent.modules import Output
from edge_agent.modules.families.efficientnet import PREPARATION
from edge_agent.modules.inputs.steps import Picture
from tests.builders import computing, profile, uncalibrated_store

def compute(value, *_):
    pixels = Picture(preparation=PREPARATION).read(value)["pixels"]
    return Output({"bits": np.zeros(1, np.float32)}, {"seen": pixels.shape[2]})

log_to_stderr()
config = AgentConfig(id=sys.argv[2], site=sys.argv[2], broker=sys.argv[1], heartbeat_interval_s=0.2)
agent = service.Agent(config, profile=profile(), store=uncalibrated_store(100, lambda _: computing(compute)))
with stopped_by_signals(agent.stop, until_stdin_closes=False):
    agent.run()
"""


class Site:
    """An agent in a process of its own, and a client that is its orchestrator and both sensors."""

    def __init__(self, url: str, name: str, recorder: Any) -> None:
        self.name, self.prefix, self.received = name, prefix_of(name), recorder
        self.client = MqttTransport(parse_url(url), client_id=f"{name}-client", inbox=recorder)
        self.client.subscribe(f"{self.prefix}/#")
        self.client.start()
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, url, name])

    def serve(self) -> None:
        serve_one_node(self.client, self.received, self.prefix, self.name, SPEC)

    def ask(self, sensor: str, number: int, picture: bytes) -> None:
        topic = CLIENT_REQUESTS.at(self.prefix, task="t", client=sensor, request=str(number))
        self.client.publish(Outgoing(topic, picture, expiry_s=DEADLINE_S))

    def answer(self, sensor: str, number: int) -> Any:
        topic = RESULTS.at(self.prefix, client=sensor, request=str(number))
        found = self.received.wait_for(lambda event: getattr(event, "topic", "") == topic, timeout_s=DEADLINE_S)
        return decode_result(found.payload, found.content_type)[0]

    def is_served(self, picture: bytes) -> bool:
        """Ask, and see whether anything was answered so far: the agent joins its share group in its own time."""
        self.ask("first", 0, picture)
        threading.Event().wait(0.2)
        topic = RESULTS.at(self.prefix, client="first", request="0")
        return any(event.topic == topic for event in self.received.deliveries)

    def memory_bytes(self, field: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(text.split(f"{field}:")[1].split()[0]) * 1024


@pytest.fixture
def site(mosquitto_url: str, unique_prefix: str, make_recorder: Any) -> Iterator[Site]:
    made = Site(mosquitto_url, unique_prefix, make_recorder())
    made.serve()
    yield made
    made.client.close()
    made.process.kill()
    made.process.wait()


def test_hostile_pictures_of_one_sensor_cost_another_one_nothing(site: Site) -> None:
    small = picture_bytes(Image.effect_noise((320, 240), 60), "JPEG")
    until(lambda: site.is_served(small))
    session = next_heartbeat(site.received, site.prefix, site.name, lambda _: True).session
    before = site.memory_bytes("VmRSS")
    Path(f"/proc/{site.process.pid}/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    for number, name in enumerate(HOSTILE, start=1):
        site.ask("hostile", number, CASES[name].make())
        site.ask("honest", number, small)
    for number, code in enumerate(HOSTILE.values(), start=1):
        assert site.answer("honest", number).answer == {"seen": 224}
        result = site.answer("hostile", number)
        assert (result.error.code if result.error else None) == code, result
    assert site.process.poll() is None
    assert next_heartbeat(site.received, site.prefix, site.name, lambda _: True).session == session
    assert site.memory_bytes("VmHWM") - before < MAX_PICTURE_BYTES + MAX_PENDING_BYTES
