"""``metrics``, ``events``, ``trace`` and ``status --watch`` at a real site tell what happened, heal, and end."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.site import Site
from tests.acceptance.conftest import agents
from tests.patience import PATIENCE_S, until
from tests.prometheus import samples


@pytest.fixture(scope="module")
def two() -> Iterator[Site]:
    """Two devices that can both hold what the one task needs."""
    with Site("mosquitto", agents(gw_a="100MiB", gw_b="100MiB")) as running:
        running.serve([load_task("pocket/classify")])
        yield running


class Exporter:
    """The exporter as a process, and a client of it."""

    def __init__(self, site: Site) -> None:
        command = [sys.executable, "-m", "s2m3", "metrics", "--port", "0", "--broker", site.url]
        self.running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.running.stdout is not None
        self.url = self.running.stdout.readline().split()[1].removesuffix("/metrics,")

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, headers=headers)  # noqa: S310 - our own process
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:  # noqa: S310 - the same
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        return samples(self.get("/metrics")[1], name)

    def health(self) -> tuple[int, dict[str, Any]]:
        status, body = self.get("/healthz")
        return status, json.loads(body)

    def end(self, number: int = signal.SIGTERM) -> str:
        self.running.send_signal(number)
        _, logged = self.running.communicate(timeout=PATIENCE_S)
        assert self.running.returncode == 0, logged
        return logged


class Command:
    """A command line at the site, as a process; its output goes to files."""

    def __init__(self, site: Site, folder: Path, *arguments: str, **options: Any) -> None:
        self._paths = folder / "out", folder / "err"
        command = [sys.executable, "-m", "s2m3", *arguments, "--broker", site.url]
        with self._paths[0].open("w") as out, self._paths[1].open("w") as err:
            self.running = subprocess.Popen(command, **{"stdout": out, "stderr": err, **options})

    @property
    def printed(self) -> str:
        return self._paths[0].read_text()

    @property
    def said(self) -> str:
        return self._paths[1].read_text()

    def types(self) -> set[str]:
        """The types of the events that were printed."""
        return {json.loads(line)["type"] for line in self.printed.splitlines()}

    def end(self, number: int = signal.SIGINT) -> int:
        self.running.send_signal(number)
        return self.running.wait(PATIENCE_S)


@pytest.mark.parametrize("arguments", [("--next", "classify", "--json"), ("--next", "classify")])
def test_the_next_request_of_a_task_is_traced(two: Site, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command = Command(two, tmp_path, "trace", *arguments)
    photo = picture("rocket.jpg").path
    until(lambda: two.client.ask("classify", image=photo) and command.running.poll() is not None)
    assert command.running.returncode == 0, command.said
    if "--json" in arguments:
        assert json.loads(command.printed)["nodes"].keys() == {"image-encoder", "classifier"}
    else:
        assert "of classify: answered after" in command.printed
        assert command.printed.index("image-encoder") < command.printed.index("classifier")


def test_a_trace_that_doesnt_come_is_told(two: Site, tmp_path: Path) -> None:
    command = Command(two, tmp_path, "trace", "e6d6a0f6a302e36f", "--timeout", "0.2")
    assert command.running.wait(PATIENCE_S) == 1
    assert "no trace of the request e6d6a0f6a302e36f arrived" in command.said


def test_the_status_is_watched_at_a_terminal_until_it_is_interrupted(two: Site, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        command = Command(two, tmp_path, "status", "--watch", stdout=theirs)
        os.close(theirs)
        shown = b""
        while shown.count(b"Ctrl-C ends it") < 3:
            shown += terminal.read(65536)
        assert b"gw-b" in shown
        assert command.end() == 0
        with suppress(OSError):  # the end of a terminal
            while more := terminal.read(65536):
                shown += more
    assert b"\x1b[?1049l" in shown  # the screen is what it was before
    assert command.said == ""


def test_the_figures_and_the_events_are_those_of_the_site(two: Site, tmp_path: Path) -> None:
    exporter = Exporter(two)
    events = Command(two, tmp_path, "events", "--follow", "--json")
    try:
        until(lambda: exporter.health()[0] == 200)
        photo = picture("rocket.jpg").path
        before = sum(exporter.samples("s2m3_node_duration_seconds_count").values())
        for _ in range(5):
            two.client.ask("classify", image=photo)
        until(lambda: sum(exporter.samples("s2m3_node_duration_seconds_count").values()) >= before + 5 * 2 * 4)
        until(lambda: sum(exporter.samples("s2m3_requests_total").values()) >= 5, 3 * PATIENCE_S)
        outcomes = {labels[2] for labels in exporter.samples("s2m3_requests_total")}
        assert outcomes == {"answered"}
        buckets = exporter.samples("s2m3_request_duration_seconds_bucket")
        answered = sum(exporter.samples("s2m3_requests_total").values())
        assert sum(number for labels, number in buckets.items() if labels[2] == "+Inf") == answered
        assert exporter.samples("s2m3_task_served") == {("classify",): 1}
        assert exporter.samples("s2m3_device_up") == {("gw-a",): 1, ("gw-b",): 1}
        assert set(exporter.samples("s2m3_memory_budget_bytes").values()) == {100 * 2**20}
        roles = {labels[2] for labels in exporter.samples("s2m3_module_memory_bytes")}
        assert "active" in roles
        assert exporter.get("/nothing")[0] == 404
        assert exporter.get("/metrics", Host="evil.example")[0] == 403
        assert exporter.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")[1].endswith("# EOF\n")
        if shutil.which("promtool"):
            text = exporter.get("/metrics")[1]
            subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True)

        _kill_and_restart(two, exporter, events, answered)
    finally:
        logged = exporter.end()
        code = events.end()
    assert (code, "Traceback" in events.said) == (0, False)
    assert "link_down" in logged
    assert "Traceback" not in logged


def _kill_and_restart(two: Site, exporter: Exporter, events: Command, answered: float) -> None:
    # a device dies: what it held moves, and the exporter says by what that was seen
    victim = next(labels[0] for labels in exporter.samples("s2m3_module_memory_bytes") if labels[2] == "active")
    two.kill(victim)
    until(lambda: exporter.samples("s2m3_device_up")[victim,] == 0)
    until(lambda: sum(exporter.samples("s2m3_replacements_total").values()) > 0)
    assert set(exporter.samples("s2m3_replacements_total")) == {("will",)}
    assert exporter.samples("s2m3_detection_duration_seconds_count") == {("will",): 1}
    assert sum(exporter.samples("s2m3_requests_total").values()) >= answered  # a dead device's counters stay
    until(lambda: {"device_dead", "took_over"} <= {json.loads(each)["type"] for each in events.printed.splitlines()})
    two.start_agent(victim)
    until(lambda: exporter.samples("s2m3_device_up")[victim,] == 1, 2 * PATIENCE_S)

    # the orchestrator goes, then the broker: both are said, and heal
    two.end("orchestrator")
    until(lambda: exporter.health()[1].get("reasons") == ["no orchestrator leads"])
    assert exporter.health()[0] == 503
    two.start_orchestrator()
    two.kill_broker()
    until(lambda: exporter.samples("s2m3_broker_connected") == {(): 0})
    status, document = exporter.health()
    assert (status, document["broker"]) == (503, False)
    assert "no connection to the broker" in document["reasons"][0]
    assert exporter.samples("s2m3_device_up") == {}
    until(lambda: "waiting for it" in events.said)
    two.start_broker()
    until(lambda: "connected to the broker again" in events.said, 2 * PATIENCE_S)
    until(lambda: exporter.health()[0] == 200 and exporter.health()[1]["tasks"]["served"] == 1, 4 * PATIENCE_S)
