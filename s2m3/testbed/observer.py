"""A read-only picture of a running site as an operator sees it, built from its state topics.

Owns the picture and the wait until it changes. Decides nothing, and shows only what was really published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Self

import structlog
from pydantic import BaseModel

from broker.protocol.errors import RemoteProtocolError
from broker.protocol.messages import Assignment, DeviceState, Drain, Heartbeat, OrchestratorState, Route
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_DRAIN,
    DEVICE_HEARTBEAT,
    DEVICE_STATE,
    ORCHESTRATOR_STATE,
    TASK_ROUTE,
    Topic,
    prefix_of,
    read,
)
from broker.transport.connect import connect
from broker.transport.mailbox import Mailbox
from broker.transport.port import Delivery, LinkEvent, LinkUp, Outgoing

log = structlog.get_logger()

SIGHTINGS = 1_000_000  # kept at most, in some hundred megabytes: four days of three devices


@dataclass(frozen=True, slots=True)
class Sighting:
    """One state message, with the time it arrived here.

    A heartbeat that reports the same modules, in the same states, and the same suspects as the one before it of its
    device is kept as that earlier one, so that a long replay doesn't fill the memory.
    """

    at_s: float
    id: str  # of its device or task; "" for the orchestrator
    message: BaseModel | None  # None when its topic was cleared


class Observer:
    """A connection that listens to a site. Call ``wait_for`` or ``look``; nothing changes in between.

    Args:
        url: the broker.
        site: the site's topic prefix, when it has one.
        client_id: its name at the broker.
    """

    def __init__(self, url: str, *, client_id: str, site: str | None = None) -> None:
        self.prefix = prefix_of(site)
        self.leader: OrchestratorState | None = None
        self.devices: dict[str, DeviceState] = {}
        self.heartbeats: dict[str, Heartbeat] = {}
        self.assignments: dict[str, Assignment] = {}
        self.routes: dict[str, Route] = {}
        self.drained: set[str] = set()  # devices that an operator takes out of service
        self.sightings: list[Sighting] = []
        self._last_kept: dict[str, Heartbeat] = {}
        self._states: dict[Topic, dict[str, Any]] = {
            DEVICE_STATE: self.devices,
            DEVICE_HEARTBEAT: self.heartbeats,
            DEVICE_ASSIGNMENT: self.assignments,
            TASK_ROUTE: self.routes,
        }
        self._mailbox: Mailbox[tuple[float, LinkEvent]] = Mailbox()
        self._up = False
        self._transport = connect(url, client_id=client_id, inbox=self._put)
        topics = (ORCHESTRATOR_STATE, DEVICE_DRAIN, *self._states)
        self._transport.subscribe(*(topic.filter(self.prefix) for topic in topics))
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

    def publish(self, message: Outgoing) -> None:
        """Publish for the operator: a task's spec, or the clearing of a retained topic."""
        self._transport.publish(message)

    def connected(self, timeout_s: float) -> bool:
        """Wait until the broker is reached and the subscriptions are in force."""
        return self.wait_for(lambda _: self._up, timeout_s)

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

    def close(self) -> None:
        """Disconnect; what was published is sent first."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _put(self, event: LinkEvent) -> None:
        self._mailbox.put_control((time.monotonic(), event))

    def _see(self, at_s: float, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            self._up = True
        if not isinstance(event, Delivery):
            return
        try:
            self._note(at_s, event)
        except RemoteProtocolError as error:
            log.warning("message_refused", topic=event.topic, error=str(error))

    def _keep(self, at_s: float, name: str, message: BaseModel | None) -> None:
        if isinstance(message, Heartbeat):
            before = self._last_kept.get(name)
            if before is not None and _summary(before) == _summary(message):
                message = before
            self._last_kept[name] = message
        self.sightings.append(Sighting(at_s, name, message))
        if len(self.sightings) > SIGHTINGS:
            del self.sightings[: SIGHTINGS // 2]

    def _note(self, at_s: float, delivery: Delivery) -> None:
        incoming = read(self.prefix, delivery.topic, delivery.payload)
        if incoming is None:
            return
        topic, message = incoming.topic, incoming.decode()
        name = next(iter(incoming.ids.values()), "")
        if topic is DEVICE_DRAIN:
            drains = isinstance(message, Drain) and message.drain
            (self.drained.add if drains else self.drained.discard)(name)
            return
        self._keep(at_s, name, message)
        if topic is ORCHESTRATOR_STATE:
            self.leader = message if isinstance(message, OrchestratorState) else None
        elif message is None:
            self._states[topic].pop(name, None)
        elif not _is_stale(message, self._states[topic].get(name)):
            self._states[topic][name] = message


def _summary(heartbeat: Heartbeat) -> object:
    """The part of a heartbeat that a replay looks at."""
    held = {key: (each.module, each.state, each.load_s, each.error) for key, each in heartbeat.modules.items()}
    return held, set(heartbeat.suspects), heartbeat.session, heartbeat.epoch, heartbeat.generation


def _is_stale(message: BaseModel, known: BaseModel | None) -> bool:
    """Whether it is of an older epoch or generation than the known one, so that no device obeys it."""
    if not isinstance(message, (Route, Assignment)) or not isinstance(known, (Route, Assignment)):
        return False
    return (message.epoch, message.generation) < (known.epoch, known.generation)
