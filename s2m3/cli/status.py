"""``s2m3 status``: the devices, modules and tasks of a site, by its retained messages and its heartbeats."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel

from broker.arguments import connection_of
from broker.protocol.messages import MAX_COUNT, DeviceState, Route
from broker.protocol.reports import Summary, TaskCounters
from broker.protocol.specs import TaskName
from broker.servers.lifetimes import lifetimes
from s2m3.cli.arguments import add_connection, connected
from s2m3.cli.output import console, megabytes, print_result, table
from s2m3.testbed.observer import Observer

MINUTE_S = 60.0
T = TypeVar("T")
HEARTBEATS_S = 1.5  # heartbeats aren't retained: every agent sends one a second
MOVED = ("moved from ", "took over from ")  # the reasons of modules that are not where they were first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the site's state; 0 when an orchestrator is online and every task has a complete route."""
    with connected(arguments) as observer:
        observer.wait_for(lambda seen: seen.leader is not None and seen.has_heartbeats(), HEARTBEATS_S)
        ends = lifetimes(connection_of(arguments))
        document = _document(observer) | (
            {"certificates": {each.owner: str(each.ends) for each in ends}} if ends else {}
        )
        print_result(arguments, document, lambda _: _print(observer))
        for warning in filter(None, (each.warning(datetime.now(UTC)) for each in ends)):
            print(f"s2m3: {warning}", file=sys.stderr)
        return 0 if observer.leads and all(route.complete for route in observer.routes.values()) else 1


def summaries_of(observer: Observer, now: float) -> list[Summary]:
    """The devices' summaries that are about the present: those of devices that have just died, too."""
    online = {name for name, state in observer.devices.items() if state.status != "offline"}
    return [seen for name, seen in observer.summaries.items() if name in online or abs(now - seen.at) <= MINUTE_S]


def traffic_of(summaries: Iterable[Summary]) -> dict[TaskName, TaskCounters]:
    """The requests of the last minute by task, as coordinators counted them until their summaries."""
    requests: dict[TaskName, Counter[str]] = {}
    errors: dict[TaskName, Counter[str]] = {}
    latency_s: dict[TaskName, Counter[float]] = {}
    for summary in summaries:
        for task, counted in summary.last_minute.items():
            requests.setdefault(task, Counter()).update(requests=counted.requests, answered=counted.answered)
            errors.setdefault(task, Counter()).update(counted.errors)
            latency_s.setdefault(task, Counter()).update(counted.latency_s)
    return {
        task: TaskCounters(
            **_within_bounds(numbers),
            errors=_within_bounds(errors[task]),
            latency_s=_within_bounds(dict(sorted(latency_s[task].items()))),
        )
        for task, numbers in sorted(requests.items())
    }


def _within_bounds(counted: Mapping[T, int]) -> dict[T, int]:
    """Counts of several devices together, as far as a message may have them."""
    return {name: min(MAX_COUNT, number) for name, number in counted.items()}


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
        "last_minute": {name: dump(each) for name, each in traffic_of(summaries_of(observer, time.time())).items()},
    }


def _print(observer: Observer) -> None:
    printed, leader = console(), observer.leader
    state = "none" if leader is None else f"epoch {leader.epoch}, {'online' if leader.online else 'offline'}"
    printed.print(f"orchestrator: {state}")
    if observer.left_out:
        printed.print(f"the broker has more messages than are shown here: {observer.left_out} are left out")
    if not observer.leads and observer.standings:
        printed.print("no orchestrator leads: standings and task states are those that the last one published")
    devices = table("device", "standing", "version", "engines", "memory (MB)", "modules", title="devices")
    for name, device in sorted(observer.devices.items()):
        version, standing = version_of(observer, name, device), standing_of(observer, name, device)
        devices.add_row(name, standing, version, engines_of(device), *_held(observer, name, device))
    printed.print(devices)
    now = time.time()
    summaries = summaries_of(observer, now)
    traffic = traffic_of(summaries)
    age_s = max((now - summary.at for summary in summaries), default=0.0)
    title = f"tasks, with their requests in one minute, as devices counted them up to {max(0.0, age_s):.0f} s ago"
    tasks = table("task", "state", "revision", "front door", "nodes", "requests", title=title if traffic else "tasks")
    for name, route in sorted(observer.routes.items()):
        places = [f"{n}: {', '.join(d.device for d in node.devices) or 'loading'}" for n, node in route.nodes.items()]
        requests = _traffic(traffic.get(name), observer, name)
        doors = ", ".join(route.front_door)
        tasks.add_row(name, state_of(observer, route), route.revision or "", doors, "\n".join(places), requests)
    printed.print(tasks)
    if caches := caches_of(observer):
        kept = table("device", "nodes that took one", "outputs", "memory (MB)", title="outputs of equal work, kept")
        for cache in caches:
            kept.add_row(*cache)
        printed.print(kept)
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
    """A device's standing, until or since when, and why; its own state where the orchestrator published no standing."""
    standing = observer.standings.get(name)
    if standing is None:
        return "draining" if name in observer.drained and device.status == "online" else device.status
    if standing.standing == "online":
        return "online"
    word, at = ("since", standing.since) if standing.until is None else ("until", standing.until)
    return f"{standing.standing} {word} {_clock(at)}: {standing.why}"


def _clock(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC).astimezone():%H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f} s after 1970"  # no leader's clock says so


def version_of(observer: Observer, name: str, device: DeviceState) -> str:
    """The version of a device's agent, by its birth or its last summary: a will has none."""
    summary = observer.summaries.get(name)
    return device.about.version if device.about else summary.version if summary else ""


def engines_of(device: DeviceState) -> str:
    """The engines that run a device's modules, the preferred one first, by its birth; a will has none."""
    if device.profile is None:
        return ""
    exports = len(device.profile.exports)
    return "\n".join(device.profile.engines) + (f"\n({exports} exports)" if exports else "")


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


def caches_of(observer: Observer) -> list[tuple[str, str, str, str]]:
    """The output caches of the devices that are online and have run nodes: hits, outputs kept, and megabytes."""
    online = {name for name, device in observer.devices.items() if device.status != "offline"}
    found = []
    for name, heartbeat in sorted(observer.heartbeats.items()):
        cache = heartbeat.output_cache
        if name in online and cache is not None and cache.hits + cache.computed:
            hits = f"{cache.hits} of {cache.hits + cache.computed}"
            memory = f"{megabytes(cache.used_bytes)} of {megabytes(cache.limit_bytes)}"
            found.append((name, hits, str(cache.outputs), memory))
    return found


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
