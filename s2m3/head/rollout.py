"""Deploys a head into a running site, and measures what that costs by the devices' heartbeats.

Owns what is read from the heartbeats. Reports nothing that a device didn't report.
"""

from __future__ import annotations

from typing import Any

from broker.protocol.errors import S2M3Error
from broker.protocol.specs import DeviceId, ModuleKey, TaskSpec
from s2m3.testbed.observer import Observer

HEARTBEAT_S = 5.0  # every agent sends one a second


class NotServed(S2M3Error):
    """The site doesn't serve the new task."""


def deploy(observer: Observer, task: TaskSpec, timeout_s: float) -> dict[str, Any]:
    """Deploy a task whose output is a new head, and measure what it adds.

    Returns:
        The part of the JSON document: the devices of the head and of the encoder, whether the encoder was there and
        whether it was loaded again, and the bytes of modules that each device has more.

    Raises:
        NotServed: there is no orchestrator, no device, or no room; or it took too long.
    """
    if not observer.wait_for(lambda seen: seen.leads, HEARTBEAT_S):
        raise NotServed("no orchestrator is online: start one (`s2m3 orchestrator`), then deploy the task file")
    observer.wait_for(lambda seen: seen.has_heartbeats(), HEARTBEAT_S)
    before = {device: heartbeat.memory_used_bytes for device, heartbeat in observer.heartbeats.items()}
    head = task.module_of(task.output).key
    encoder = {module.key for module in task.modules.values()} - {head}
    had = _ready(observer, encoder)
    since = len(observer.sightings)
    route = observer.deploy([task], timeout_s)[task.task]
    if route is None or not route.complete:
        why = observer.why_refused(task) or (route and route.unavailable) or f"not within {timeout_s:g} s"
        raise NotServed(f"{task.task} is not served: {why}")
    if not observer.wait_for(lambda seen: bool(_ready(seen, {head})), HEARTBEAT_S):
        raise NotServed(f"{task.task} is served, but no device reports its head: look at `s2m3 status`")
    after = {device: heartbeat.memory_used_bytes for device, heartbeat in observer.heartbeats.items()}
    added = {device: used - before.get(device, 0) for device, used in after.items()}
    return {
        "head_on": sorted(device for device, _ in _ready(observer, {head})),
        "encoder_on": sorted({device for device, _ in _ready(observer, encoder)}),
        "encoder_was_there": {key for _, key in had} == encoder,
        "encoder_loaded_again": _loaded(observer, since, encoder, had),
        "added_bytes": {device: size for device, size in sorted(added.items()) if size},
    }


def _ready(observer: Observer, keys: set[ModuleKey]) -> set[tuple[DeviceId, ModuleKey]]:
    return {(device, key) for device in observer.heartbeats for key in observer.ready(device) & keys}


def _loaded(observer: Observer, since: int, keys: set[ModuleKey], had: set[tuple[DeviceId, ModuleKey]]) -> bool:
    """Whether any heartbeat since then shows one of the modules where it wasn't, or not ready where it was."""
    for sighting in observer.sightings[since:]:
        modules = getattr(sighting.message, "modules", None)
        if not isinstance(modules, dict):  # not a heartbeat
            continue
        ready = {(sighting.id, key) for key, held in modules.items() if key in keys and held.state == "ready"}
        listed = {(sighting.id, key) for key in modules if key in keys}
        if listed - had or {pair for pair in had if pair[0] == sighting.id} - ready:
            return True
    return False
