"""``s2m3 sources`` as processes, on a real site: what others publish over Mosquitto is answered where they look.

The devices compute a trivial task, so a test costs no weights: an answer says what the device was given.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.codec import RawInput, decode
from broker.protocol.sources import SourceAnswer
from broker.protocol.specs import ModuleSpec
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import Connection, parse_url
from broker.transport.port import Delivery
from edge_agent.config import AgentConfig
from edge_agent.modules import Module, Output, Value
from edge_agent.service import Agent
from orchestrator.service import Orchestrator
from s2m3.testbed.observer import Observer
from s2m3.testbed.replay.stage import connected
from tests.builders import InlinePlanner, computing, graph, module, profile, uncalibrated_store
from tests.patience import PATIENCE_S, until
from tests.threads import running

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
BLOCK = re.compile(r"```(sh|yaml)\n(.*?)```", re.DOTALL)
EXAMPLES = Path(__file__).parents[2] / "s2m3" / "sources" / "examples"
JPEG = b"\xff\xd8\xff\xe0 a picture of "
ONE = module("y", memory_bytes=10, output_bytes=8)
TASKS = tuple(
    graph(name, {"node": (ONE, needs)})
    for name, needs in {"classify": ("image",), "zero-shot": ("image", "text"), "sort-notes": ("text",)}.items()
)


def answer(*values: Value) -> Output:
    """An answer that says what the device was given: what the picture shows, and the constant texts."""
    texts = [each.data.removeprefix(JPEG).decode() for each in values if isinstance(each, RawInput)]
    return Output({}, {"label": " | ".join(texts), "score": 0.75})


class Site:
    """The running site, and whatever else is published at its broker."""

    def __init__(self, connection: Connection, recorder: Any) -> None:
        self.connection, self.recorder = connection, recorder

    def publish(self, topic: str, payload: bytes, *options: str) -> None:
        """Publish as any sensor does, with Mosquitto's own client."""
        where = ["-h", self.connection.host, "-p", str(self.connection.port)]
        command = ["mosquitto_pub", *where, "-q", "1", "-t", topic, "-s" if payload else "-n", *options]
        subprocess.run(command, input=payload, check=True, timeout=PATIENCE_S)

    def wait_for(self, topic: str, **wanted: object) -> SourceAnswer:
        """Wait for an answer at a topic that has these values."""

        def fits(event: object) -> bool:
            if not isinstance(event, Delivery) or event.topic != topic or not event.payload:
                return False
            told = decode(SourceAnswer, event.payload)
            return all(getattr(told, name) == value for name, value in wanted.items())

        return decode(SourceAnswer, self.recorder.wait_for(fits).payload)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A site that serves the tasks of the examples."""
    with ExitStack() as stack:
        url = stack.enter_context(MosquittoBroker()).url
        connection = parse_url(url)
        observer = stack.enter_context(Observer(connection))
        state = tmp_path_factory.mktemp("state")
        stack.enter_context(running(Orchestrator(connection, state, settle_s=0.1, make_planner=InlinePlanner)))

        def load(_: ModuleSpec) -> Module:
            return computing(answer)

        config = AgentConfig(id="gw-a", broker=url)
        stack.enter_context(running(Agent(config, profile=profile(), store=uncalibrated_store(100, load))))
        until(lambda: observer.wait_for(lambda seen: seen.leads and seen.has_heartbeats(["gw-a"]), 0.1))
        observer.deploy(list(TASKS), PATIENCE_S)
        names = [task.task for task in TASKS]  # the leader may hear the device's first heartbeat only after the orders
        assert observer.wait_for(lambda seen: seen.serves(names), PATIENCE_S)
        yield connection


@pytest.fixture
def site(served: Connection, recorder: Any) -> Iterator[Site]:
    """The site, with a client that hears all."""
    with connected(served, recorder, "#"):
        yield Site(served, recorder)


@pytest.fixture
def start(site: Site, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts ``s2m3 sources``; waits until it runs the sources, or is a spare."""
    with ExitStack() as stack:

        def make(*options: str | Path, until_says: str = '"event": "leading"') -> subprocess.Popen[bytes]:
            log = tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log"
            command = [
                sys.executable,
                "-m",
                "s2m3",
                "sources",
                *map(str, options),
                "--broker",
                f"mqtt://{site.connection}",
            ]
            with log.open("wb") as output:
                process = subprocess.Popen([*command, "--until-stdin-closes"], stdin=subprocess.PIPE, stderr=output)
            stack.callback(process.wait, PATIENCE_S)
            stack.callback(process.terminate)
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            until(lambda: until_says in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            return process

        yield make


def test_the_examples_are_answered(site: Site, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    start("--config", *sorted(EXAMPLES.glob("*.yaml")))
    site.recorder.wait_for(lambda event: isinstance(event, Delivery) and event.topic == "s2m3/v1/sources/state")
    encoded = base64.b64encode(JPEG + b"a fox").decode()

    def ask() -> None:
        site.publish("frigate/door/person/snapshot", JPEG + b"a courier")
        site.publish("zigbee2mqtt/feeder", json.dumps({"battery": 88, "picture": encoded}).encode())
        site.publish("cams/yard/jpeg", JPEG + b"a cat", "-V", "mqttv311", "-r")
        site.publish("home/kitchen/note", b"the lamp is broken", "-V", "mqttv311")

    ask()
    texts = "a courier with a parcel\na person with an umbrella\nan empty doorway"
    told = site.wait_for("home/door/who", label=f"a courier | {texts}")
    assert (told.score, told.error, told.source) == (0.75, None, "door")
    assert site.wait_for("home/feeder/seen", label="a fox").captures == ("feeder",)
    assert site.wait_for("home/yard/label", label="a cat").topic == "cams/yard/jpeg"
    assert site.wait_for("home-answers/kitchen").label == "the lamp is broken"
    for name in ("door", "garden", "cams", "notes"):
        site.wait_for(f"s2m3/v1/sources/{name}/answer", source=name, error=None)


def states(site: Site) -> list[dict[str, Any]]:
    """The messages about the process that runs the sources."""
    return [json.loads(each.payload) for each in site.recorder.deliveries if each.topic == "s2m3/v1/sources/state"]


def wait_for_announcement(site: Site, before: int) -> None:
    """Wait until a process says that it runs the sources, after so many messages about that."""
    until(lambda: any(each["online"] for each in states(site)[before:]))


def test_a_burst_is_answered_by_its_newest_message_and_a_spare_takes_over(
    site: Site, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    config = tmp_path / "cams.yaml"
    config.write_text("source: burst\nsubscribe: burst/+\ntask: classify\nmin_interval_s: 0.5\npublish: seen/{1}\n")
    first = start("--config", config)
    start("--config", config, until_says='"event": "waiting_as_spare"')
    for number in range(6):
        site.publish("burst/a", JPEG + str(number).encode())
    told = site.wait_for("seen/a", label="5")
    asked = [each for each in site.recorder.deliveries if each.topic.startswith("s2m3/v1/tasks/classify/requests/")]
    assert len(asked) + told.skipped == 6, "each message was sent once, or counted"
    epoch = max(each["epoch"] for each in states(site))
    first.kill()
    until(lambda: any(each["online"] and each["epoch"] > epoch for each in states(site)))
    site.recorder.clear()

    def is_answered() -> bool:
        site.publish("burst/b", JPEG + b"again")
        return any(each.topic == "seen/b" for each in site.recorder.deliveries)

    until(is_answered)


def test_filters_that_overlap_make_no_further_request(
    site: Site, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """For each filter of ours that matches, Mosquitto sends an MQTT 5 client a copy of the message."""
    config = tmp_path / "two.yaml"
    line = "- {{source: {}, subscribe: {}, task: classify, min_interval_s: 0}}\n"
    config.write_text("sources:\n" + line.format("wide", "two/#") + line.format("narrow", "two/+/jpeg"))
    start("--config", config)
    for label in ("1", "2", "3"):
        site.publish("two/yard/jpeg", JPEG + label.encode())
        for name in ("wide", "narrow"):
            assert site.wait_for(f"s2m3/v1/sources/{name}/answer", label=label).skipped == 0
    asked = [each for each in site.recorder.deliveries if each.topic.startswith("s2m3/v1/tasks/classify/requests/")]
    assert len(asked) == 6


def test_a_spec_that_the_broker_retains_runs_without_a_file(
    site: Site, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    start()
    spec = {"source": "kept", "subscribe": "kept/#", "task": "classify", "retained": "take"}
    site.publish("kept/x", JPEG + b"a dog", "-r")
    site.publish("s2m3/v1/sources/kept/spec", json.dumps(spec).encode(), "-r")
    site.wait_for("s2m3/v1/sources/kept/answer", label="a dog")
    site.recorder.clear()
    site.publish("s2m3/v1/sources/kept/spec", b"", "-r")
    site.recorder.wait_for(lambda event: event.topic == "s2m3/v1/sources/kept/answer" and not event.payload)
    site.publish("kept/x", b"", "-r")


@pytest.mark.parametrize("page", ["sources", "frigate", "home-assistant"])
def test_a_page_is_followed_to_its_last_line(site: Site, tmp_path: Path, page: str) -> None:
    """On the running site that the page asks for. Its output was printed on a site with real weights."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    (tmp_path / "frame.jpg").write_bytes(JPEG + page.encode())
    for topic in ("home/door/who", "home/yard/label", "s2m3/v1/sources/yard/answer"):
        site.publish(topic, b"", "-r")  # of an earlier test
    environment = os.environ | {"S2M3_BROKER": f"mqtt://{site.connection}"}
    where = f"-h {site.connection.host} -p {site.connection.port} "
    said = ""
    with ExitStack() as stack:
        for kind, content in BLOCK.findall(text):
            if kind == "yaml":
                name = re.match(r"# (\S+)\n", content)
                assert name, content
                (tmp_path / name[1]).write_text(content)
                continue
            for line in content.splitlines():
                command = line.replace("s2m3 sources", f"exec {sys.executable} -m s2m3 sources")
                command = command.replace("mosquitto_pub ", f"mosquitto_pub {where}")
                command = command.replace("mosquitto_sub ", f"mosquitto_sub -W {PATIENCE_S:.0f} {where}")
                if line.endswith(" &"):
                    process = subprocess.Popen(["sh", "-c", command.removesuffix(" &")], cwd=tmp_path, env=environment)
                    stack.callback(process.wait, PATIENCE_S)
                    stack.callback(process.terminate)
                    wait_for_announcement(site, len(states(site)))
                    continue
                done = subprocess.run(
                    ["sh", "-c", command], cwd=tmp_path, env=environment, text=True, capture_output=True, check=False
                )
                assert done.returncode == 0, (line, done.stdout, done.stderr)
                said = done.stdout
        label = decode(SourceAnswer, said.encode()).label
        assert label is not None
        assert label.startswith(page)
