"""``s2m3 status``: the devices, modules and tasks of a site, by its retained messages and its heartbeats."""

from __future__ import annotations

import argparse
from collections import Counter
from datetime import UTC, datetime

from pydantic import BaseModel

from broker.protocol.messages import DeviceState, Route
from broker.protocol.reports import TaskCounters
from broker.protocol.specs import TaskName
from s2m3.cli.arguments import add_connection, connected
from s2m3.cli.output import console, megabytes, print_result, table
from s2m3.testbed.observer import Observer

HEARTBEATS_S = 1.5  # heartbeats aren't retained: every agent sends one a second
MOVED = ("moved from ", "took over from ")  # the reasons of modules that are not where they were first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the site's state; 0 when an orchestrator is online and every task has a complete route."""
    with connected(arguments) as observer:
        observer.wait_for(lambda seen: seen.leader is not None and seen.has_heartbeats(), HEARTBEATS_S)
        print_result(arguments, _document(observer), lambda _: _print(observer))
        return 0 if observer.leads and all(route.complete for route in observer.routes.values()) else 1


def traffic_of(observer: Observer) -> dict[TaskName, TaskCounters]:
    """The requests of the last minute by task, as the devices that are online counted them as coordinators."""
    requests: dict[TaskName, Counter[str]] = {}
    errors: dict[TaskName, Counter[str]] = {}
    latency_s: dict[TaskName, Counter[float]] = {}
    for name, summary in observer.summaries.items():
        state = observer.devices.get(name)
        for task, counted in summary.last_minute.items() if state is not None and state.status != "offline" else ():
            requests.setdefault(task, Counter()).update(requests=counted.requests, answered=counted.answered)
            errors.setdefault(task, Counter()).update(counted.errors)
            latency_s.setdefault(task, Counter()).update(counted.latency_s)
    return {
        task: TaskCounters(**numbers, errors=dict(errors[task]), latency_s=dict(sorted(latency_s[task].items())))
        for task, numbers in sorted(requests.items())
    }


def _document(observer: Observer) -> dict[str, object]:
    def dump(message: BaseModel | None) -> object:
        return message.model_dump(mode="json", exclude_none=True) if message else None

    return {
        "orchestrator": observer.leader.model_dump(mode="json") if observer.leader else None,
        "devices": {
            name: {
                "state": dump(state),
                "drained": name in observer.drained,
                "heartbeat": dump(observer.heartbeats.get(name)),
                "assignment": dump(observer.assignments.get(name)),
                "standing": dump(observer.standings.get(name)),
                "summary": dump(observer.summaries.get(name)),
            }
            for name, state in sorted(observer.devices.items())
        },
        "tasks": {name: dump(route) for name, route in sorted(observer.routes.items())},
        "statuses": {name: dump(status) for name, status in sorted(observer.statuses.items())},
        "last_minute": {name: dump(counted) for name, counted in traffic_of(observer).items()},
    }


def _print(observer: Observer) -> None:
    printed, leader = console(), observer.leader
    state = "none" if leader is None else f"epoch {leader.epoch}, {'online' if leader.online else 'offline'}"
    printed.print(f"orchestrator: {state}")
    devices = table("device", "standing", "version", "memory (MB)", "modules", title="devices")
    for name, device in sorted(observer.devices.items()):
        version = device.about.version if device.about else ""
        devices.add_row(name, standing_of(observer, name, device), version, *_held(observer, name, device))
    printed.print(devices)
    tasks = table("task", "state", "revision", "front door", "nodes", "last minute", title="tasks")
    traffic = traffic_of(observer)
    for name, route in sorted(observer.routes.items()):
        places = [f"{n}: {', '.join(d.device for d in node.devices) or 'loading'}" for n, node in route.nodes.items()]
        requests = _traffic(traffic.get(name), observer, name)
        doors = ", ".join(route.front_door)
        tasks.add_row(name, state_of(observer, route), route.revision or "", doors, "\n".join(places), requests)
    printed.print(tasks)
    moved = [
        (each.module, name, each.why)
        for name, assignment in sorted(observer.assignments.items())
        for each in assignment.modules
        if each.role == "active" and each.why.startswith(MOVED)
    ]
    if moved:
        moves = table("module", "device", "reason", title="moves")
        for row in moved:
            moves.add_row(*row)
        printed.print(moves)


def standing_of(observer: Observer, name: str, device: DeviceState) -> str:
    """A device's standing, until when, and why; its own state where the orchestrator published no standing."""
    standing = observer.standings.get(name)
    if standing is None:
        return "draining" if name in observer.drained and device.status == "online" else device.status
    if standing.standing == "online":
        return "online"
    until = ""
    if standing.until is not None:
        until = f" until {datetime.fromtimestamp(standing.until, UTC).astimezone():%H:%M:%S}"
    return f"{standing.standing}{until}: {standing.why}"


def _held(observer: Observer, name: str, device: DeviceState) -> tuple[str, str]:
    """The memory and the modules of a device by its last heartbeat; empty while it is offline."""
    heartbeat, assignment = observer.heartbeats.get(name), observer.assignments.get(name)
    if heartbeat is None or device.status == "offline":
        return "", ""
    assigned = assignment.modules if assignment else ()
    standby = {each.spec.key for each in assigned if each.role == "standby"}
    modules = [
        f"{held.module} ({'standby, ' if key in standby else ''}{held.error or held.state})"
        for key, held in heartbeat.modules.items()
    ]
    memory = f"{megabytes(heartbeat.memory_used_bytes)} of {megabytes(heartbeat.memory_bytes)}"
    return memory, "\n".join(modules)


def _traffic(counted: TaskCounters | None, observer: Observer, task: TaskName) -> str:
    """The requests of a task in the last minute, and those that could not be answered since this leader leads."""
    lines = [] if counted is None else [f"{counted.answered} of {counted.requests} answered"]
    lines += [f"{number} {code}" for code, number in sorted(counted.errors.items())] if counted else []
    status = observer.statuses.get(task)
    lines += [f"{number} unanswerable: {why}" for why, number in status.unanswerable.items()] if status else []
    return "\n".join(lines)


def state_of(observer: Observer, route: Route) -> str:
    """A task's state now: while no orchestrator leads, its route may be older than the death of a device."""
    if route.unavailable:
        return f"unavailable: {route.unavailable}"
    if not route.complete:
        return "loading"
    offline = {name for name, device in observer.devices.items() if device.status == "offline"}
    able = [{device.device for device in node.devices} for node in route.nodes.values()]
    gone = sorted(set().union(*(devices for devices in able if devices <= offline)))
    return f"not served: {', '.join(gone)} offline" if gone else "served"
