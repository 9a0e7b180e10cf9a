"""The demo, as the README starts it: it holds, it ends by itself, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, LinkUp, Outgoing
from tests.patience import PATIENCE_S

DEMO_S = 5 * PATIENCE_S
COMMAND = (sys.executable, "-m", "s2m3", "demo")


def family(session: int) -> list[str]:
    """The command lines of all processes whose environment carries this session's mark."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            marked = f"S2M3_TEST_FAMILY={session}\0".encode() in (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue
        if marked and command:
            found.append(command)
    return found


@pytest.fixture
def marked() -> Iterator[dict[str, str]]:
    """An environment by which every process that the demo starts can be found again."""
    environment = os.environ | {"S2M3_TEST_FAMILY": str(os.getpid())}
    yield environment
    assert family(os.getpid()) == []


def run_demo(marked: dict[str, str], *arguments: str) -> Any:
    done = subprocess.run(
        [*COMMAND, "--json", *arguments], capture_output=True, text=True, timeout=DEMO_S, env=marked, check=False
    )
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def check(report: Any) -> None:
    assert report["ok"] is True, report["failure"]
    assert len(report["requests"]) >= 12
    assert all(request["equal"] for request in report["requests"])
    assert {request["task"] for request in report["requests"]} == {"classify", "zero-shot", "vqa"}
    assert report["memory_bytes"]["shared"] * 2 < report["memory_bytes"]["unshared"]
    assert all(len(devices) == 1 for devices in report["placement"].values())
    assert report["failure"]["killed"] in report["placement"]["efficientnet-lite0/encoder"]
    assert report["failure"]["in_flight"] >= 1
    assert report["failure"]["lost"] == 0
    assert report["failure"]["detected_after_s"] <= report["failure"]["replaced_after_s"]


def test_the_demo_holds_over_the_embedded_broker_and_stays_up_to_play_with(
    marked: dict[str, str], tmp_path: Path
) -> None:
    marked = marked | {"TMPDIR": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{marked['PATH']}"}
    command = [*COMMAND, "--json", "--keep", "--dashboard"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=marked, start_new_session=True
    )
    try:
        play(process, marked)
    finally:
        for _ in range(3):  # an impatient person
            os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, printed, errors) == (0, "", "ending the site ...\n")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")] == []  # torch's own


def play(process: subprocess.Popen[str], marked: dict[str, str]) -> None:
    """Read the demo's report, and do what it offers."""
    assert process.stdout is not None
    assert process.stderr is not None
    check(json.loads(process.stdout.readline()))
    first = process.stderr.readline()
    assert "Ctrl-C ends it" in first
    (page,) = re.findall(r"http://127.0.0.1:\d+", first)
    with urlopen(page, timeout=PATIENCE_S) as response:  # noqa: S310 - that of the demo
        assert b"<title>S2M3</title>" in response.read()
    for wanted in ("espresso", "gw-c", ""):  # the request, the status, the kill
        line = process.stderr.readline()
        done = subprocess.run(line, shell=True, capture_output=True, text=True, env=marked, check=True)  # noqa: S602 - as a person would
        assert wanted in done.stdout
    assert "ended; it starts again" in process.stderr.readline()
    assert "was started again" in process.stderr.readline()


@pytest.mark.long
def test_the_demo_holds_with_onnx_runtime_and_exports_once(marked: dict[str, str], tmp_path: Path) -> None:
    environment = marked | {"XDG_CACHE_HOME": str(tmp_path)}
    check(run_demo(environment, "--engine", "onnx"))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("export.json")}
    assert len(written) == 4
    check(run_demo(environment, "--engine", "onnx"))
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.long  # the next test has the same over a Mosquitto, the last one has the demo start and end its own
def test_the_demo_holds_over_mosquitto(marked: dict[str, str], mosquitto_url: str) -> None:
    assert mosquitto_url  # there is one to start
    check(run_demo(marked, "--broker", "mosquitto"))


def test_the_demo_holds_over_a_broker_that_runs_already_and_leaves_it_clean(
    marked: dict[str, str], mosquitto_url: str, recorder: Any
) -> None:
    check(run_demo(marked, "--broker", mosquitto_url))
    transport = MqttTransport(parse_url(mosquitto_url), client_id="after-the-demo", inbox=recorder)
    transport.subscribe("+/s2m3/v1/#")
    transport.start()
    recorder.wait_for(LinkUp)
    transport.publish(Outgoing("demo-probe/s2m3/v1/probe", b"", qos=1))  # what is retained comes before it
    recorder.wait_for(lambda event: isinstance(event, Delivery) and "probe" in event.topic)
    transport.close()
    retained = [event.topic for event in recorder.events if isinstance(event, Delivery) and event.retain]
    assert retained == []


@pytest.mark.parametrize(
    ("when", "broker"), [("starting", "mosquitto"), pytest.param("serving", "mosquitto", marks=pytest.mark.long)]
)  # one that serves over the embedded broker is interrupted above
def test_an_interrupted_demo_leaves_no_process_behind(marked: dict[str, str], when: str, broker: str) -> None:
    command = [*COMMAND, "--broker", broker]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=marked, start_new_session=True
    )
    assert process.stdout is not None
    wanted = "starting" if when == "starting" else "memory held"
    for line in process.stdout:
        if wanted in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody in the foreground gets it
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
