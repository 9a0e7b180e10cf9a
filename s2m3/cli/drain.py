"""``s2m3 drain DEVICE``: take a device out of service without an error, and say where everything went.

Owns the operator's word and when it is carried out. What moves where is the orchestrator's to decide; what is shown is
only what was really published.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid

from broker.protocol.codec import encode
from broker.protocol.errors import BadFile
from broker.protocol.messages import Drain, Route
from broker.protocol.topics import DEVICE_DRAIN
from broker.transport.port import Outgoing
from s2m3.testbed import tasks
from s2m3.testbed.observer import Observer

KNOWN_WITHIN_S = 1.5  # retained states arrive at once, heartbeats every second


def drain(arguments: argparse.Namespace) -> int:
    """Drain a device, or put it back in service.

    Returns:
        0 when it is done; 1 when something must stay there, or the time was over first. The order stands all the same.

    Raises:
        BadFile: no such device is known.
        NotConnected: there is no broker.
    """
    device: str = arguments.device
    with Observer(arguments.broker, client_id=f"s2m3-{uuid.uuid4().hex[:12]}", site=arguments.site) as observer:
        tasks.connect(observer, arguments.broker)
        observer.wait_for(lambda seen: device in seen.heartbeats and seen.leader is not None, KNOWN_WITHIN_S)
        if device not in observer.devices and not arguments.undo:
            known = ", ".join(sorted(observer.devices)) or "none"
            raise BadFile(file=device, problem="no such device is known", fix=f"known devices: {known}")
        said = b"" if arguments.undo else encode(Drain(drain=True))
        observer.publish(Outgoing(DEVICE_DRAIN.at(observer.prefix, device=device), said, retain=True))
        if arguments.undo:
            heard = observer.wait_for(lambda seen: device not in seen.drained, arguments.timeout)
            return _say_undone(device, heard=heard, as_json=arguments.json)
        served = _served(observer, device)
        until_s = time.monotonic() + arguments.timeout
        observer.wait_for(lambda seen: device in seen.drained, arguments.timeout)
        observer.wait_for(
            lambda seen: _is_empty(seen, device) or _stays(seen, device) is not None, until_s - time.monotonic()
        )
        return _say(observer, device, served, as_json=arguments.json)


def _served(observer: Observer, device: str) -> list[str]:
    """The modules that a device was told to hold."""
    told = observer.assignments.get(device)
    return sorted({assigned.module for assigned in told.modules}) if told else []


def _names(route: Route, device: str) -> bool:
    able = {candidate.device for node in route.nodes.values() for candidate in node.devices}
    return device in able.union(route.front_door, route.second_door)


def _is_empty(observer: Observer, device: str) -> bool:
    """Whether the device holds nothing, need hold nothing, and is in no route."""
    state, beat, told = observer.devices.get(device), observer.heartbeats.get(device), observer.assignments.get(device)
    gone = state is None or state.status == "offline"
    holds = not gone and (beat is None or bool(beat.modules))
    return not holds and not (told and told.modules) and not any(_names(r, device) for r in observer.routes.values())


def _stays(observer: Observer, device: str) -> str | None:
    told = observer.assignments.get(device)
    return told.stays if told else None


def _say(observer: Observer, device: str, served: list[str], *, as_json: bool) -> int:
    drained, stays = _is_empty(observer, device), _stays(observer, device)
    places: dict[str, list[str]] = {}
    for name in served:
        places[name] = [
            other
            for other, told in sorted(observer.assignments.items())
            if other != device and any(assigned.module == name for assigned in told.modules)
        ]
    if as_json:
        print(json.dumps({"device": device, "drained": drained, "moved": places, "stays": stays}))
    elif drained:
        went = ", ".join(
            f"{name} on {'+'.join(there) or 'no device: nothing needs it'}" for name, there in places.items()
        )
        print(f"{device}: drained: {went or 'it held nothing'}")
    elif stays is not None:
        print(
            f"{device}: goes on serving, for nothing else fits: {stays}. It moves when it can; `--undo` takes it back"
        )
    elif observer.leader is None or not observer.leader.online:
        print(f"{device}: no orchestrator is online; the order waits for one")
    else:
        print(f"{device}: not yet drained: it holds {', '.join(_served(observer, device)) or 'what it unloads now'}")
    return 0 if drained else 1


def _say_undone(device: str, *, heard: bool, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"device": device, "undone": heard}))
    else:
        print(f"{device}: {'in service again' if heard else 'the broker did not confirm it'}")
    return 0 if heard else 1
