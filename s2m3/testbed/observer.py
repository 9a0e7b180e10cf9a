"""A running site as an operator has it: the picture that its state topics give, and the operator's orders.

Owns the picture, the wait until it changes, and the orders: deploy or undeploy a task, drain a device. Shows only what
was really published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import structlog
from pydantic import BaseModel

from broker.protocol.codec import encode
from broker.protocol.errors import BrokerRefused, NotConnected, RemoteProtocolError
from broker.protocol.messages import Assignment, DeviceState, Drain, Heartbeat, OrchestratorState, Route
from broker.protocol.reports import Standing, Summary, TaskStatus, UnansweredRequests
from broker.protocol.sources import SourceAnswer, SourcesRunning, SourcesSpare, SourcesState
from broker.protocol.specs import DeviceId, ModuleKey, Revision, TaskName, TaskSpec
from broker.protocol.topics import (
    BRIDGE_STATE,
    DEVICE_ASSIGNMENT,
    DEVICE_DRAIN,
    DEVICE_FORGET,
    DEVICE_HEARTBEAT,
    DEVICE_STANDING,
    DEVICE_STATE,
    DEVICE_SUMMARY,
    IS_UP,
    OF_A_DEVICE,
    ORCHESTRATOR_QUARANTINE,
    ORCHESTRATOR_STATE,
    ORCHESTRATOR_UNANSWERED,
    SOURCE_ANSWER,
    SOURCES_RUNNING,
    SOURCES_SPARE,
    SOURCES_STATE,
    TASK_REVISION,
    TASK_ROUTE,
    TASK_SPEC,
    TASK_STATUS,
    Incoming,
    Topic,
    is_at_core,
    prefix_of,
    read,
)
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection
from broker.transport.mailbox import Mailbox
from broker.transport.port import (
    MAX_CONTROL_PACKET_BYTES,
    Acknowledged,
    Delivery,
    Denied,
    LinkDown,
    LinkEvent,
    LinkUp,
    Outgoing,
)
from s2m3.message_room import MessageRoom
from s2m3.testbed.sightings import Sighting, replaces_nothing, serves, summary_of

log = structlog.get_logger()

_OTHER_ACCOUNT = "this account may not: use an operator's, such as clients/operator of a site's setup"
CONNECT_S = 20.0  # longer than an attempt takes; it ends with a reason before
CONFIRM_S = 5.0
FORGET_AGAIN_S = 2.0  # a leader that has just begun hears orders that aren't retained only after its connection
STALE_REFUSAL_S = 2.0  # the orchestrator decides within milliseconds; a refusal that stands this long is its word
OF_SOURCES = (SOURCES_STATE, SOURCES_RUNNING, SOURCES_SPARE, SOURCE_ANSWER)
LATER = (ORCHESTRATOR_UNANSWERED, TASK_SPEC, *OF_SOURCES)  # an old site's rules for an operator may lack these
LOOK_S = 0.25  # between two looks of one that waits, at most; more is time in which its process stood still
SIGHTINGS = 1_000_000  # kept at most, in some hundred megabytes: four days of three devices

UNDEPLOYED: Revision = ""
"""In place of a revision: the task's spec was cleared."""
Known = tuple[Route | None, TaskStatus | None]
"""The words of a site about a task before an order."""


class Observer:
    """A connection to a site. Call ``wait_for`` or ``look``; nothing changes in between.

    As a context manager it waits until the broker is reached and the subscriptions are in force. Only the topics of the
    connection's site count; with ``sources`` it sees these, too. At a core it sees of a site what the site's bridge
    carries, and whether the bridge is up.

    Raises:
        NotConnected: the broker can't be reached when the ``with`` block starts.
        BrokerRefused: it refuses a subscription or, at any time, an order.

    Orders raise NotConnected if the broker doesn't confirm them.
    """

    def __init__(self, connection: Connection, *, sources: bool = False) -> None:
        self.prefix = prefix_of(connection.site)
        self.is_at_core = is_at_core(self.prefix)
        self._broker = connection.url
        self.leader: OrchestratorState | None = None
        self.bridge: bool | None = None  # whether a site's bridge to this core is up; None for one that isn't bridged
        self.devices: dict[str, DeviceState] = {}
        self.heartbeats: dict[str, Heartbeat] = {}
        self.assignments: dict[str, Assignment] = {}
        self.routes: dict[str, Route] = {}
        self.standings: dict[str, Standing] = {}
        self.summaries: dict[str, Summary] = {}
        self.statuses: dict[str, TaskStatus] = {}  # of tasks
        self.unanswered: dict[str, UnansweredRequests] = {}  # at names that no task has; at most one message, named ""
        self.sources_state: dict[str, SourcesState] = {}  # of the process that runs the sources; one, named ""
        self.sources_running: dict[str, SourcesRunning] = {}  # likewise
        self.sources_spare: dict[str, SourcesSpare] = {}  # likewise
        self.source_answers: dict[str, SourceAnswer] = {}  # by source
        self.specs: dict[tuple[TaskName, Revision], TaskSpec] = {}  # of the task whose ``revisions`` were asked for
        self.orders: dict[
            TaskName, list[Revision | None]
        ] = {}  # of followed tasks: the newest last; None: a wrong spec
        self.drained: set[str] = set()  # devices that an operator takes out of service
        self.sightings: list[Sighting] = []
        self.left_out = 0  # messages that are too many, or have too many bytes
        self._room = MessageRoom()  # for the messages that are kept
        self._ordered: set[TaskName] = set()  # tasks that were deployed by this observer
        self._last_kept: dict[str, Heartbeat] = {}
        self._states: dict[Topic, dict[str, Any]] = {
            DEVICE_STATE: self.devices,
            DEVICE_HEARTBEAT: self.heartbeats,
            DEVICE_ASSIGNMENT: self.assignments,
            TASK_ROUTE: self.routes,
        }
        self._reports: dict[Topic, dict[str, Any]] = {
            DEVICE_STANDING: self.standings,
            DEVICE_SUMMARY: self.summaries,
            TASK_STATUS: self.statuses,
            ORCHESTRATOR_UNANSWERED: self.unanswered,
            SOURCES_STATE: self.sources_state,
            SOURCES_RUNNING: self.sources_running,
            SOURCES_SPARE: self.sources_spare,
            SOURCE_ANSWER: self.source_answers,
        }
        self._mailbox: Mailbox[tuple[float, LinkEvent]] = Mailbox()
        self._up = False
        self.max_packet_bytes: int | None = None  # of the broker, if it states a limit
        self._acknowledged: object = None  # the token of the last order that the broker has
        self._transport = connect(
            connection,
            client_id=client_id_for(connection),
            inbox=self._put,
            max_packet_bytes=MAX_CONTROL_PACKET_BYTES,
        )
        reports = [topic for topic in self._reports if sources or topic not in OF_SOURCES]
        topics = (ORCHESTRATOR_STATE, DEVICE_DRAIN, *self._states, *reports)
        topics += (BRIDGE_STATE,) if self.is_at_core else ()
        self._transport.subscribe(*(topic.filter(self.prefix) for topic in topics))
        self._transport.start()

    @property
    def leads(self) -> bool:
        """Whether an orchestrator is online."""
        return self.leader is not None and self.leader.online

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker now."""
        return self._transport.connected

    def has_heartbeats(self, devices: Collection[str] | None = None) -> bool:
        """Whether each of these devices is online and sent a heartbeat; by default all (and at least one) online."""
        here = {name for name, state in self.devices.items() if state.status != "offline"}
        wanted = here if devices is None else set(devices)
        return bool(wanted) and wanted <= here & self.heartbeats.keys()

    def has_a_device(self) -> bool:
        """Whether a device can get modules now, as its heartbeat or its leader says."""
        return self.has_heartbeats() or any(each.standing == "online" for each in self.standings.values())

    def serves(self, tasks: Iterable[TaskName]) -> bool:
        """Whether each of these tasks has a complete route."""
        return all(task in self.routes and self.routes[task].complete for task in tasks)

    def ready(self, device: DeviceId) -> set[ModuleKey]:
        """The modules that a device reports as ready."""
        heartbeat = self.heartbeats.get(device)
        return {key for key, held in heartbeat.modules.items() if held.state == "ready"} if heartbeat else set()

    def wait_for(self, holds: Callable[[Self], bool], timeout_s: float) -> bool:
        """Look until something holds, or the time is over; returns whether it holds.

        What arrived in time counts, also where this process was too slow to look at it; and time in which it stood
        still doesn't count.
        """
        looked_s, left_s = time.monotonic(), timeout_s
        while not holds(self):
            now_s = time.monotonic()
            left_s, looked_s = left_s - min(now_s - looked_s, LOOK_S), now_s
            if left_s <= 0:
                self.look()
                return holds(self)
            if item := self._mailbox.get(min(left_s, LOOK_S)):
                self._see(*item)
        return True

    def listen(self, for_s: float) -> None:
        """Take in what arrives during this time."""
        self.wait_for(lambda _: False, for_s)

    def look(self) -> None:
        """Take in what has already arrived."""
        while item := self._mailbox.get(0.0):
            self._see(*item)

    def deploy(self, specs: Sequence[TaskSpec], timeout_s: float) -> dict[TaskName, Route | None]:
        """Publish all tasks' specs, then wait until each revision is served or refused.

        Returns:
            Each task's route: complete, or with the reason why it is unavailable; None when the time was over first, or
            when the revision was refused beside an older one that is served on (``why_refused``).
        """
        until_s = time.monotonic() + timeout_s
        known = {spec.task: self.known(spec.task) for spec in specs}
        for spec in specs:
            self.publish(spec)
        return {spec.task: self.outcome(spec, known[spec.task], until_s) for spec in specs}

    def known(self, task: TaskName) -> Known:
        """The words of the site about a task so far."""
        return self.routes.get(task), self.statuses.get(task)

    def publish(self, spec: TaskSpec) -> None:
        """Deploy a task, and wait until the broker has its spec."""
        self._ordered.add(spec.task)
        self._order(TASK_SPEC.at(self.prefix, task=spec.task), encode(spec))

    def follow(self, task: TaskName) -> None:
        """See the orders about a task, too."""
        if task not in self.orders:
            self.orders[task] = []
            self._transport.subscribe(TASK_SPEC.at(self.prefix, task=task))

    def follow_all(self) -> None:
        """See the orders about all tasks, too; not at a core, where a site has no own ones."""
        if not self.is_at_core:
            self._transport.subscribe(TASK_SPEC.filter(self.prefix))

    @property
    def unread(self) -> dict[TaskName, Revision]:
        """The deployed revisions of followed tasks that no orchestrator has read; none while one leads."""
        newest = {task: orders[-1] for task, orders in self.orders.items() if orders[-1:] and not self.leads}
        return {
            task: revision
            for task, revision in sorted(newest.items())
            if revision and (task not in self.statuses or self.statuses[task].revisions[:1] != (revision,))
        }

    def is_overtaken(self, spec: TaskSpec) -> bool:
        """Whether a followed task got another order after this spec."""
        orders = self.orders.get(spec.task, [])
        return spec.revision in orders and orders[-1] != spec.revision

    def is_deployed(self, task: TaskName) -> bool:
        """Whether the broker has a spec of a followed task, or a route of any."""
        return task in self.routes or self.orders.get(task, [])[-1:] not in ([], [UNDEPLOYED])

    def has_current(self, task: TaskName) -> bool:
        """Whether the status of a followed task is that of its last order and of its route, or is gone.

        It comes up to a second after them.
        """
        status, route, orders = self.statuses.get(task), self.routes.get(task), self.orders[task]
        if status is None:
            return True
        if not orders or status.revision != (route.revision if route is not None and route.complete else None):
            return False
        if orders[-1] is None:
            return status.candidate is not None and status.candidate.revision is None
        return status.revisions[:1] == (orders[-1],)

    def why_refused(self, spec: TaskSpec) -> str | None:
        """The reason why a deployed revision isn't served beside an older one; None if it isn't refused."""
        status = self.statuses.get(spec.task)
        candidate = status.candidate if status else None
        if candidate is None or candidate.state != "refused" or candidate.revision not in {None, spec.revision}:
            return None
        return candidate.why or "no reason is given"

    def revisions(self, task: TaskName, timeout_s: float) -> dict[Revision, TaskSpec]:
        """The specs of a task's last revisions that the broker has, newest first."""
        self._transport.subscribe(TASK_REVISION.filter(self.prefix, task=task))
        listed = self.statuses[task].revisions if task in self.statuses else ()
        self.wait_for(lambda seen: seen.specs.keys() >= {(task, revision) for revision in listed}, timeout_s)
        return {revision: self.specs[task, revision] for revision in listed if (task, revision) in self.specs}

    def undeploy(self, task: TaskName, timeout_s: float) -> bool:
        """Clear a task's spec and wait until its route is gone; returns whether it is."""
        self.clear_spec(task)
        return self.wait_for(lambda seen: task not in seen.routes, timeout_s)

    def clear_spec(self, task: TaskName) -> None:
        """Undeploy a task, and wait until the broker has forgotten its spec."""
        self._order(TASK_SPEC.at(self.prefix, task=task))

    def set_drain(self, device: DeviceId, *, drain: bool) -> None:
        """Order a device out of service, or back."""
        self._order(DEVICE_DRAIN.at(self.prefix, device=device), encode(Drain(drain=True)) if drain else b"")

    def forget(self, device: DeviceId, timeout_s: float) -> bool:
        """Have a device forgotten, and wait until nothing is retained of it; returns whether it is so."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            self._order(DEVICE_FORGET.at(self.prefix, device=device), retain=False)
            if self.wait_for(lambda seen: not seen.knows(device), min(FORGET_AGAIN_S, until_s - time.monotonic())):
                return True
        return False

    def knows(self, device: DeviceId) -> bool:
        """Whether the broker retains anything of a device."""
        kept = (self.devices, self.assignments, self.standings, self.summaries, self.drained)
        return any(device in each for each in kept)

    def is_empty(self, device: DeviceId) -> bool:
        """Whether a device holds nothing, need hold nothing, and no route names it."""
        state, assignment = self.devices.get(device), self.assignments.get(device)
        if assignment and assignment.modules:
            return False
        if state is not None and state.status != "offline":
            heartbeat = self.heartbeats.get(device)
            if heartbeat is None or heartbeat.modules:
                return False
        return not any(device in named(route) | set(route.second_door) for route in self.routes.values())

    def clear(self, devices: Sequence[DeviceId]) -> None:
        """Clear everything that these devices, the orchestrator and the tasks retained at the broker."""
        self.look()
        for topic in (ORCHESTRATOR_STATE, ORCHESTRATOR_QUARANTINE):
            self._clear(topic.at(self.prefix))
        for task in self._ordered | self.routes.keys():
            self._clear(TASK_SPEC.at(self.prefix, task=task))
            self._clear(TASK_ROUTE.at(self.prefix, task=task))
            for revision in self.statuses[task].revisions if task in self.statuses else ():
                self._clear(TASK_REVISION.at(self.prefix, task=task, revision=revision))
            self._clear(TASK_STATUS.at(self.prefix, task=task))
        for device in devices:
            for topic in OF_A_DEVICE:
                self._clear(topic.at(self.prefix, device=device))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._transport.close)
            if not self.wait_for(lambda _: self._up, CONNECT_S):
                raise NotConnected(f"no broker answers at {self._broker} within {CONNECT_S:g} s", is_absent=True)
            stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._transport.close()  # what was published is sent first

    def _clear(self, topic: str) -> None:
        self._transport.publish(Outgoing(topic, b"", retain=True))

    def _order(self, topic: str, payload: bytes = b"", *, retain: bool = True) -> None:
        """Publish a message, and wait until the broker has it."""
        token = object()
        self._transport.publish(Outgoing(topic, payload, retain=retain, token=token, confirm=True))
        if not self.wait_for(lambda _: self._acknowledged is token, CONFIRM_S):
            raise NotConnected(f"the broker did not confirm {topic}: try again")

    def outcome(self, spec: TaskSpec, known: Known, until_s: float) -> Route | None:
        """The task's route when it is served or refused; a refusal that is ``known`` must stand for a while."""

        def decided(seen: Observer, *, by_known: bool) -> bool:
            route = seen.routes.get(spec.task)
            if seen.is_overtaken(spec):
                return True
            if seen.why_refused(spec) is not None:
                return by_known or seen.statuses[spec.task] is not known[1]
            if route is not None and route.unavailable is not None:
                return route.revision in {None, spec.revision} and (by_known or route is not known[0])
            return route is not None and route.complete and serves(route, spec)

        self.wait_for(partial(decided, by_known=False), min(until_s - time.monotonic(), STALE_REFUSAL_S))
        done = self.wait_for(partial(decided, by_known=True), until_s - time.monotonic())
        return self.routes.get(spec.task) if done and self.why_refused(spec) is None else None

    def _put(self, event: LinkEvent) -> None:
        size_bytes = len(event.payload) if isinstance(event, Delivery) else 0
        self._mailbox.put_control((time.monotonic(), event), size_bytes)

    def _see(self, at_s: float, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            self._up, self.max_packet_bytes = True, event.max_packet_bytes
        if isinstance(event, LinkDown) and not self._up:
            raise NotConnected(event.reason, is_absent=event.cause == "absent")
        if isinstance(event, Acknowledged):
            self._acknowledged = event.token
        if isinstance(event, Denied) and event.topic not in {topic.filter(self.prefix) for topic in LATER}:
            raise BrokerRefused(event.topic, event.reason, _OTHER_ACCOUNT)
        if isinstance(event, Delivery):
            incoming = read(self.prefix, event.topic, event.payload, retained=event.retain)
            try:
                if incoming is not None:
                    self._note(at_s, incoming)
            except RemoteProtocolError as error:
                log.warning("message_refused", topic=event.topic, error=str(error))

    def _note(self, at_s: float, incoming: Incoming) -> None:
        if incoming.topic is TASK_SPEC:
            self._note_order(incoming)
            return
        topic, message = incoming.topic, incoming.decode()
        name = "/".join(incoming.ids.values())
        if not self._room.take(topic, name, len(incoming.payload)):
            self.left_out += 1
            return
        if topic in {BRIDGE_STATE, DEVICE_DRAIN, TASK_REVISION}:
            self._note_other(incoming, message, name)
            return
        if topic in self._reports:
            self._reports[topic].pop(name, None)
            self._reports[topic] |= {name: message} if message else {}
            if topic in {DEVICE_STANDING, TASK_STATUS}:
                self._keep(at_s, name, message)
            return
        if topic is ORCHESTRATOR_STATE:
            self.leader = message if isinstance(message, OrchestratorState) else None
        elif message is None:
            self._cleared(topic, name)
        elif replaces_nothing(message, self._states[topic].get(name), self.leader):
            return
        else:
            self._states[topic][name] = message
        self._keep(at_s, name, message)

    def _note_order(self, incoming: Incoming) -> None:
        try:
            spec = incoming.decode()
        except RemoteProtocolError:
            spec = None
        order = spec.revision if isinstance(spec, TaskSpec) else None if incoming.payload else UNDEPLOYED
        self.orders.setdefault(incoming.ids["task"], []).append(order)

    def _note_other(self, incoming: Incoming, message: BaseModel | None, name: str) -> None:
        if incoming.topic is BRIDGE_STATE:
            self.bridge = incoming.payload == IS_UP if incoming.payload else None
        elif incoming.topic is DEVICE_DRAIN:
            drains = isinstance(message, Drain) and message.drain
            (self.drained.add if drains else self.drained.discard)(name)
        elif isinstance(message, TaskSpec):
            self.specs[message.task, incoming.ids["revision"]] = message

    def _cleared(self, topic: Topic, name: str) -> None:
        self._states[topic].pop(name, None)
        if topic is DEVICE_STATE:  # the device is forgotten
            self.heartbeats.pop(name, None)

    def _keep(self, at_s: float, name: str, message: BaseModel | None) -> None:
        if isinstance(message, Heartbeat):
            before = self._last_kept.get(name)
            if before is not None and summary_of(before) == summary_of(message):
                message = before
            self._last_kept[name] = message
        self.sightings.append(Sighting(at_s, name, message))
        if len(self.sightings) > SIGHTINGS:
            del self.sightings[: SIGHTINGS // 2]


def named(route: Route) -> set[DeviceId]:
    """The devices that a route leads to."""
    return {device.device for node in route.nodes.values() for device in node.devices} | set(route.front_door)
