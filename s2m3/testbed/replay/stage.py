"""The site on which a scenario plays: real processes behind links, and a tripwire.

Owns its start, the wait until it serves, and its return to order before the next scenario of the same make. Owns also
the connection of the tripwire, which tells the injector of the event that a fault waits for, and remembers messages.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from broker.protocol.codec import encode
from broker.protocol.messages import Heartbeat
from broker.protocol.reports import Standing, TaskStatus
from broker.protocol.specs import DeviceId, TaskSpec
from broker.protocol.topics import DEVICE_HEARTBEAT, REQUESTS, TASK_SPEC, TENSORS, read
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection, command_line, read_connection
from broker.transport.port import Delivery, Inbox, LinkDown, LinkEvent, LinkUp, Outgoing, Transport
from edge_agent.config import AgentConfig
from edge_agent.runtime.engines import AgentEngine
from s2m3.testbed.engines import exported
from s2m3.testbed.observer import Observer, named
from s2m3.testbed.proxy import UNSHAPED, LinkShape
from s2m3.testbed.replay.library import THREADS, specs_of
from s2m3.testbed.replay.scenario import FleetDevice, Scenario, When
from s2m3.testbed.site import ORCHESTRATOR, SERVE_S, SPARE, Site, SiteFailed

DEAD_INTERVALS = 3.5  # without a heartbeat: about then the orchestrator takes a device for dead
SETTLED_INTERVALS = 2  # heartbeats without a new assignment: then nothing is about to move
MAKE = (
    "broker",
    "persistence",
    "heartbeat_interval_s",
    "orchestrators",
    "spares",
    "fleet",
    "tasks",
    "redundancy",
    "inner_faults",
    "supervised",
    "models",
    "weights",
    "downloads",
)
PERSISTENCE = ("persistence true", "autosave_interval 5")  # as deploy/mosquitto/development.conf says to sites


CONNECT_S = 20.0  # longer than an attempt takes; it ends with a reason before
REMEMBERED = 40  # messages
MAX_REMEMBERED_BYTES = 1_000_000  # of one message

_FIELDS = {TENSORS: {"node": "node", "used": "receiver"}, DEVICE_HEARTBEAT: {"online": "device"}}
_FIELDS |= {topic: {"request": "task"} for topic in REQUESTS}
"""The topics that are watched: the fields of ``When`` that each one meets, and the id in its name."""


@dataclass
class _Armed:
    when: When
    left: int  # events
    spring: Callable[[], None]


class Tripwire:
    """Compares what arrives on the data topics of a site, under ``prefix``, with the events that faults wait for."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._set: list[_Armed] = []
        self._recent: deque[Delivery] = deque(maxlen=REMEMBERED)

    def arm(self, when: When, spring: Callable[[], None]) -> None:
        """Call ``spring`` once, from the network's thread, when such events came so often as it says."""
        with self._lock:
            self._set.append(_Armed(when.model_copy(update={"times": 1}), when.times, spring))

    @property
    def recent(self) -> list[Delivery]:
        """The last requests and tensors, oldest first."""
        with self._lock:
            return list(self._recent)

    def see(self, event: LinkEvent) -> None:
        """Take in one event of the connection."""
        if not isinstance(event, Delivery):
            return
        incoming = read(self._prefix, event.topic, event.payload)
        if incoming is None or incoming.topic not in _FIELDS:
            return
        fields = _FIELDS[incoming.topic]
        happened = [When.model_validate({field: incoming.ids[name]}) for field, name in fields.items()]
        with self._lock:
            if incoming.topic is not DEVICE_HEARTBEAT and len(event.payload) <= MAX_REMEMBERED_BYTES:
                self._recent.append(event)
            met = [armed for armed in self._set if armed.when in happened]
            for armed in met:
                armed.left -= 1
            self._set = [armed for armed in self._set if armed.left]
        for armed in met:
            if not armed.left:
                armed.spring()


class Stage:
    """A running site for scenarios of one make; a context manager.

    ``logs`` is a directory for what the processes print; by default it goes with the site. ``connection`` is that to
    the broker that the scenario names, if it is a running one; by default its address and the environment say it.
    ``say`` is called with each step that takes long.
    """

    def __init__(
        self,
        scenario: Scenario,
        logs: Path | None = None,
        connection: Connection | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._scenario = scenario
        self._say = say
        if connection is None and scenario.is_running:
            connection = read_connection(command_line(broker=scenario.broker))
        self._broker = connection or scenario.broker
        self._logs = logs
        self._used = False
        self.leader = ORCHESTRATOR
        self.others: tuple[str, ...] = (SPARE,) if scenario.orchestrators > 1 else ()
        self.specs = specs_of(scenario)
        self.first = {spec.task: spec for spec in self.specs}
        self.deployed = dict(self.first)  # the revisions that were deployed last

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def fits(self, scenario: Scenario) -> bool:
        """Whether this site is one as the scenario wants it; no device has joined it, or is to join it."""
        return make_of(scenario) == make_of(self._scenario) and not scenario.joining | self._scenario.joining

    def restore(self, *, standby: bool) -> None:
        """Start what was killed, and wait until everything is served and nothing moves any more.

        A single orchestrator is restarted after an earlier scenario, whose deaths would keep devices on probation.
        With ``standby``, it waits also until every module has a standby copy that is ready.

        Raises:
            SiteFailed: it doesn't come into order.
        """
        for device in sorted(self.observer.drained):
            self.observer.set_drain(device, drain=False)
        if self._used and not self.others and self.leader in self.site.running:
            self.site.end(self.leader)
            self.site.require(lambda seen: not seen.leads, SERVE_S, "the orchestrator did not end")
        self._used = True
        running = set(self.site.running)
        for name in {self.leader, *self.others} - running:
            self.site.start_orchestrator(name)
        for device in self._present - running:
            self.observer.heartbeats.pop(device, None)
            self.site.start_agent(device)
        self.site.require(self._all_beat, SERVE_S, "the orchestrator and all devices were not online")
        self.deployed = dict(self.first)
        self.observer.deploy(self.specs, SERVE_S)  # an orchestrator that ended may have been the only one to know them
        self.site.require(self._served, SERVE_S, "not every task was served")
        if standby:
            self.site.require(self._stood_by, SERVE_S, "not every module had a standby that is ready")
        self.site.require(self._settled, SERVE_S, "assignments did not come to rest")

    def deploy(self, spec: TaskSpec) -> None:
        """Deploy a revision, and don't wait for it. May be called from any thread."""
        self.deployed[spec.task] = spec
        with connected(self.site.connection, lambda _: None) as operator:
            topic = TASK_SPEC.at(self.observer.prefix, task=spec.task)
            operator.publish(Outgoing(topic, encode(spec), retain=True, lasting=True))

    def undecided(self, *, deployed: bool) -> list[str]:
        """A sentence for each task whose last revision isn't served; or, if it must not be, isn't refused."""
        seen, sentences = self.observer, list[str]()
        for task, spec in sorted(self.deployed.items()):
            route, refused = seen.routes.get(task), seen.why_refused(spec)
            is_served = route is not None and route.complete and route.revision == spec.revision
            if deployed and not is_served:
                sentences.append(f"revision {spec.revision} of {task} is not served: {refused or 'it is loading'}")
            if not deployed and refused is None and spec.revision != self.first[task].revision:
                sentences.append(f"revision {spec.revision} of {task} is not refused")
        return sentences

    def troubles(self) -> list[str]:
        """A sentence for each process that ended by itself."""
        try:
            self.site.check()
        except SiteFailed as error:
            return [str(error)]
        return []

    def _start(self, stack: ExitStack) -> None:
        scenario = self._scenario
        if self._logs:
            self._logs.mkdir(parents=True, exist_ok=True)
        settings: tuple[str, ...] = ()
        if scenario.persistence:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="s2m3-retained-"))
            settings = (*PERSISTENCE, f"persistence_location {directory}/")
        beat_s = scenario.heartbeat_interval_s
        unshaped = dict.fromkeys([ORCHESTRATOR, *self.others], UNSHAPED)
        self.site = Site(
            self._broker,
            self._configs(),
            name="replay",
            links={each.id: _link_of(each) for each in scenario.fleet} | unshaped,
            absent=scenario.joining,
            heartbeat_interval_s=beat_s,
            mosquitto_settings=settings,
            logs=self._logs,
            spares=scenario.spares,
            inner_faults=scenario.inner_faults,
            supervised=scenario.supervised,
        )
        stack.enter_context(self.site)
        self.observer, self.client = self.site.observer, self.site.client
        prefix = self.observer.prefix
        self.tripwire = Tripwire(prefix)
        filters = [topic.filter(prefix) for topic in _FIELDS]
        stack.enter_context(connected(self.site.connection, self.tripwire.see, *filters))
        self.site.require(lambda seen: seen.leads, SERVE_S, "no orchestrator was online")
        for name in self.others:
            self.site.start_orchestrator(name)

    def _configs(self) -> list[AgentConfig]:
        """The agents' files."""
        scenario = self._scenario
        own = {"threads": THREADS, "heartbeat_interval_s": scenario.heartbeat_interval_s}
        own |= scenario.model_dump(include={"weights", "downloads"}, exclude_none=True)
        models = dict.fromkeys(("torch", "onnx"), scenario.models)
        if scenario.engine == "onnx" and scenario.models is None:
            models["onnx"] = str(exported(scenario.tasks, self._say))
        return [
            AgentConfig.model_validate(
                each.model_dump(exclude={"compute_flops_per_s"})
                | own
                | {"models": models[each.engine], "speed": _speed_of(each)}
            )
            for each in scenario.fleet
        ]

    @property
    def _present(self) -> set[DeviceId]:
        """The devices that are there at the beginning."""
        return set(self.site.devices) - self._scenario.joining

    def _all_beat(self, seen: Observer) -> bool:
        newest_s = time.monotonic() - DEAD_INTERVALS * self._scenario.heartbeat_interval_s
        beating = {s.id for s in reversed(seen.sightings) if s.at_s > newest_s and isinstance(s.message, Heartbeat)}
        online = {name for name, state in seen.devices.items() if state.status == "online"}
        return self._present <= beating & online and seen.leads

    def _served(self, seen: Observer) -> bool:
        routes = [seen.routes.get(spec.task) for spec in self.specs]
        epoch = seen.leader.epoch if seen.leader else 0
        return all(
            route and route.complete and route.epoch >= epoch and named(route) <= set(self.site.devices)
            for route in routes
        )

    def _stood_by(self, seen: Observer) -> bool:
        """Whether two devices that are always on have each module ready: a standby copy, or a replica in its place."""
        always = {name for name, state in seen.devices.items() if state.availability == "always"}
        ready = Counter(
            assigned.spec.key
            for device, assignment in seen.assignments.items()
            for assigned in assignment.modules
            if device in always and assigned.spec.key in seen.ready(device)
        )
        return all(ready[module.key] > 1 for spec in self.specs for module in spec.modules.values())

    def _settled(self, seen: Observer) -> bool:
        """Whether every device holds what it is assigned, and no assignment or route changed for a while."""
        for device, assignment in seen.assignments.items():
            if not {assigned.spec.key for assigned in assignment.modules} <= seen.ready(device):
                return False
        others = (s.at_s for s in seen.sightings if not isinstance(s.message, Heartbeat | Standing | TaskStatus))
        last_s = max(others, default=0.0)
        return time.monotonic() - last_s > SETTLED_INTERVALS * self._scenario.heartbeat_interval_s


def make_of(scenario: Scenario) -> tuple[object, ...]:
    """The settings with which the processes are started: scenarios of one make can share a site."""
    return tuple(getattr(scenario, name) for name in MAKE)


def _link_of(device: FleetDevice) -> LinkShape:
    """The link of a device, which has the same bandwidth in both directions."""
    bits_per_s = device.bandwidth_bits_per_s
    return LinkShape(delay_s=device.latency_s or 0.0, up_bits_per_s=bits_per_s, down_bits_per_s=bits_per_s)


def _speed_of(device: FleetDevice) -> float:
    """The share of this machine's speed that a device has: at most all of it."""
    if device.compute_flops_per_s is None:
        return device.speed
    return min(1.0, device.compute_flops_per_s / _own_flops_per_s(device.engine))


@cache
def _own_flops_per_s(engine: AgentEngine) -> float:
    from edge_agent.device.profile import compute_flops_per_s  # noqa: PLC0415 - torch, where a scenario needs it

    return compute_flops_per_s(engine=engine)


@contextmanager
def connected(connection: Connection, inbox: Inbox, *filters: str) -> Iterator[Transport]:
    """A connection to a broker, subscribed to these filters; the block begins when they are in force.

    Raises:
        SiteFailed: the broker can't be reached.
    """
    first: queue.SimpleQueue[LinkUp | LinkDown] = queue.SimpleQueue()

    def put(event: LinkEvent) -> None:
        if isinstance(event, LinkUp | LinkDown):
            first.put(event)
        inbox(event)

    transport = connect(connection, client_id=client_id_for(connection), inbox=put)
    try:
        transport.subscribe(*filters)
        transport.start()
        try:
            event = first.get(timeout=CONNECT_S)
        except queue.Empty:
            raise SiteFailed(f"{connection.url} doesn't answer within {CONNECT_S:g} s") from None
        if isinstance(event, LinkDown):
            raise SiteFailed(event.reason)
        yield transport
    finally:
        transport.close()
