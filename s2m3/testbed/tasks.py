"""An operator's orders: deploy or undeploy a task, drain a device; and the wait until they are carried out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from broker.protocol.codec import encode
from broker.protocol.errors import NotConnected
from broker.protocol.messages import Drain, Route
from broker.protocol.specs import DeviceId, TaskName, TaskSpec
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_DRAIN,
    DEVICE_STATE,
    ORCHESTRATOR_STATE,
    TASK_ROUTE,
    TASK_SPEC,
)
from broker.transport.port import Outgoing
from s2m3.testbed.observer import Observer

CONNECT_S = 5.0
STALE_REFUSAL_S = 2.0  # the orchestrator decides within milliseconds; a refusal that stands this long is its word


def connect(observer: Observer, url: str) -> None:
    """Wait for the broker.

    Raises:
        NotConnected: it can't be reached.
    """
    if not observer.connected(CONNECT_S):
        raise NotConnected(f"no broker answers at {url}: start one (`s2m3 broker`), or name it with --broker")


def deploy(observer: Observer, specs: Sequence[TaskSpec], timeout_s: float) -> dict[TaskName, Route | None]:
    """Publish all tasks' specs, then wait until each task is served or refused.

    Returns:
        Each task's route: complete, or with the reason why it is unavailable; None when the time was over first.
    """
    until_s = time.monotonic() + timeout_s
    known = {spec.task: observer.routes.get(spec.task) for spec in specs}
    for spec in specs:
        observer.publish(Outgoing(TASK_SPEC.at(observer.prefix, task=spec.task), encode(spec), retain=True))
    return {spec.task: _outcome(observer, spec, known[spec.task], until_s) for spec in specs}


def _outcome(observer: Observer, spec: TaskSpec, known: Route | None, until_s: float) -> Route | None:
    def route() -> Route | None:
        return observer.routes.get(spec.task)

    def served() -> bool:
        found = route()
        return found is not None and found.complete and _serves(found, spec)

    def refused() -> bool:
        found = route()
        return found is not None and found.unavailable is not None

    remaining_s = max(0.0, until_s - time.monotonic())
    observer.wait_for(lambda _: served() or (refused() and route() is not known), min(remaining_s, STALE_REFUSAL_S))
    if not refused():
        observer.wait_for(lambda _: served() or refused(), max(0.0, until_s - time.monotonic()))
    return route() if served() or refused() else None


def undeploy(observer: Observer, task: str, timeout_s: float) -> bool:
    """Clear a task's spec and wait until its route is gone; says whether it is."""
    observer.publish(Outgoing(TASK_SPEC.at(observer.prefix, task=task), b"", retain=True))
    return observer.wait_for(lambda seen: task not in seen.routes, timeout_s)


def set_drain(observer: Observer, device: DeviceId, *, drain: bool) -> None:
    """Order a device out of service, or back."""
    topic = DEVICE_DRAIN.at(observer.prefix, device=device)
    observer.publish(Outgoing(topic, encode(Drain(drain=True)) if drain else b"", retain=True))


def is_empty(observer: Observer, device: DeviceId) -> bool:
    """Whether a device holds nothing, need hold nothing, and no route names it."""
    state, assignment = observer.devices.get(device), observer.assignments.get(device)
    if assignment and assignment.modules:
        return False
    if state is not None and state.status != "offline":
        heartbeat = observer.heartbeats.get(device)
        if heartbeat is None or heartbeat.modules:
            return False
    return not any(
        device in route.front_door + route.second_door
        or any(able.device == device for node in route.nodes.values() for able in node.devices)
        for route in observer.routes.values()
    )


def clear(observer: Observer, devices: Sequence[DeviceId], tasks: Sequence[TaskName]) -> None:
    """Clear everything that a site with these devices and tasks retained, so that nothing of it stays at the broker."""
    observer.look()
    prefix = observer.prefix
    topics = [ORCHESTRATOR_STATE.at(prefix)]
    for task in {*observer.routes, *tasks}:
        topics += [TASK_SPEC.at(prefix, task=task), TASK_ROUTE.at(prefix, task=task)]
    for device in devices:
        topics += [DEVICE_STATE.at(prefix, device=device), DEVICE_ASSIGNMENT.at(prefix, device=device)]
        topics.append(DEVICE_DRAIN.at(prefix, device=device))
    for topic in topics:
        observer.publish(Outgoing(topic, b"", retain=True))


def _serves(route: Route, spec: TaskSpec) -> bool:
    """Whether a route is for this spec, not for an older one of the same name."""
    wanted = {name: (spec.module_of(name).key, node.needs, node.use) for name, node in spec.nodes.items()}
    given = {name: (node.key, node.needs, node.use) for name, node in route.nodes.items()}
    return given == wanted and route.wire == spec.wire
