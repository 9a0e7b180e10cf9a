"""``s2m3 status``: the devices, modules and tasks of a site, by its retained messages and its heartbeats."""

from __future__ import annotations

import argparse

from pydantic import BaseModel

from broker.protocol.messages import DeviceState, Route
from s2m3.cli.arguments import add_connection, connected
from s2m3.cli.output import console, megabytes, print_result, table
from s2m3.testbed.observer import Observer

HEARTBEATS_S = 1.5  # heartbeats aren't retained: every agent sends one a second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the site's state; 0 when an orchestrator is online and every task has a complete route."""
    with connected(arguments) as observer:
        observer.wait_for(lambda seen: seen.leader is not None and seen.has_heartbeats(), HEARTBEATS_S)
        print_result(arguments, _document(observer), lambda _: _print(observer))
        return 0 if observer.leads and all(route.complete for route in observer.routes.values()) else 1


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
            }
            for name, state in sorted(observer.devices.items())
        },
        "tasks": {name: dump(route) for name, route in sorted(observer.routes.items())},
    }


def _print(observer: Observer) -> None:
    printed, leader = console(), observer.leader
    state = "none" if leader is None else f"epoch {leader.epoch}, {'online' if leader.online else 'offline'}"
    printed.print(f"orchestrator: {state}")
    devices = table("device", "state", "memory (MB)", "modules", title="devices")
    for name, device in sorted(observer.devices.items()):
        is_draining = name in observer.drained and device.status == "online"
        devices.add_row(name, "draining" if is_draining else device.status, *_held(observer, name, device))
    printed.print(devices)
    tasks = table("task", "state", "front door", "nodes", title="tasks")
    for name, route in sorted(observer.routes.items()):
        places = [f"{n}: {', '.join(d.device for d in node.devices) or 'loading'}" for n, node in route.nodes.items()]
        tasks.add_row(name, state_of(observer, route), ", ".join(route.front_door), "\n".join(places))
    printed.print(tasks)


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
