"""The measurement: births, routing, rest, deaths, a broker's restart, a power-up; one after the other at one site.

Owns the events between which times are measured, and the conditions under which a run holds. All times are those of the
simulator's clock at which the orchestrator's messages arrive.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from broker.protocol import topics
from broker.protocol.specs import DeviceId, ModuleKey
from s2m3.bench.fleet.agent import Fleet, SimulatedAgent
from s2m3.bench.fleet.device import SimulatedDevice
from s2m3.bench.fleet.processes import Processes, allow_files, available_cores, divide, on_cores
from s2m3.bench.fleet.schedule import Punctuality
from s2m3.bench.fleet.sessions import RECEIVED, SENT, Sessions
from s2m3.bench.fleet.site import draw_cached, draw_devices, draw_tasks
from s2m3.bench.fleet.watch import Move, Watch
from s2m3.testbed.observer import named
from s2m3.testbed.percentiles import percentile
from s2m3.testbed.site import SiteFailed

START_S = 60.0  # until the orchestrator leads, and until all devices are connected after their last birth
ROUTED_S = 60.0  # until all tasks are routed
QUIET_S = 5.0  # without a new assignment or route: the orchestrator chooses spares after 3 s of calm
QUIET_WITHIN_S = 60.0
WATCHED_S = 20.0  # after all devices are connected to a restarted broker
REVIEWED_S = 35.0  # after the last birth of a power-up: the orchestrator reviews its placement every 30 s
DEATHS = 3
KNOWN_S = 1.0  # a device that was born so long before a module was placed could have got it then
ROUND_S = 2.0  # between two moves of one round: their routes come one after the other
INTERVAL_S = 1.0
MOST_HOLDERS = 2  # of a module whose holders all die at once


@dataclass(frozen=True)
class Settings:
    """The size of the simulated site, and the times of its measurement."""

    devices: int
    tasks: int = 14
    seconds: float = 30.0  # at rest: with one review of the placement
    births_s: float = 10.0  # from the first birth to the last
    load_s: float = 0.2  # from a module's assignment until it is ready
    failures: bool = True  # also deaths, a broker's restart and a power-up
    all_subscriptions: bool = False


def measure(settings: Settings, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure one site of simulated devices.

    Raises:
        BadFile: this machine allows too few open files, or has no Mosquitto.
        SiteFailed: the orchestrator ended, or never led.
    """
    allow_files(settings.devices)
    cores = divide(available_cores())
    with (
        tempfile.TemporaryDirectory(prefix="s2m3-fleet-") as directory,
        Processes(cores, Path(directory), INTERVAL_S) as processes,
        on_cores(cores.others),
    ):
        run = _Run(settings, processes, progress)
        try:
            found = run.measure()
        finally:
            run.sessions.shut()
    return found | {"settings": asdict(settings) | {"pinned": cores.apart}}


class _Run:
    """One site, and what was measured at it so far."""

    def __init__(self, settings: Settings, processes: Processes, progress: Callable[[str], None]) -> None:
        self.settings, self.processes, self.progress = settings, processes, progress
        self.sessions = Sessions(processes.url)
        prefix = topics.prefix_of()
        self.fleet = Fleet(
            self.sessions, prefix, INTERVAL_S, Punctuality(INTERVAL_S), all_subscriptions=settings.all_subscriptions
        )
        self.tasks = draw_tasks(settings.tasks)
        self.names = [task.task for task in self.tasks]
        cached = draw_cached(self.tasks, settings.devices)
        self.agents = {
            spec.id: SimulatedAgent(SimulatedDevice(spec, load_s=settings.load_s, cached=known), self.fleet)
            for spec, known in zip(draw_devices(settings.devices), cached, strict=True)
        }
        self.watch = Watch(self.sessions, prefix)

    def measure(self) -> dict[str, Any]:
        gc.freeze()  # what lives as long as the run needs no more looks of the collector, which take long
        self.sessions.open(self.watch)
        self._require(lambda: self.watch.leader is not None and self.watch.leader.online, "no orchestrator leads")
        self.progress("devices are born")
        self._give_birth()
        self.sessions.run(2 * INTERVAL_S)
        self.progress("tasks are deployed")
        found: dict[str, Any] = {"devices": self.settings.devices, "tasks": self.settings.tasks}
        found |= {"all_routed_s": self._route_all(), "calm": self._wait_for_quiet()}
        self.progress("at rest")
        found |= self._rest()
        if self.settings.failures:
            found |= self._fail_devices()
            self.progress("the broker restarts")
            found |= {"broker_restart": self._restart_broker()}
            self.progress("the site powers up")
            found |= {"power_up": self._power_up()}
        heartbeats = self.fleet.punctuality
        found |= {"heartbeats": heartbeats.document(), "valid": heartbeats.valid, "leaders": len(self.watch.epochs)}
        why_not = reasons(found)
        return found | {"ok": not why_not, "why_not": why_not}

    # --- births and routes ---

    def _give_birth(self) -> float:
        """Let all devices be born, evenly spread; returns when the first one was due."""
        begin_s = time.monotonic()
        for number, agent in enumerate(self.agents.values()):
            self.sessions.open_later(agent, begin_s + self.settings.births_s * number / len(self.agents))
        self.sessions.run(self.settings.births_s)
        self._require(self._all_up, "not all devices could connect")
        return begin_s

    def _all_up(self) -> bool:
        return self.sessions.up == len(self.agents) + 1

    def _route_all(self) -> float | None:
        """Deploy the tasks; returns the seconds until all are routed, None if that takes too long."""
        begin_s = time.monotonic()
        self.watch.deploy(self.tasks)
        if not self.sessions.run_until(lambda: self.watch.serves(self.names), ROUTED_S):
            return None
        return max(self.watch.changed_s.values()) - begin_s

    def _wait_for_quiet(self) -> bool:
        """Wait until no assignment and no route came for a while; returns whether that was so in time."""
        until_s = time.monotonic() + QUIET_WITHIN_S
        while time.monotonic() < until_s:
            before = self._orders()
            if not self.sessions.run_until(lambda seen=before: self._orders() != seen, QUIET_S):  # type: ignore[misc]
                return True
        return False

    def _orders(self) -> int:
        return sum((self.watch.received + self.fleet.received)[topic.template] for topic in _ORDERS)

    # --- rest ---

    def _rest(self) -> dict[str, Any]:
        processes, sessions, watch = self.processes, self.sessions, self.watch
        sent, orders = Counter(sessions.bytes), Counter(watch.received + self.fleet.received)
        counted, begin_s = dict(watch.broker_bytes), time.monotonic()
        before = (processes.orchestrator_usage(), processes.broker_usage())
        own_s = time.process_time()
        sessions.run(self.settings.seconds)
        after = (processes.orchestrator_usage(), processes.broker_usage())
        took_s = time.monotonic() - begin_s
        came_s = [at_s for at_s in watch.leader_heartbeats_s if at_s >= begin_s]
        gaps_s = [later - earlier for earlier, later in pairwise(came_s)]
        new = Counter(watch.received + self.fleet.received) - orders
        return {
            "orchestrator_core_share": after[0].share_since(before[0]),
            "orchestrator_waited_share": after[0].waited_since(before[0]),
            "orchestrator_rss_mb": after[0].resident_mb,
            "broker_core_share": after[1].share_since(before[1]),
            "broker_rss_mb": after[1].resident_mb,
            "simulator_core_share": (time.process_time() - own_s) / took_s,
            "bytes_per_s": {
                "from_devices": (sessions.bytes[SENT] - sent[SENT]) / took_s,
                "to_devices": (sessions.bytes[RECEIVED] - sent[RECEIVED]) / took_s,
                **{f"broker_{way}": (count - counted[way]) / took_s for way, count in watch.broker_bytes.items()},
            },
            "orders_at_rest": {topic.template: new[topic.template] for topic in _ORDERS},
            "leader_gap_s": {"p99": percentile(gaps_s, 99), "worst": max(gaps_s, default=None)},
            "dropped_by_broker": watch.counts.get("publish/messages/dropped", 0),
        }

    # --- failures ---

    def _fail_devices(self) -> dict[str, Any]:
        """Kill devices, each with a standby for all that it serves; then all holders of a module at once."""
        with_standby = []
        for _ in range(DEATHS):
            self.progress("a device with a standby dies")
            if victim := self._victim():
                with_standby.append(self._time_death([victim]))
        self.progress("the devices of a module without a standby die")
        holders = self._holders_of_one()
        without = self._time_death(holders) if holders else None
        timed = [each for each in with_standby if each is not None]
        return {
            "rerouted_s": max(timed) if timed and len(timed) == len(with_standby) else None,
            "rerouted_each_s": with_standby,
            "rerouted_without_standby_s": without,
            "load_s": self.settings.load_s,
        }

    def _victim(self) -> DeviceId | None:
        """The device that most tasks use, of those whose modules are all ready on another device, too."""
        uses: Counter[DeviceId] = Counter()
        served: dict[DeviceId, set[ModuleKey]] = {}
        for route in self.watch.routes.values():
            uses.update(named(route))
            for node in route.nodes.values():
                for device in node.devices:
                    served.setdefault(device.device, set()).add(node.key)
        ready = self._ready()
        covered = [name for name in uses if all(len(ready[key]) > 1 for key in served.get(name, ()))]
        return max(covered, key=lambda name: (uses[name], name), default=None)

    def _holders_of_one(self) -> list[DeviceId]:
        """All devices that hold a module, of one that few devices hold; empty if there is no such module."""
        ready = self._ready()
        served = [sorted(ready[key]) for key in self.watch.homes if ready.get(key)]
        holders = min(served, key=lambda devices: (len(devices), devices), default=[])
        return holders if len(holders) <= MOST_HOLDERS else []

    def _ready(self) -> dict[ModuleKey, set[DeviceId]]:
        ready: dict[ModuleKey, set[DeviceId]] = {}
        for name, agent in self.agents.items():
            for key in agent.device.modules:
                if agent.device.is_ready(key):
                    ready.setdefault(key, set()).add(name)
        return ready

    def _time_death(self, victims: Sequence[DeviceId]) -> float | None:
        """The seconds from a death until the routes of all tasks avoid these devices; None if that takes too long."""
        touched = self.watch.naming(victims)
        begin_s = time.monotonic()
        for victim in victims:
            self.agents[victim].fail()

        def rerouted() -> bool:
            return self.watch.serves(touched) and not self.watch.naming(victims)

        took_s = None
        if self.sessions.run_until(rerouted, ROUTED_S):
            took_s = max((self.watch.changed_s[task] for task in touched), default=begin_s) - begin_s
        for victim in victims:
            self.sessions.open(self.agents[victim])
        self._wait_for_quiet()
        return took_s

    def _restart_broker(self) -> dict[str, Any]:
        """Kill the broker, which forgets everything, and start it again."""
        moves, loads, leaders = len(self.watch.moves), self._loads().begun, len(self.watch.epochs)
        self.processes.kill_broker()
        self._require(lambda: self.sessions.up == 0, "the connections to the killed broker didn't end")
        self.processes.start_broker()
        begin_s = time.monotonic()
        self._require(self._all_up, "not all devices connected again")
        connected_s = time.monotonic() - begin_s
        self.sessions.run(WATCHED_S)
        return {
            "moves": len(self.watch.moves) - moves,
            "loads": self._loads().begun - loads,
            "leaders": len(self.watch.epochs) - leaders,
            "all_connected_s": connected_s,
            "served": self.watch.serves(self.names),
        }

    def _power_up(self) -> dict[str, Any]:
        """Let everything lose its power; start the broker and the orchestrator, and let all devices be born."""
        for agent in self.agents.values():
            agent.fail()
        self.processes.kill_orchestrator()
        self.processes.kill_broker()
        self.watch.forget()
        self.processes.start_broker()
        self.processes.start_orchestrator()
        self._require(lambda: self.watch.leader is not None and self.watch.leader.online, "no orchestrator leads")
        loads = self._loads()
        begin_s = self._give_birth()
        self.sessions.run(REVIEWED_S)
        born_s = {name: agent.born_s or 0.0 for name, agent in self.agents.items()}
        moves = self.watch.moves
        served_s = [self.watch.served_s.get(task) for task in self.names]
        changed_s = [since_s for _, since_s in self.watch.homes.values()]
        abandoned = self._loads().abandoned - loads.abandoned
        return {
            "served_s": None if None in served_s else max(each for each in served_s if each) - begin_s,
            "settled_s": max(changed_s) - begin_s if changed_s and self.watch.serves(self.names) else None,
            "moves": len(moves),
            "needless_moves": needless(moves, born_s) + abandoned,
            "abandoned_loads": abandoned,
        }

    def _loads(self) -> _Loads:
        devices = [agent.device for agent in self.agents.values()]
        return _Loads(sum(each.begun_loads for each in devices), sum(each.abandoned_loads for each in devices))

    def _require(self, holds: Callable[[], bool], otherwise: str) -> None:
        if not self.sessions.run_until(holds, START_S):
            self.processes.orchestrator_usage()  # if it has ended, its last words say more
            raise SiteFailed(f"{otherwise} within {START_S:g} s")


_ORDERS = (topics.TASK_ROUTE, topics.DEVICE_ASSIGNMENT)


@dataclass(frozen=True)
class _Loads:
    begun: int
    abandoned: int


def needless(moves: Sequence[Move], born_s: Mapping[DeviceId, float]) -> int:
    """The moves of rounds that no new device explains.

    A round's moves come within ``ROUND_S`` of each other, and are planned together. It is explained if one of its
    modules moves to a device that was born after the module was placed, or up to ``KNOWN_S`` before.
    """
    rounds: list[list[Move]] = []
    for move in sorted(moves, key=lambda each: each.at_s):
        if not rounds or move.at_s - rounds[-1][-1].at_s > ROUND_S:
            rounds.append([])
        rounds[-1].append(move)
    explained = [any(born_s.get(m.to, m.at_s) >= m.since_s - KNOWN_S for m in each) for each in rounds]
    return sum(len(each) for each, has_reason in zip(rounds, explained, strict=True) if not has_reason)


def reasons(found: dict[str, Any]) -> list[str]:
    """The reasons for which a run doesn't hold; empty when it does."""
    problems: list[str] = []
    late = found["heartbeats"]
    if not found["valid"]:
        problems.append(
            f"invalid: the simulator itself sent {late['late']} of {late['sent']} heartbeats more than "
            f"{late['late_above_s']:g} s late; give it a core of its own, or simulate fewer devices"
        )
    if found["all_routed_s"] is None:
        problems.append(f"not all tasks were routed within {ROUTED_S:g} s")
    if "rerouted_s" in found and found["rerouted_s"] is None:
        problems.append("the tasks of a dead device were not routed to other devices")
    restart, power_up = found.get("broker_restart"), found.get("power_up")
    if restart and (restart["moves"] or restart["loads"] or restart["leaders"]):
        problems.append("a restart of the broker moved modules, or changed the leader")
    if power_up and power_up["settled_s"] is None:
        problems.append("not all tasks were routed after the power-up")
    if power_up and power_up["needless_moves"]:
        problems.append(f"the power-up made {power_up['needless_moves']} needless moves")
    return problems
