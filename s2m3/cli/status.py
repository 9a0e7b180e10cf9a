"""``s2m3 status``: the devices, modules and tasks of a site, by its retained messages and its heartbeats."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from broker.protocol.errors import BadFile
from broker.protocol.messages import MAX_COUNT, DeviceState, Route
from broker.protocol.reports import UNDELIVERED, Summary, TaskCounters
from broker.protocol.sizes import mebibytes, show_count
from broker.protocol.specs import TaskName
from broker.protocol.topics import ALL_SITES, NOT_BRIDGED
from broker.servers.access import site_at_core
from broker.servers.lifetimes import lifetimes
from broker.transport.connection import Connection
from broker.transport.retained import KNOWN_S
from s2m3.cli.arguments import add_connection, connected, connection_of
from s2m3.cli.output import clock, console, document_of, print_result, table
from s2m3.cli.sites import every_site
from s2m3.cli.status_sources import source_table, sources_document
from s2m3.testbed.observer import Observer

MINUTE_S = 60.0
T = TypeVar("T")
WATCH_S = 0.5  # between two pictures
HEARTBEATS_S = 1.5  # heartbeats aren't retained: every agent sends one a second
MOVED = ("moved from ", "took over from ")  # the reasons of modules that are not where they were first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--watch", action="store_true", help="show it again as it changes, until Ctrl-C")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the site's state; 0 when an orchestrator is online and every task has a complete route."""
    if (connection := connection_of(arguments)).site == ALL_SITES:
        return _everywhere(arguments, connection)
    if arguments.watch:
        return _watch(arguments)
    with connected(arguments, sources=True) as observer:
        observer.follow_all()
        observer.wait_for(lambda seen: seen.leader is not None and seen.has_heartbeats(), HEARTBEATS_S)
        ends = lifetimes(connection)
        document = _document(observer) | (
            {"certificates": {each.owner: str(each.ends) for each in ends}} if ends else {}
        )
        print_result(arguments, document, lambda _: console().print(shown(observer)))
        for warning in filter(None, (each.warning(datetime.now(UTC)) for each in ends)):
            print(f"s2m3: {warning}", file=sys.stderr)
        return 0 if _is_well(observer) else 1


def _is_well(observer: Observer) -> bool:
    served = all(route.complete for route in observer.routes.values())
    return served and observer.leads and observer.bridge is not False


def _everywhere(arguments: argparse.Namespace, core: Connection) -> int:
    """Print the sites that are bridged to a core; 0 when all is well at each of them."""
    if arguments.watch:
        raise BadFile(file="--watch", problem="shows one site only", fix=f"name it: --site {site_at_core('NAME')}")
    with every_site(core) as (_, sites):
        for observer in sites.values():
            observer.listen(KNOWN_S / len(sites))
        documents = {name: _document(observer) for name, observer in sites.items()}
        print_result(arguments, {"sites": documents}, lambda _: console().print(_overview(sites)))
        return 0 if sites and all(map(_is_well, sites.values())) else 1


def _overview(sites: Mapping[str, Observer]) -> RenderableType:
    if not sites:
        return "no site is bridged to this broker"
    shown = table("site", "bridge", "orchestrator", "devices", "tasks", title="sites, as their bridges tell")
    for name, observer in sites.items():
        told = [standing_of(observer, device, state) for device, state in observer.devices.items()]
        devices = f"{sum(each.startswith('online') for each in told)} of {len(told)} online"
        tasks = "\n".join(f"{task}: {state_of(observer, each)}" for task, each in sorted(observer.routes.items()))
        leader = "online" if observer.leads else "offline"
        shown.add_row(name, "up" if observer.bridge else "down: the rest is from before", leader, devices, tasks)
    return shown


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
    bridge = {} if observer.bridge is None else {"bridge": "up" if observer.bridge else "down"}
    return bridge | {
        "orchestrator": observer.leader.model_dump(mode="json") if observer.leader else None,
        "devices": {
            name: {
                "state": document_of(state),
                "drained": name in observer.drained,
                "heartbeat": document_of(observer.heartbeats.get(name)),
                "assignment": document_of(observer.assignments.get(name)),
                "standing": document_of(observer.standings.get(name)),
                "summary": document_of(observer.summaries.get(name)),
            }
            for name, state in sorted(observer.devices.items())
        },
        "tasks": {name: document_of(route) for name, route in sorted(observer.routes.items())},
        "statuses": {name: document_of(status) for name, status in sorted(observer.statuses.items())},
        "unread": observer.unread,
        "unanswered": document_of(observer.unanswered.get("")) or {"unanswerable": {}},
        "sources": sources_document(observer),
        "last_minute": {
            name: document_of(each) for name, each in traffic_of(summaries_of(observer, time.time())).items()
        },
    }


def _watch(arguments: argparse.Namespace) -> int:
    """Show the site until Ctrl-C, at most once in ``WATCH_S``; 0."""
    if arguments.json or not sys.stdout.isatty():
        problem = "shows the site at a terminal only"
        raise BadFile(file="--watch", problem=problem, fix="leave it out, or use s2m3 events --follow --json")
    with suppress(KeyboardInterrupt), connected(arguments, sources=True) as observer:
        observer.follow_all()
        observer.wait_for(lambda seen: seen.leader is not None and seen.has_heartbeats(), HEARTBEATS_S)
        with Live(console=console(), auto_refresh=False, screen=True) as live:
            while True:
                live.update(_now(observer), refresh=True)
                observer.listen(WATCH_S)
                observer.sightings.clear()  # for replays; they would fill the memory
    return 0


def _now(observer: Observer) -> Group:
    state = "" if observer.connected else "; no connection to the broker: what follows is old"
    return Group(f"{datetime.now(UTC).astimezone():%H:%M:%S}, Ctrl-C ends it{state}", shown(observer))


def shown(observer: Observer) -> Group:
    """The site for people: a few lines, and its tables."""
    parts: list[RenderableType] = []
    if observer.is_at_core and observer.bridge is None:
        parts.append(NOT_BRIDGED)
    elif observer.bridge is not None:
        old = "" if observer.bridge else ": what follows is from before"
        parts.append(f"seen from the core; the site's bridge is {'up' if observer.bridge else 'down'}{old}")
    leader = observer.leader
    state = "none" if leader is None else f"epoch {leader.epoch}, {'online' if leader.online else 'offline'}"
    parts.append(f"orchestrator: {state}")
    if observer.left_out:
        parts.append(f"the broker has more messages than are shown here: {observer.left_out} are left out")
    if not observer.leads and observer.standings:
        parts.append("no orchestrator leads: standings and task states are those that the last one published")
    devices = table("device", "standing", "version", "engines", "memory (MiB)", "modules", title="devices")
    for name, device in sorted(observer.devices.items()):
        version = version_of(observer, name, device)
        standing = "\n".join((standing_of(observer, name, device), *changes_of(device)))
        devices.add_row(name, standing, version, engines_of(device), *held_by(observer, name, device))
    parts.append(devices)
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
        states = "\n".join((state_of(observer, route), *candidate_of(observer, name), *other_weights(observer, name)))
        tasks.add_row(name, states, route.revision or "", doors, "\n".join(places), requests)
    for name, revision in observer.unread.items():
        tasks.add_row(name, "deployed, and no orchestrator has read it: start one", revision)
    parts.append(tasks)
    return Group(*parts, *_rest(observer))


def _rest(observer: Observer) -> Iterator[Table]:
    """The tables that not every site has: sources, unanswered requests, caches, moves."""
    if (asking := source_table(observer)) is not None:
        yield asking
    if unanswered := observer.unanswered.get(""):
        unknown = table("name in the topic", "requests", "reason", title="requests at names that no task has")
        for name, counts in unanswered.unanswerable.items():
            for reason, number in counts.items():
                unknown.add_row(name or "(others)", str(number), reason)
        yield unknown
    if caches := caches_of(observer):
        kept = table("device", "nodes that took one", "outputs", "memory (MiB)", title="outputs of equal work, kept")
        for cache in caches:
            kept.add_row(*cache)
        yield kept
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
        yield moves


def standing_of(observer: Observer, name: str, device: DeviceState) -> str:
    """A device's standing, until or since when, and why; its own state where the orchestrator published no standing."""
    standing = observer.standings.get(name)
    if standing is None:
        return "draining" if name in observer.drained and device.status == "online" else device.status
    if standing.standing == "online":
        lost = f": {standing.why}" if standing.why.startswith(UNDELIVERED) else ""
        return f"online{_interval_of(observer, device)}{lost}"
    word, at = ("since", standing.since) if standing.until is None else ("until", standing.until)
    return f"{standing.standing} {word} {clock(at)}: {standing.why}"


def changes_of(device: DeviceState) -> list[str]:
    """The settings of a device that are other ones than at its start before, by its birth."""
    return [f"new since its last start: {each}" for each in (device.about.changed if device.about else ())]


def _interval_of(observer: Observer, device: DeviceState) -> str:
    """How often a device's heartbeats come, if the orchestrator's option says another interval."""
    own_s, leader = device.heartbeat_interval_s, observer.leader
    if own_s is None or leader is None or own_s == leader.heartbeat_interval_s:
        return ""
    return f", a heartbeat every {own_s:g} s (the orchestrator's option says {leader.heartbeat_interval_s:g} s)"


def version_of(observer: Observer, name: str, device: DeviceState) -> str:
    """The version of a device's agent, by its birth or its last summary: a will has none."""
    summary = observer.summaries.get(name)
    return device.about.version if device.about else summary.version if summary else ""


def engines_of(device: DeviceState) -> str:
    """The engines that run a device's modules, the preferred one first, by its birth; a will has none."""
    if device.profile is None:
        return ""
    exports = len(device.profile.exports)
    return "\n".join(device.profile.engines) + (f"\n({show_count(exports, 'export')})" if exports else "")


def held_by(observer: Observer, name: str, device: DeviceState) -> tuple[str, str]:
    """The memory and the modules of a device by its last heartbeat, or else its summary; empty while it is offline."""
    heartbeat, assignment = observer.heartbeats.get(name), observer.assignments.get(name)
    if device.status == "offline":
        return "", ""
    if heartbeat is None:
        held = observer.summaries[name].modules.values() if name in observer.summaries else ()
        return "", "\n".join(f"{each.module} ({each.error or each.state})" for each in held)
    assigned = assignment.modules if assignment else ()
    standby = {each.spec.key for each in assigned if each.role == "standby"}
    modules = [
        f"{held.module} ({'standby, ' if key in standby else ''}{held.error or held.state})"
        for key, held in heartbeat.modules.items()
    ]
    memory = f"{mebibytes(heartbeat.memory_used_bytes)} of {mebibytes(heartbeat.memory_bytes)}"
    return memory, "\n".join(modules)


def caches_of(observer: Observer) -> list[tuple[str, str, str, str]]:
    """The output caches of the devices that are online and have run nodes: hits, outputs kept, and MiB."""
    online = {name for name, device in observer.devices.items() if device.status != "offline"}
    found = []
    for name, heartbeat in sorted(observer.heartbeats.items()):
        cache = heartbeat.output_cache
        if name in online and cache is not None and cache.hits + cache.computed:
            hits = f"{cache.hits} of {cache.hits + cache.computed}"
            memory = f"{mebibytes(cache.used_bytes)} of {mebibytes(cache.limit_bytes)}"
            found.append((name, hits, str(cache.outputs), memory))
    return found


def _traffic(counted: TaskCounters | None, observer: Observer, task: TaskName) -> str:
    """The requests of a task in the last minute, and those that could not be answered since this leader leads."""
    lines = [] if counted is None else [f"{counted.answered} of {counted.requests} answered"]
    lines += [f"{number} {code}" for code, number in sorted(counted.errors.items())] if counted else []
    status = observer.statuses.get(task)
    lines += [f"{number} unanswerable: {why}" for why, number in status.unanswerable.items()] if status else []
    return "\n".join(lines)


def candidate_of(observer: Observer, task: TaskName) -> list[str]:
    """The lines about a revision of a task that was deployed, and isn't served yet."""
    status = observer.statuses.get(task)
    if status is None or (candidate := status.candidate) is None:
        return []
    name = f"revision {candidate.revision}" if candidate.revision else "the spec that was deployed last"
    return [f"{name} is {candidate.state}" + (f": {candidate.why}" if candidate.why else "")]


def other_weights(observer: Observer, task: TaskName) -> list[str]:
    """The lines about devices that have other weights of a task's sources than the site first loaded."""
    status = observer.statuses.get(task)
    return [
        f"{device} doesn't load its weights of {source}: their digest is {digest}, and the first was "
        f"{status.digests[source].digest} ({', '.join(status.digests[source].devices)})"
        for source, found in (status.other_digests.items() if status else ())
        if status is not None and source in status.digests
        for device, digest in sorted(found.items())
    ]


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
