"""A fault as the wire shows it: when it was detected, when its target was replaced, and what moved. Pure.

Owns these definitions. Sees only state messages that were really published, with the time at which they arrived at one
observer; knows nothing of processes and reads no clock. Times are seconds of the observer's clock.

- *detected*: a device that routes name: the first route published without it. A device that no route names: its state
  ``offline``. The orchestrator: its state offline, or that of another one that leads. A device that starts or joins:
  its first heartbeat.
- *detected by*: `will` when the target's state offline came before; `timeouts` when a coordinator's heartbeat had named
  it as a device whose calls time out, so that its silence counted sooner; `heartbeats` when only its silence showed it.
- *replaced*: from detection on, every task that was served before is served again, without the device unless it sends
  heartbeats again. A device that no route names has nothing to replace. For the orchestrator: one of a higher epoch is
  online. For a task: its new revision is served. For the broker: the orchestrator and every route have been published
  again.
- *over*: the end of the fault: after its time, or when its target is started again or back in service.
- *moves*: modules newly active on a device, by the assignments.
- *refusals*: modules that a device newly lists as failed.
- *leaders*: the epochs in which an orchestrator announced that it leads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from broker.protocol.messages import Assignment, DeviceState, Heartbeat, OrchestratorState, Route
from broker.protocol.reports import Standing
from broker.protocol.specs import DeviceId, TaskName
from s2m3.testbed.observer import named
from s2m3.testbed.replay.scenario import BROKER, ORCHESTRATOR, Kind
from s2m3.testbed.sightings import Sighting

Routes = Mapping[TaskName, Route]
Signal = Literal["will", "timeouts", "heartbeats"]
TAKES_AWAY: frozenset[Kind] = frozenset(
    {"kill", "switch_off", "pause", "partition", "hang"}
)  # the device, from the site
ALARMS = frozenset({"suspect", "unresponsive", "dead", "probation"})
_UNDONE_BY: Mapping[Kind, Kind] = {"kill": "start", "drain": "undrain"}


@dataclass(frozen=True)
class Injected:
    """A fault that was injected: when, and its target."""

    at_s: float
    kind: Kind
    target: str  # a device, or orchestrator, or broker
    for_s: float | None = None  # as long as it lasts, where it ends by itself
    how: str = ""  # what a report says of it beside its kind; of a task the revision that is deployed


@dataclass(frozen=True)
class Seen:
    """One fault as the wire shows it; None where it doesn't apply or didn't happen."""

    affected: frozenset[TaskName]  # the tasks that depended on the target
    detected_s: float | None = None
    detected_by: Signal | None = None
    replaced_s: float | None = None


@dataclass(frozen=True)
class Band:
    """A module ready on a device, from when to when."""

    device: DeviceId
    module: str
    role: str  # active or standby, as assigned then
    from_s: float
    to_s: float


def look_at(fault: Injected, sightings: Sequence[Sighting]) -> Seen:
    """The fault as the wire shows it; the sightings are in the order of time."""
    before = routes_before(sightings, fault.at_s)
    after = [sighting for sighting in sightings if sighting.at_s >= fault.at_s]
    if fault.target == BROKER:
        return Seen(frozenset(before), replaced_s=_republished_s(after, before))
    if fault.target == ORCHESTRATOR:
        led_s = _new_leader_s(sightings, fault.at_s)
        gone = (led_s, None) if fault.kind == "start" else _orchestrator_gone(after, led_s)
        return Seen(frozenset(before), *gone, replaced_s=led_s)
    if fault.kind in {"deploy", "rollback"}:
        return Seen(frozenset({fault.target} & before.keys()), replaced_s=_served_s(after, fault.target, fault.how))
    if fault.kind in {"start", "join"}:
        heartbeats = (s.at_s for s in after if s.id == fault.target and isinstance(s.message, Heartbeat))
        return Seen(frozenset(), next(heartbeats, None))
    return _look_at_device(fault, before, sightings, after)


def _look_at_device(fault: Injected, before: Routes, sightings: Sequence[Sighting], after: Sequence[Sighting]) -> Seen:
    affected = frozenset(task for task, route in before.items() if fault.target in named(route))
    if fault.kind == "drain" and affected:
        return Seen(affected, replaced_s=_replaced(after, before, fault.target, may_return=False))
    detected = _detected(after, before, fault.target) if fault.kind in TAKES_AWAY else None
    if detected is None or not affected:
        return Seen(affected, *(detected or ()))
    later = [sighting for sighting in after if sighting.at_s >= detected[0]]
    known = routes_before(sightings, detected[0])
    return Seen(affected, *detected, _replaced(later, known, fault.target, may_return=True))


def over_s(fault: Injected, faults: Iterable[Injected]) -> float | None:
    """The time at which this fault is over, by the faults that came; None when it lasts to the end."""
    if fault.for_s is not None:
        return fault.at_s + fault.for_s
    undone = (fault.target, _UNDONE_BY.get(fault.kind))
    return min(
        (each.at_s for each in faults if (each.target, each.kind) == undone and each.at_s >= fault.at_s), default=None
    )


def alarms(sightings: Iterable[Sighting], from_s: float, to_s: float = math.inf) -> list[Standing]:
    """The standings in this time by which the leader told that something is wrong with a device, in order."""
    told = [s.message for s in sightings if isinstance(s.message, Standing) and from_s <= s.at_s < to_s]
    return [standing for standing in told if standing.standing in ALARMS]


def leaders(sightings: Iterable[Sighting], from_s: float) -> list[int]:
    """The epochs of those who led from this time on, the one that leads then among them: the last that was announced.

    An absurd epoch that a hostile client announced in an earlier scenario was overwritten since.
    """
    led = [(at_s, state.epoch) for at_s, state in _leadership(sightings) if state.online]
    before = [epoch for at_s, epoch in led if at_s < from_s][-1:]
    return sorted({*before, *(epoch for at_s, epoch in led if at_s >= from_s and epoch >= max(before, default=0))})


def _leadership(sightings: Iterable[Sighting]) -> Iterator[tuple[float, OrchestratorState]]:
    return ((s.at_s, s.message) for s in sightings if isinstance(s.message, OrchestratorState))


def routes_before(sightings: Iterable[Sighting], at_s: float) -> dict[TaskName, Route]:
    """The routes as they stood at a time."""
    routes: dict[TaskName, Route] = {}
    for sighting in sightings:
        if sighting.at_s >= at_s:
            break
        if isinstance(sighting.message, Route):
            routes[sighting.id] = sighting.message
    return routes


def _detected(after: Iterable[Sighting], before: Routes, device: DeviceId) -> tuple[float, Signal] | None:
    routes = dict(before)
    on_duty = any(device in named(route) for route in routes.values())
    signal: Signal = "heartbeats"
    for sighting in after:
        message, offline = sighting.message, _is_offline(sighting, device)
        if offline:
            signal = "will"
        elif signal == "heartbeats" and isinstance(message, Heartbeat) and device in message.suspects:
            signal = "timeouts"
        if isinstance(message, Route):
            was_named = sighting.id in routes and device in named(routes[sighting.id])
            routes[sighting.id] = message
            if was_named and device not in named(message):
                return sighting.at_s, signal
        elif offline and not on_duty:
            return sighting.at_s, signal
    return None


def _is_offline(sighting: Sighting, device: DeviceId) -> bool:
    message = sighting.message
    return isinstance(message, DeviceState) and sighting.id == device and message.status == "offline"


def _replaced(after: Iterable[Sighting], before: Routes, device: DeviceId, *, may_return: bool) -> float | None:
    """The time from which every task is served without the device, or with it after it came back, if it may."""
    routes, back = dict(before), False
    wanted = {task for task, route in before.items() if route.complete or device in named(route)}
    for sighting in after:
        message = sighting.message
        back |= may_return and isinstance(message, Heartbeat) and sighting.id == device
        if not isinstance(message, Route):
            continue
        routes[sighting.id] = message
        if all(routes[task].complete and (back or device not in named(routes[task])) for task in wanted):
            return sighting.at_s
    return None


def _served_s(after: Iterable[Sighting], task: TaskName, revision: str) -> float | None:
    routes = ((s.at_s, s.message) for s in after if s.id == task and isinstance(s.message, Route))
    return next((at_s for at_s, route in routes if route.complete and route.revision == revision), None)


def _orchestrator_gone(after: Iterable[Sighting], led_s: float | None) -> tuple[float | None, Signal | None]:
    """By its will, unless a spare that missed its heartbeats leads before that comes."""
    for sighting in after:
        if led_s is not None and sighting.at_s >= led_s:
            return led_s, "heartbeats"
        if isinstance(sighting.message, OrchestratorState) and not sighting.message.online:
            return sighting.at_s, "will"
    return None, None


def _new_leader_s(sightings: Iterable[Sighting], from_s: float) -> float | None:
    states = list(_leadership(sightings))
    epoch = max((state.epoch for at_s, state in states if at_s < from_s), default=0)
    return next((at_s for at_s, state in states if at_s >= from_s and state.online and state.epoch > epoch), None)


def _republished_s(after: Iterable[Sighting], before: Routes) -> float | None:
    leads, missing = False, {task for task, route in before.items() if route.complete}
    for sighting in after:
        message = sighting.message
        if isinstance(message, OrchestratorState):
            leads = message.online
        elif isinstance(message, Route) and message.complete:
            missing.discard(sighting.id)
        if leads and not missing:
            return sighting.at_s
    return None


def moves(sightings: Iterable[Sighting], from_s: float, to_s: float) -> list[tuple[float, DeviceId, str]]:
    """(when, device, module) for every module newly active on a device in this time: half-open, from included.

    A replica, which shares a busy module's requests with the device that had it before, is not counted.
    """
    seen = [sighting for sighting in sightings if sighting.at_s < to_s]
    assignments = ((s, s.message) for s in seen if isinstance(s.message, Assignment))
    added = _added(((s, _assigned(message, "active")) for s, message in assignments), from_s)
    routes = [(s.at_s, s.message) for s in seen if isinstance(s.message, Route)]
    return [each for each in added if not _is_replica(each, routes)]


def _is_replica(added: tuple[float, DeviceId, str], routes: Sequence[tuple[float, Route]]) -> bool:
    """Whether the routes since then name this copy of the module, but always after another one."""
    since_s, device, module = added
    places = {
        position
        for at_s, route in routes
        if at_s >= since_s
        for node in route.nodes.values()
        if node.module == module
        for position, each in enumerate(node.devices)
        if each.device == device
    }
    return bool(places) and 0 not in places


def copies(sightings: Iterable[Sighting], from_s: float, to_s: float) -> list[tuple[float, DeviceId, str]]:
    """(when, device, module) for every standby copy that a device was newly assigned in this time."""
    assignments = ((s, s.message) for s in sightings if isinstance(s.message, Assignment) and s.at_s < to_s)
    return _added(((s, _assigned(message, "standby")) for s, message in assignments), from_s)


def held_before(sightings: Iterable[Sighting], device: DeviceId, at_s: float) -> tuple[list[str], list[str]]:
    """The modules that a device was assigned at a time, sorted: the active ones, and the standby copies."""
    own = [s.message for s in sightings if s.id == device and isinstance(s.message, Assignment) and s.at_s < at_s]
    return (sorted(_assigned(own[-1], "active")), sorted(_assigned(own[-1], "standby"))) if own else ([], [])


def gone(sightings: Iterable[Sighting], from_s: float, to_s: float) -> list[DeviceId]:
    """The devices that went offline in this time, in order, each once."""
    return list(dict.fromkeys(s.id for s in sightings if from_s <= s.at_s < to_s and _is_offline(s, s.id)))


def refusals(sightings: Iterable[Sighting], from_s: float) -> list[tuple[float, DeviceId, str]]:
    """(when, device, module) for every module that a device began to list as failed since then."""
    heartbeats = ((s, s.message) for s in sightings if isinstance(s.message, Heartbeat))
    return _added(((s, _held(message, "failed")) for s, message in heartbeats), from_s)


def _added(lists: Iterable[tuple[Sighting, set[str]]], from_s: float) -> list[tuple[float, DeviceId, str]]:
    """(when, device, module) for every module that the list of a device has since then, and its list before hadn't."""
    before: dict[DeviceId, set[str]] = {}
    added: list[tuple[float, DeviceId, str]] = []
    for sighting, modules in lists:
        if sighting.at_s >= from_s:
            new = modules - before.get(sighting.id, set())
            added += [(sighting.at_s, sighting.id, module) for module in sorted(new)]
        before[sighting.id] = modules
    return added


def _assigned(assignment: Assignment, role: str) -> set[str]:
    return {assigned.module for assigned in assignment.modules if assigned.role == role}


def _held(heartbeat: Heartbeat, state: str) -> set[str]:
    return {held.module for held in heartbeat.modules.values() if held.state == state}


def load_s(sightings: Iterable[Sighting], from_s: float, to_s: float) -> float | None:
    """The longest that a device took in this time from an assignment to have a new active module ready; None if none.

    With all that it takes there: the imports of the module's family, reading its weights, the first passes.
    """
    ready: dict[DeviceId, set[str]] = {}
    awaited: dict[tuple[DeviceId, str], float] = {}  # since when
    longest: float | None = None
    for sighting in sightings:
        if sighting.at_s >= to_s:
            break
        message, device = sighting.message, sighting.id
        if isinstance(message, Assignment):
            if sighting.at_s >= from_s:
                for name in _assigned(message, "active") - ready.get(device, set()):
                    awaited.setdefault((device, name), sighting.at_s)
        elif isinstance(message, Heartbeat):
            ready[device] = _held(message, "ready")
            for name in ready[device]:
                if (since_s := awaited.pop((device, name), None)) is not None:
                    longest = max(longest or 0.0, sighting.at_s - since_s)
    return longest


def stood_by(
    sightings: Iterable[Sighting], device: DeviceId, at_s: float, hit: Mapping[DeviceId, float]
) -> bool | None:
    """Whether each module that a device served at a time was ready on another one too; None if it served nothing.

    ``hit`` is a device hit by a fault until then -> when; it counts again after its next heartbeat.
    """
    served: dict[DeviceId, set[str]] = {}
    ready: dict[DeviceId, set[str]] = {}
    for sighting in sightings:
        if sighting.at_s >= at_s:
            break
        message = sighting.message
        if isinstance(message, Assignment):
            served[sighting.id] = _assigned(message, "active")
        elif isinstance(message, Heartbeat) and sighting.at_s > hit.get(sighting.id, -math.inf):
            ready[sighting.id] = _held(message, "ready")
        elif _is_offline(sighting, sighting.id):
            ready.pop(sighting.id, None)
    if not served.get(device):
        return None
    others = [modules for other, modules in ready.items() if other != device]
    return all(any(name in modules for modules in others) for name in served[device])


def bands(sightings: Sequence[Sighting], silence_s: float, end_s: float) -> list[Band]:
    """Where which module was ready; a device that is silent for longer than ``silence_s`` holds nothing any more."""
    found: dict[tuple[DeviceId, str, str], list[Band]] = {}
    for device in {s.id for s in sightings if isinstance(s.message, Heartbeat)}:
        own = [s for s in sightings if s.id == device and s.at_s <= end_s]
        for (from_s, held), (next_s, _) in pairwise([*_holdings(own), (end_s, set[tuple[str, str]]())]):
            for module, role in held:
                same = found.setdefault((device, module, role), [])
                since_s = same.pop().from_s if same and same[-1].to_s == from_s else from_s
                same.append(Band(device, module, role, since_s, min(next_s, from_s + silence_s)))
    return [band for same in found.values() for band in same]


def _holdings(sightings: Iterable[Sighting]) -> Iterator[tuple[float, set[tuple[str, str]]]]:
    """The modules that a device really holds, with their assigned role, at each heartbeat and at its end."""
    roles: dict[str, str] = {}
    for sighting in sightings:
        message = sighting.message
        if isinstance(message, Assignment):
            roles = {assigned.module: assigned.role for assigned in message.modules}
        elif isinstance(message, Heartbeat):
            yield sighting.at_s, {(name, roles.get(name, "active")) for name in _held(message, "ready")}
        elif _is_offline(sighting, sighting.id):
            yield sighting.at_s, set()
