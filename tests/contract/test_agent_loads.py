"""Loads that make no progress: each fails with its reason, holds up no other module, and stops when it is unloaded.

The hub is a small server on this machine that sends one byte after the other, and its client the real one.
"""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from broker.protocol.codec import decode, encode
from broker.protocol.messages import AssignedModule, Heartbeat, HeldModule
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import ModuleSpec, Source
from broker.protocol.topics import DEVICE_ASSIGNMENT
from broker.transport.memory import MemoryBroker, MemoryTransport
from broker.transport.port import Delivery, Outgoing
from edge_agent import loads
from edge_agent.config import AgentConfig
from edge_agent.loads import MIN_BYTES_PER_S, MIN_CPU_SHARE, Pace, deadline_s
from edge_agent.modules import Module, Output
from edge_agent.modules.weights import downloads, hub
from edge_agent.modules.weights.allowed import AllowedWeights, allow
from edge_agent.service import Agent
from tests.builders import PREFIX, assignment, computing, module, part_of, profile, uncalibrated_store
from tests.patience import PATIENCE_S, until

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZE = 1_000_000
GOOD, STUCK, DRIP = (module(name, memory_bytes=10) for name in ("good", "stuck", "drip"))


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves a file of 1 MB under every name, a byte at a time; notes when its client is gone."""

    sent = 0
    piece = b"."
    gone = threading.Event()

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Content-Length": str(SIZE)}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        pause = threading.Event()
        try:
            for _ in range(SIZE // len(Hub.piece)):
                self.wfile.write(Hub.piece)
                Hub.sent += len(Hub.piece)
                pause.wait(0.02)
        except OSError:
            Hub.gone.set()

    def log_message(self, *_: object) -> None:
        """Keep silent."""


@pytest.fixture
def hub_that_drips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Hub.sent, Hub.piece = 0, b"."
    Hub.gone.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(hub.DIRECTORY_VARIABLE, raising=False)
    allow(AllowedWeights(hub=("org/drips",)))
    yield
    allow(None)
    server.shutdown()
    thread.join()
    server.server_close()


class World:
    """An agent that holds what it is assigned, and the heartbeats that it sends."""

    def __init__(self, received: Any) -> None:
        self.received = received
        self.released = threading.Event()
        self.begun: list[str] = []  # modules
        broker = MemoryBroker()
        self.listener = MemoryTransport(broker, client_id="listener", inbox=received)
        self.listener.subscribe(f"{PREFIX}/#")
        self.listener.start()
        self.agent = Agent(
            AgentConfig(id="gw-a", heartbeat_interval_s=0.05),
            profile=profile(),
            store=uncalibrated_store(100, self._load),
            make_transport=broker.connect,
        )
        self._thread = threading.Thread(target=self.agent.run)
        self._thread.start()

    def _load(self, spec: ModuleSpec) -> Module:
        self.begun.append(part_of(spec))
        if part_of(spec) == "stuck":
            self.released.wait()
        if part_of(spec).startswith("drip"):
            hub.repository(Source(hub="org/drips", part="x", revision=COMMIT)).required("config.json")
        return computing(lambda *_: Output({}))

    def assign(self, *specs: ModuleSpec, generation: int = 1) -> None:
        topic = DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a")
        self.listener.publish(Outgoing(topic, encode(assignment(*specs, generation=generation)), retain=True))

    def held(self, fits: Callable[[dict[str, HeldModule]], object]) -> dict[str, HeldModule]:
        """The modules by name, as a heartbeat from now on says."""
        self.received.clear()

        def modules(event: object) -> dict[str, HeldModule]:
            assert isinstance(event, Delivery)
            return {held.module.rpartition("/")[2]: held for held in decode(Heartbeat, event.payload).modules.values()}

        def fitting(event: object) -> bool:
            with suppress(KeyError):  # a heartbeat from before the assignment arrived
                return isinstance(event, Delivery) and event.topic.endswith("/heartbeat") and bool(fits(modules(event)))
            return False

        return modules(self.received.wait_for(fitting))

    def await_generation(self, generation: int) -> None:
        """Wait until the agent obeys this assignment."""

        def obeyed(event: object) -> bool:
            if not isinstance(event, Delivery) or not event.topic.endswith("/heartbeat"):
                return False
            return decode(Heartbeat, event.payload).generation >= generation

        self.received.wait_for(obeyed)

    def stop(self) -> None:
        self.released.set()
        self.agent.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def world(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(loads, "STILL_S", 3600.0)
    monkeypatch.setattr(loads, "YIELD_S", 0.2)
    made = World(recorder)
    yield made
    made.stop()


@pytest.mark.usefixtures("hub_that_drips")
@pytest.mark.parametrize("slow", [STUCK, DRIP], ids=["stands still", "drips"])
def test_the_next_module_does_not_wait_for_a_load_without_an_end(world: World, slow: ModuleSpec) -> None:
    world.assign(slow, GOOD)
    seen = world.held(lambda held: held["good"].state == "ready" and len(held) == 2)
    assert [held.state for name, held in seen.items() if name != "good"] == ["loading"]
    if slow is DRIP:
        world.assign(GOOD, generation=2)
        assert Hub.gone.wait(PATIENCE_S), "its download ends before another test's begins"


def test_a_load_that_stands_still_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "STILL_S", 1.0)
    world.assign(STUCK)
    failed = world.held(lambda held: held["stuck"].state == "failed")["stuck"]
    assert "its load stands still" in str(failed.error)
    assert failed.memory_bytes == 0
    until(lambda: STUCK.key in world.agent._state.failed)


def test_a_module_whose_load_was_left_behind_is_refused_until_that_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loads, "STILL_S", 1.0)
        world.assign(STUCK)
        world.held(lambda held: "stuck" in held and held["stuck"].state == "failed")
    world.assign(STUCK, generation=2)
    again = world.held(lambda held: "an earlier load of it still stands still here" in str(held["stuck"].error))
    assert again["stuck"].state == "failed"
    world.released.set()
    thread = world.agent._workers._loads._stuck[STUCK.key]
    thread.join(PATIENCE_S)
    assert world.held(lambda held: held)["stuck"].state == "failed", "what came of it at last is dropped"
    world.assign(STUCK, generation=3)
    world.held(lambda held: held["stuck"].state == "ready")


def test_a_load_for_which_no_thread_can_start_fails_and_begins_at_the_next_assignment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if ".load[" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        world.assign(GOOD)
        failed = world.held(lambda held: held["good"].state == "failed")["good"]
    assert "its load can't begin (can't start new thread)" in str(failed.error)
    world.assign(GOOD, generation=2)
    world.held(lambda held: held["good"].state == "ready")


@pytest.mark.usefixtures("hub_that_drips")
def test_a_hub_that_drips_fails_the_module(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stands_still = Pace.stands_still

    def once_it_drips(pace: Pace, *figures: Any) -> bool:
        if Hub.sent <= 10:
            pace.restart()
        return stands_still(pace, *figures)

    monkeypatch.setattr(loads, "STILL_S", 1.0)
    monkeypatch.setattr(Pace, "stands_still", once_it_drips)
    world.assign(DRIP)
    failed = world.held(lambda held: held["drip"].state == "failed")["drip"]
    assert "its load stands still" in str(failed.error)
    assert Hub.gone.wait(PATIENCE_S), "the download ends, too"
    assert Hub.sent > 10


@pytest.mark.usefixtures("hub_that_drips")
def test_a_load_that_waits_for_the_download_of_another_one_makes_progress_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is as if 100 kB took a second: 10 s for all, longer than a load may stand still."""
    stands_still = Pace.stands_still

    def by_its_bytes(pace: Pace, _: float, *figures: Any) -> bool:
        size_bytes = 0
        with suppress(OSError):  # it has got its final name
            size_bytes = sum(each.stat().st_size for each in (tmp_path / "cache").rglob("*.incomplete"))
        return stands_still(pace, size_bytes / 100_000, *figures)

    monkeypatch.setattr(loads, "STILL_S", 2.0)
    monkeypatch.setattr(Pace, "stands_still", by_its_bytes)
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 20_000)
    Hub.piece = b"." * 20_000
    also = module("drip-too", memory_bytes=10)
    world.assign(DRIP, also)
    world.held(lambda held: len(held) == 2 and all(each.state == "ready" for each in held.values()))
    assert Hub.sent == SIZE, "it is fetched once"


@pytest.mark.usefixtures("hub_that_drips")
def test_an_undeployed_module_stops_loading(world: World) -> None:
    world.assign(DRIP)
    until(lambda: Hub.sent > 5)
    world.assign(generation=2)
    assert Hub.gone.wait(PATIENCE_S)
    world.held(lambda held: not held)
    until(lambda: world.agent._store.used_bytes == 0)
    assert not world.agent._state.failed


def test_a_module_that_is_undeployed_while_it_waits_is_not_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "YIELD_S", 3600.0)
    last = module("last", memory_bytes=10)
    world.assign(STUCK)
    until(lambda: world.begun)  # of two at once either may begin
    world.assign(STUCK, GOOD, generation=2)
    world.assign(STUCK, generation=3)
    world.assign(STUCK, last, generation=4)
    world.await_generation(4)
    world.released.set()
    world.held(lambda held: "last" in held and held["last"].state == "ready")
    assert world.begun == ["stuck", "last"]


@pytest.mark.usefixtures("hub_that_drips")
def test_a_download_that_the_disk_has_no_room_for_is_refused_with_both_numbers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=downloads.DISK_RESERVE_BYTES + SIZE - 1))
    world.assign(DRIP)
    failed = world.held(lambda held: "drip" in held and held["drip"].state == "failed")["drip"]
    size, free = show_sizes(SIZE, downloads.DISK_RESERVE_BYTES + SIZE - 1)
    assert f"the download has {size}, and {free} are free" in str(failed.error)


def test_progress_is_bytes_or_processor_time_and_either_is_enough() -> None:
    window_s = 10.0
    for size_bytes, cpu_s, still in (
        (0, 0.0, True),
        (MIN_BYTES_PER_S * window_s - 1, 0.0, True),
        (MIN_BYTES_PER_S * window_s, 0.0, False),
        (0, MIN_CPU_SHARE * window_s, False),
    ):
        pace = Pace(window_s)
        assert not pace.stands_still(100.0, 7, 3.0)
        assert not pace.stands_still(109.9, 7, 3.0)
        assert pace.stands_still(110.0, 7 + int(size_bytes), 3.0 + cpu_s) == still
    assert pace.stands_still(120.0, 7, 3.0 + MIN_CPU_SHARE * window_s), "and then nothing"


def test_a_load_has_a_deadline_by_its_bytes() -> None:
    assert deadline_s(0) == pytest.approx(loads.LOAD_S)
    assert deadline_s(64 * 2**20) == pytest.approx(loads.LOAD_S + 1024)


def test_a_load_that_goes_on_too_long_fails_although_it_makes_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    worked_s = iter(range(1000))
    monkeypatch.setattr(loads, "_cpu_s", lambda _: float(next(worked_s)))
    loading = loads._Loading(AssignedModule(module="m", spec=GOOD))
    assert not any(loading.problem(float(at_s)) for at_s in range(100, 400)), "it waits for its turn"
    loading.waiting = False
    problems = [loading.problem(float(at_s)) for at_s in range(400, 525)]
    assert problems.index("its load takes longer than 120 s") == 121
    loading.progress.expected_bytes = 10 * MIN_BYTES_PER_S
    assert not loading.problem(525.0), "the download turned out to be larger"
