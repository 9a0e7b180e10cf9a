"""A running site as an operator has it: the picture that its state topics give, and the operator's orders.

Owns the picture, the wait until it changes, and the orders: deploy or undeploy a task, drain a device. Shows only what
was really published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import structlog
from pydantic import BaseModel

from broker.protocol.codec import encode
from broker.protocol.errors import BrokerRefused, NotConnected, RemoteProtocolError
from broker.protocol.messages import MAX_EPOCH_JUMP, Assignment, DeviceState, Drain, Heartbeat, OrchestratorState, Route
from broker.protocol.reports import Standing, Summary, TaskStatus
from broker.protocol.specs import DeviceId, ModuleKey, TaskName, TaskSpec
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_DRAIN,
    DEVICE_HEARTBEAT,
    DEVICE_STANDING,
    DEVICE_STATE,
    DEVICE_SUMMARY,
    ORCHESTRATOR_QUARANTINE,
    ORCHESTRATOR_STATE,
    TASK_REVISION,
    TASK_ROUTE,
    TASK_SPEC,
    TASK_STATUS,
    Incoming,
    Topic,
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

log = structlog.get_logger()

CONNECT_S = 20.0  # longer than an attempt takes; it ends with a reason before
CONFIRM_S = 5.0
STALE_REFUSAL_S = 2.0  # the orchestrator decides within milliseconds; a refusal that stands this long is its word
MESSAGES = 100_000  # kept at most of a site: ten topics of 10,000 devices
MESSAGES_BYTES = 64 * 1024 * 1024  # 3,000 devices with their tasks have less than half of that
SIGHTINGS = 1_000_000  # kept at most, in some hundred megabytes: four days of three devices


@dataclass(frozen=True, slots=True)
class Sighting:
    """One state message that devices obey, or a device's standing, with the time it arrived here.

    A heartbeat that reports the same modules, in the same states, and the same suspects as the one before it of its
    device is kept as that earlier one, so that a long replay doesn't fill the memory.
    """

    at_s: float
    id: str  # of its device or task; "" for the orchestrator
    message: BaseModel | None  # None when its topic was cleared


class Observer:
    """A connection to a site. Call ``wait_for`` or ``look``; nothing changes in between.

    As a context manager it waits until the broker is reached and the subscriptions are in force. Only the topics of the
    connection's site count. With a ``task`` it sees that task's route only, as sensors may.

    Raises:
        NotConnected: the broker can't be reached when the ``with`` block starts.
        BrokerRefused: it refuses a subscription or, at any time, an order.

    Orders raise NotConnected if the broker doesn't confirm them.
    """

    def __init__(self, connection: Connection, *, task: TaskName | None = None) -> None:
        self.prefix = prefix_of(connection.site)
        self._broker = connection.url
        self.leader: OrchestratorState | None = None
        self.devices: dict[str, DeviceState] = {}
        self.heartbeats: dict[str, Heartbeat] = {}
        self.assignments: dict[str, Assignment] = {}
        self.routes: dict[str, Route] = {}
        self.standings: dict[str, Standing] = {}
        self.summaries: dict[str, Summary] = {}
        self.statuses: dict[str, TaskStatus] = {}  # of tasks
        self.drained: set[str] = set()  # devices that an operator takes out of service
        self.sightings: list[Sighting] = []
        self.left_out = 0  # messages that are too many, or have too many bytes
        self._sizes: dict[tuple[Topic, str], int] = {}  # of the messages that are kept
        self._kept_bytes = 0
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
        }
        self._mailbox: Mailbox[tuple[float, LinkEvent]] = Mailbox()
        self._up = False
        self._acknowledged: object = None  # the token of the last order that the broker has
        self._transport = connect(
            connection,
            client_id=client_id_for(connection),
            inbox=self._put,
            max_packet_bytes=MAX_CONTROL_PACKET_BYTES,
        )
        topics = (ORCHESTRATOR_STATE, DEVICE_DRAIN, *self._states, *self._reports)
        filters = (
            [topic.filter(self.prefix) for topic in topics] if task is None else [TASK_ROUTE.at(self.prefix, task=task)]
        )
        self._transport.subscribe(*filters)
        self._transport.start()

    @property
    def leads(self) -> bool:
        """Whether an orchestrator is online."""
        return self.leader is not None and self.leader.online

    def has_heartbeats(self, devices: Collection[str] | None = None) -> bool:
        """Whether each of these devices is online and sent a heartbeat; by default all (and at least one) online."""
        here = {name for name, state in self.devices.items() if state.status != "offline"}
        wanted = here if devices is None else set(devices)
        return bool(wanted) and wanted <= here & self.heartbeats.keys()

    def serves(self, tasks: Iterable[TaskName]) -> bool:
        """Whether each of these tasks has a complete route."""
        return all(task in self.routes and self.routes[task].complete for task in tasks)

    def ready(self, device: DeviceId) -> set[ModuleKey]:
        """The modules that a device reports as ready."""
        heartbeat = self.heartbeats.get(device)
        return {key for key, held in heartbeat.modules.items() if held.state == "ready"} if heartbeat else set()

    def wait_for(self, holds: Callable[[Self], bool], timeout_s: float) -> bool:
        """Look until something holds, or the time is over; returns whether it holds."""
        until_s = time.monotonic() + timeout_s
        while not holds(self):
            remaining_s = until_s - time.monotonic()
            if remaining_s <= 0:
                return False
            if item := self._mailbox.get(remaining_s):
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
        """Publish all tasks' specs, then wait until each task is served or refused.

        Returns:
            Each task's route: complete, or with the reason why it is unavailable; None when the time was over first.
        """
        until_s = time.monotonic() + timeout_s
        known = {spec.task: self.routes.get(spec.task) for spec in specs}
        self._ordered |= known.keys()
        for spec in specs:
            self._order(TASK_SPEC.at(self.prefix, task=spec.task), encode(spec))
        return {spec.task: self._outcome(spec, known[spec.task], until_s) for spec in specs}

    def undeploy(self, task: TaskName, timeout_s: float) -> bool:
        """Clear a task's spec and wait until its route is gone; returns whether it is."""
        self._order(TASK_SPEC.at(self.prefix, task=task))
        return self.wait_for(lambda seen: task not in seen.routes, timeout_s)

    def set_drain(self, device: DeviceId, *, drain: bool) -> None:
        """Order a device out of service, or back."""
        self._order(DEVICE_DRAIN.at(self.prefix, device=device), encode(Drain(drain=True)) if drain else b"")

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
            self._retain(topic.at(self.prefix))
        for task in self._ordered | self.routes.keys():
            self._retain(TASK_SPEC.at(self.prefix, task=task))
            self._retain(TASK_ROUTE.at(self.prefix, task=task))
            for revision in self.statuses[task].revisions if task in self.statuses else ():
                self._retain(TASK_REVISION.at(self.prefix, task=task, revision=revision))
            self._retain(TASK_STATUS.at(self.prefix, task=task))
        for device in devices:
            for topic in (DEVICE_STATE, DEVICE_ASSIGNMENT, DEVICE_DRAIN, DEVICE_STANDING, DEVICE_SUMMARY):
                self._retain(topic.at(self.prefix, device=device))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._transport.close)
            if not self.wait_for(lambda _: self._up, CONNECT_S):
                raise NotConnected(f"no broker answers at {self._broker} within {CONNECT_S:g} s")
            stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._transport.close()  # what was published is sent first

    def _retain(self, topic: str, payload: bytes = b"") -> None:
        self._transport.publish(Outgoing(topic, payload, retain=True))

    def _order(self, topic: str, payload: bytes = b"") -> None:
        """Publish a retained message, and wait until the broker has it."""
        token = object()
        self._transport.publish(Outgoing(topic, payload, retain=True, token=token, confirm=True))
        if not self.wait_for(lambda _: self._acknowledged is token, CONFIRM_S):
            raise NotConnected(f"the broker did not confirm {topic}: try again")

    def _outcome(self, spec: TaskSpec, known: Route | None, until_s: float) -> Route | None:
        """The task's route when it is served or refused; a refusal that is ``known`` must stand for a while."""

        def decided(seen: Observer, *, by_known: bool) -> bool:
            route = seen.routes.get(spec.task)
            if route is not None and route.unavailable is not None:
                return by_known or route is not known
            return route is not None and route.complete and _serves(route, spec)

        self.wait_for(partial(decided, by_known=False), min(until_s - time.monotonic(), STALE_REFUSAL_S))
        done = self.wait_for(partial(decided, by_known=True), until_s - time.monotonic())
        return self.routes[spec.task] if done else None

    def _put(self, event: LinkEvent) -> None:
        size_bytes = len(event.payload) if isinstance(event, Delivery) else 0
        self._mailbox.put_control((time.monotonic(), event), size_bytes)

    def _see(self, at_s: float, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            self._up = True
        if isinstance(event, LinkDown) and not self._up:
            start_one = ": start a broker (`s2m3 broker`), or name another one with --broker"
            raise NotConnected(event.reason + start_one * (event.cause == "absent"))
        if isinstance(event, Acknowledged):
            self._acknowledged = event.token
        if isinstance(event, Denied):
            raise BrokerRefused(event.topic, event.reason)
        if isinstance(event, Delivery):
            incoming = read(self.prefix, event.topic, event.payload, retained=event.retain)
            try:
                if incoming is not None:
                    self._note(at_s, incoming)
            except RemoteProtocolError as error:
                log.warning("message_refused", topic=event.topic, error=str(error))

    def _note(self, at_s: float, incoming: Incoming) -> None:
        topic, message = incoming.topic, incoming.decode()
        name = next(iter(incoming.ids.values()), "")
        if not self._has_room(topic, name, len(incoming.payload)):
            self.left_out += 1
            return
        if topic is DEVICE_DRAIN:
            drains = isinstance(message, Drain) and message.drain
            (self.drained.add if drains else self.drained.discard)(name)
            return
        if topic in self._reports:
            self._reports[topic].pop(name, None)
            self._reports[topic] |= {name: message} if message else {}
            if topic is DEVICE_STANDING:
                self._keep(at_s, name, message)
            return
        if topic is ORCHESTRATOR_STATE:
            self.leader = message if isinstance(message, OrchestratorState) else None
        elif message is None:
            self._states[topic].pop(name, None)
        elif _is_stale(message, self._states[topic].get(name)):
            return
        else:
            self._states[topic][name] = message
        self._keep(at_s, name, message)

    def _has_room(self, topic: Topic, name: str, size_bytes: int) -> bool:
        """Whether a message can be kept, in place of an earlier one of the same topic."""
        before = self._sizes.get((topic, name), 0)
        is_one_more = not before and len(self._sizes) >= MESSAGES
        if size_bytes > before and (is_one_more or self._kept_bytes - before + size_bytes > MESSAGES_BYTES):
            return False
        self._kept_bytes += size_bytes - before
        self._sizes[topic, name] = size_bytes
        if not size_bytes:
            del self._sizes[topic, name]
        return True

    def _keep(self, at_s: float, name: str, message: BaseModel | None) -> None:
        if isinstance(message, Heartbeat):
            before = self._last_kept.get(name)
            if before is not None and _summary(before) == _summary(message):
                message = before
            self._last_kept[name] = message
        self.sightings.append(Sighting(at_s, name, message))
        if len(self.sightings) > SIGHTINGS:
            del self.sightings[: SIGHTINGS // 2]


def named(route: Route) -> set[DeviceId]:
    """The devices that a route leads to."""
    return {device.device for node in route.nodes.values() for device in node.devices} | set(route.front_door)


def _serves(route: Route, spec: TaskSpec) -> bool:
    """Whether a route is for this spec, not for an older one of the same name."""
    wanted = {name: (spec.module_of(name).key, node.needs, node.use) for name, node in spec.nodes.items()}
    given = {name: (node.key, node.needs, node.use) for name, node in route.nodes.items()}
    return given == wanted and route.wire == spec.wire


def _summary(heartbeat: Heartbeat) -> object:
    """The part of a heartbeat that a replay looks at."""
    held = {key: (each.module, each.state, each.load_s, each.error) for key, each in heartbeat.modules.items()}
    return held, set(heartbeat.suspects), heartbeat.session, heartbeat.epoch, heartbeat.generation


def _is_stale(message: BaseModel, known: BaseModel | None) -> bool:
    """Whether no device obeys it: it is older than the known one, or of an epoch that no leader can have come to."""
    if not isinstance(message, (Route, Assignment)):
        return False
    if not isinstance(known, (Route, Assignment)):
        return message.epoch > MAX_EPOCH_JUMP
    if message.epoch > known.epoch + MAX_EPOCH_JUMP:
        return True
    return (message.epoch, message.generation) < (known.epoch, known.generation)
