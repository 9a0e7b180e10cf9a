"""The small commands: broker, deploy, undeploy, request, status. Each prints what really came back."""

from __future__ import annotations

import argparse
import json
import mimetypes
import threading
import uuid
from pathlib import Path

from rich.console import Console
from rich.table import Table

from broker.client import Client, Response
from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.messages import DeviceState, Route
from broker.protocol.specs import InputSpec
from broker.servers.embedded import EmbeddedBroker
from s2m3.catalogue import load_task
from s2m3.testbed import tasks
from s2m3.testbed.observer import Observer

HEARTBEATS_S = 1.5  # heartbeats aren't retained: every agent sends one a second
ROUTE_S = 1.0  # a retained route arrives within milliseconds


def broker(arguments: argparse.Namespace) -> int:
    """Run the embedded broker until interrupted."""
    with EmbeddedBroker(arguments.port) as running:
        print(f"the embedded broker listens at {running.url} (this machine only); Ctrl-C ends it", flush=True)
        threading.Event().wait()
    return 0


def deploy(arguments: argparse.Namespace) -> int:
    """Deploy a task and say where it went."""
    spec = load_task(arguments.task)
    with _observer(arguments) as observer:
        tasks.connect(observer, arguments.broker)
        observer.wait_for(lambda seen: seen.leader is not None, ROUTE_S)
        leaderless = observer.leader is None or not observer.leader.online
        timeout_s = ROUTE_S if leaderless else arguments.timeout
        route = tasks.deploy(observer, [spec], timeout_s)[spec.task]
    served = route is not None and route.complete and not leaderless  # an old route says nothing of this file
    if arguments.json:
        print(json.dumps(route.model_dump(mode="json", exclude_none=True) if route else None))
    elif route is None or leaderless:
        why = "no orchestrator is online" if leaderless else "its modules are still being loaded"
        print(f"{spec.task}: published, but not served yet: {why}")
    elif route.unavailable:
        print(f"{spec.task}: unavailable: {route.unavailable}")
    else:
        places = ", ".join(f"{n} on {'+'.join(d.device for d in node.devices)}" for n, node in route.nodes.items())
        print(f"{spec.task}: deployed: {places}")
    return 0 if served else 1


def undeploy(arguments: argparse.Namespace) -> int:
    """Take a task away."""
    with _observer(arguments) as observer:
        tasks.connect(observer, arguments.broker)
        observer.wait_for(lambda seen: arguments.task in seen.routes, ROUTE_S)
        if arguments.task not in observer.routes:
            known = ", ".join(sorted(observer.routes)) or "none"
            raise BadFile(file=arguments.task, problem="no such task is deployed", fix=f"deployed tasks: {known}")
        gone = tasks.undeploy(observer, arguments.task, timeout_s=10.0)
    if arguments.json:
        print(json.dumps({"task": arguments.task, "undeployed": gone}))
    else:
        print(f"{arguments.task}: {'undeployed' if gone else 'spec cleared, but no orchestrator took the route away'}")
    return 0 if gone else 1


def request(arguments: argparse.Namespace) -> int:
    """Send one request; print its answer, or the error and exit 1."""
    with _observer(arguments) as observer:
        tasks.connect(observer, arguments.broker)
        observer.wait_for(lambda seen: arguments.task in seen.routes, ROUTE_S)
        route = observer.routes.get(arguments.task)
    inputs = _inputs(arguments, route.inputs if route else {})
    with Client(arguments.broker, site=arguments.site) as client:
        response = client.request(arguments.task, inputs, deadline_s=arguments.deadline)
    _print_response(response, as_json=arguments.json)
    return 0 if response.ok else 1


def status(arguments: argparse.Namespace) -> int:
    """Show the site as its retained state and its heartbeats tell it."""
    with _observer(arguments) as observer:
        tasks.connect(observer, arguments.broker)
        observer.wait_for(lambda seen: seen.leader is not None and seen.beats(), HEARTBEATS_S)
        if arguments.json:
            print(json.dumps(status_document(observer)))
        else:
            _print_status(observer)
        healthy = bool(observer.leader and observer.leader.online) and all(
            route.complete for route in observer.routes.values()
        )
    return 0 if healthy else 1


def status_document(observer: Observer) -> dict[str, object]:
    """What ``status --json`` prints."""
    return {
        "orchestrator": observer.leader.model_dump(mode="json") if observer.leader else None,
        "devices": {
            name: {
                "state": state.model_dump(mode="json", exclude_none=True),
                "drained": name in observer.drained,
                "heartbeat": beat.model_dump(mode="json", exclude_none=True)
                if (beat := observer.heartbeats.get(name))
                else None,
                "assignment": told.model_dump(mode="json", exclude_none=True)
                if (told := observer.assignments.get(name))
                else None,
            }
            for name, state in sorted(observer.devices.items())
        },
        "tasks": {n: route.model_dump(mode="json", exclude_none=True) for n, route in sorted(observer.routes.items())},
    }


def _observer(arguments: argparse.Namespace) -> Observer:
    return Observer(arguments.broker, client_id=f"s2m3-{uuid.uuid4().hex[:12]}", site=arguments.site)


def _inputs(arguments: argparse.Namespace, expected: dict[str, InputSpec]) -> dict[str, RawInput]:
    """Put files and texts to the task's inputs by their kind; further texts are lines of the last one."""
    given: dict[str, RawInput] = {}
    by_kind = {kind: [n for n, spec in expected.items() if spec.kind == kind] for kind in ("image", "audio", "text")}
    for kind, path in (("image", arguments.image), ("audio", arguments.audio)):
        if path:
            name = by_kind[kind][0] if by_kind[kind] else kind
            given[name] = RawInput(_read(path), mimetypes.guess_type(path)[0] or "")
    names = by_kind["text"] or ["text"]
    for position, text in enumerate(arguments.text):
        name = names[min(position, len(names) - 1)]
        before = given[name].data + b"\n" if name in given else b""
        given[name] = RawInput(before + text.encode(), "text/plain")
    if not given:
        wanted = ", ".join(f"{name} ({spec.kind})" for name, spec in expected.items()) or "an input"
        raise BadFile(
            file="request", problem=f"nothing to send; {arguments.task} takes {wanted}", fix="add --image or --text"
        )
    return given


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadFile(
            file=path, problem=error.strerror or "can't be read", fix="name a file that can be read"
        ) from error


def _print_response(response: Response, *, as_json: bool) -> None:
    result = response.result
    if as_json:
        document = result.model_dump(mode="json", exclude_none=True)
        document |= {"latency_s": response.latency_s, "attempts": response.attempts}
        print(json.dumps(document))
        return
    if result.error:
        again = f" (try again in {result.error.retry_after_s:g} s)" if result.error.retry_after_s else ""
        print(f"{result.error.code}: {result.error.message}{again}")
        return
    for name, array in response.tensors.items():
        print(f"{name}: {array.dtype} {list(array.shape)}")
    for name, value in (result.answer or {}).items():
        print(f"{name}: {json.dumps(value)}")
    path = " -> ".join(f"{t.node}@{t.device} {1000 * t.compute_s:.0f} ms" for t in result.timings)
    print(f"in {1000 * response.latency_s:.0f} ms: {path}")


def _print_status(observer: Observer) -> None:
    console = Console()
    leader = observer.leader
    state = "none" if leader is None else f"epoch {leader.epoch}, {'online' if leader.online else 'offline'}"
    console.print(f"orchestrator: {state}")
    devices = Table("device", "state", "memory (MB)", "modules", title="devices", title_justify="left")
    for name, device in sorted(observer.devices.items()):
        beat = observer.heartbeats.get(name)
        alive = device.status != "offline"
        if beat is None or not alive:
            devices.add_row(name, _status_of(observer, name, device), "", "")
            continue
        told = observer.assignments.get(name)
        standby = {assigned.spec.key for assigned in told.modules if assigned.role == "standby"} if told else set()
        modules = [
            f"{held.module} ({'standby, ' if key in standby else ''}{held.error or held.state})"
            for key, held in beat.modules.items()
        ]
        memory = f"{beat.memory_used_bytes / 1e6:.1f} of {beat.memory_bytes / 1e6:.1f}"
        devices.add_row(name, _status_of(observer, name, device), memory, "\n".join(modules))
    console.print(devices)
    table = Table("task", "state", "front door", "nodes", title="tasks", title_justify="left")
    for name, route in sorted(observer.routes.items()):
        table.add_row(name, _state_of(observer, route), ", ".join(route.front_door), _places(route))
    console.print(table)


def _status_of(observer: Observer, name: str, device: DeviceState) -> str:
    return "draining" if name in observer.drained and device.status == "online" else device.status


def _state_of(observer: Observer, route: Route) -> str:
    """What a route is worth now: the last word on it may be older than a device's death, when nobody leads."""
    if route.unavailable:
        return f"unavailable: {route.unavailable}"
    if not route.complete:
        return "loading"
    offline = {name for name, device in observer.devices.items() if device.status == "offline"}
    able = [{device.device for device in node.devices} for node in route.nodes.values()]
    gone = sorted(set().union(*(devices for devices in able if devices <= offline)))
    return f"not served: {', '.join(gone)} offline" if gone else "served"


def _places(route: Route) -> str:
    return "\n".join(
        f"{name}: {', '.join(d.device for d in node.devices) or 'loading'}" for name, node in route.nodes.items()
    )
