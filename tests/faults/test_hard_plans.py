"""Tasks that don't fit, on fifty simulated devices and a real Mosquitto: the leader goes on during the search.

Counted: the processor time that the leader's own process takes between two of its heartbeats, which a search in it
would fill, however busy the machine is; and leaders, in the long form, where a standby waits for a silent one. The
seconds until each task has its reason are printed, not judged: other work on the machine would decide.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from broker.leader_watch import LEADER_INTERVAL_S
from broker.protocol import topics
from broker.protocol.specs import DeviceSpec, TaskSpec
from s2m3.bench.fleet import packets
from s2m3.bench.fleet.agent import Fleet, SimulatedAgent
from s2m3.bench.fleet.device import SimulatedDevice
from s2m3.bench.fleet.processes import Processes, available_cores, divide
from s2m3.bench.fleet.schedule import Punctuality
from s2m3.bench.fleet.sessions import Sessions
from s2m3.bench.fleet.watch import Watch
from tests.builders import chain, device, module
from tests.patience import PATIENCE_S

DEVICES = 50
INTERVALS = 2.0  # of the leader between two heartbeats, with a standby
BUSY_INTERVALS = 1.0  # of the leader's processor time between two heartbeats; a standby waits for more than three


class LeaderWork(Watch):
    """The operator's session, which reads the leader's processor time at each of its heartbeats."""

    def __init__(self, sessions: Sessions, prefix: str, processes: Processes) -> None:
        super().__init__(sessions, prefix)
        self._processes = processes
        self.worked_s: list[float] = []  # by the leader's process without its planner, since its start

    def on_message(self, message: packets.Message) -> None:
        """Record a message."""
        before = len(self.leader_heartbeats_s)
        super().on_message(message)
        if len(self.leader_heartbeats_s) > before:
            assert self._processes._orchestrator
            times = psutil.Process(self._processes._orchestrator.pid).cpu_times()
            self.worked_s.append(times.user + times.system)


def draw_tasks(count: int, chance: random.Random) -> list[TaskSpec]:
    """Tasks of six to ten modules, some of them shared."""
    shared = [module(f"s{number}", chance.randint(40, 120), chance.uniform(1e9, 5e10)) for number in range(10)]

    def task(name: str) -> TaskSpec:
        own = [
            module(f"{name}-{n}", chance.randint(30, 200), chance.uniform(1e9, 5e10))
            for n in range(chance.randint(5, 8))
        ]
        return chain(name, *own, *chance.sample(shared, chance.randint(1, 2)))

    return [task(f"t{number:02}") for number in range(count)]


def draw_devices(chance: random.Random) -> list[DeviceSpec]:
    """Devices whose memory is enough for about half of forty tasks."""
    return [
        device(f"d{number:02}", chance.randint(150, 300), speed=chance.uniform(5e9, 5e10)) for number in range(DEVICES)
    ]


@contextmanager
def standby(url: str, directory: Path) -> Iterator[None]:
    """A second orchestrator, which takes over when the first one is silent."""
    command = [sys.executable, "-m", "orchestrator", "--broker", url, "--state-dir", str(directory)]
    log = directory / "log"
    directory.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--until-stdin-closes"], stdin=subprocess.PIPE, stderr=output)
    with process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("count", "stands_by"), [(40, False), *(pytest.param(count, True, marks=pytest.mark.long) for count in (20, 40))]
)
def test_tasks_that_do_not_fit_change_no_leader_and_each_has_its_reason(
    count: int,
    stands_by: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    chance = random.Random(count)  # noqa: S311 - the same each time
    tasks = draw_tasks(count, chance)
    cores, prefix = divide(available_cores()), topics.prefix_of()
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(cores, tmp_path, 1.0))
        stack.enter_context(standby(processes.url, tmp_path / "standby") if stands_by else nullcontext())
        sessions = Sessions(processes.url)
        stack.callback(sessions.shut)
        watch = LeaderWork(sessions, prefix, processes)
        sessions.open(watch)
        assert sessions.run_until(lambda: watch.leader is not None and watch.leader.online, PATIENCE_S)
        punctuality = Punctuality(1.0)
        fleet = Fleet(sessions, prefix, 1.0, punctuality)
        agents = {spec.id: SimulatedAgent(SimulatedDevice(spec, load_s=0.2), fleet) for spec in draw_devices(chance)}
        for agent in agents.values():
            sessions.open(agent)
        assert sessions.run_until(lambda: sessions.up == DEVICES + 1, PATIENCE_S)
        sessions.run(2.0)

        # 1. all tasks come at once: each is placed, or says why not
        begin_s = time.monotonic()
        watch.deploy(tasks)
        assert sessions.run_until(lambda: len(watch.routes) == count, PATIENCE_S)
        print(f"{count} tasks: all have a route after {time.monotonic() - begin_s:.2f} s")  # noqa: T201
        assert sessions.run_until(
            lambda: all(route.complete or route.unavailable for route in watch.routes.values()), PATIENCE_S
        )
        refused = {name for name, route in watch.routes.items() if route.unavailable}
        assert 0 < len(refused) < count
        assert all("no device fits" in (watch.routes[name].unavailable or "") for name in refused)

        # 2. the planner dies, too
        assert processes._orchestrator
        (planner,) = psutil.Process(processes._orchestrator.pid).children()
        planner.kill()

        # 3. devices die, and all is planned again and again
        for name in ("d03", "d17", "d31"):
            agents[name].fail()
            sessions.run(2.0)
        sessions.run(5.0)
        assert all(route.complete or route.unavailable for route in watch.routes.values())

        gaps = [(after - before) / LEADER_INTERVAL_S for before, after in pairwise(watch.leader_heartbeats_s)]
        busy = [(after - before) / LEADER_INTERVAL_S for before, after in pairwise(watch.worked_s)]
        late = max(punctuality.late_s) / LEADER_INTERVAL_S
        print(f"intervals between two heartbeats: at most {max(gaps):.2f}, at most {max(busy):.2f} of them at work")  # noqa: T201
        assert max(busy) < BUSY_INTERVALS
        assert watch.epochs == {1} or (stands_by and late > INTERVALS)
        assert max(gaps) < INTERVALS + late or not stands_by
