"""The requests that may kill devices: which of them run alone, and which payloads are refused. Pure.

Owns the evidence. When a device dies, every request that arrived lately is in quarantine: one device at a time runs it,
alone, and only after its heartbeat has named it (``Alone``). So the leader knows what a device computed when it died,
whether it comes back or not. A device that is back says what the process before crashed of (``died_with``). A payload
that two deaths stand against is refused for ``REFUSED_S``.

Invariants:
- only deaths that this orchestrator saw itself count, each once against a payload, whatever devices say of them;
- a death stands against a payload if the device had it alone and another device had died before, or if the device
  says so when it is back. It stands no more if the device comes back and says that it didn't crash of it, if its
  machine was switched off meanwhile, or if the same session goes on, which was only silent: an honest request isn't
  condemned for a power cut;
- what is kept is bounded in number, and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from broker.protocol import messages
from broker.protocol.messages import MAX_QUARANTINED, MAX_REFUSED, Assignment, DeviceState, Payload
from broker.protocol.specs import DeviceId, RequestId
from orchestrator.membership.device import Device
from orchestrator.membership.failure_detector import Cluster

RECENT_S = 30.0  # the deadline of a request whose sensor states none; of longer ones the coordinators know
MAX_RECENT = 500  # requests, the newest: some seconds of a busy site
QUARANTINE_S = 60.0
REFUSED_S = 600.0
MAX_DEATHS = 64  # that are remembered, the latest
K = TypeVar("K")
V = TypeVar("V")

Death = tuple[DeviceId, int]
"""A device, and the session that ended."""


@dataclass(frozen=True)
class Quarantine:
    """All that this orchestrator knows of requests that may kill devices."""

    recent: tuple[tuple[RequestId, float], ...] = ()  # when each arrived
    requests: Mapping[RequestId, float] = field(default_factory=dict)  # in quarantine, until when
    deaths: Mapping[Death, float] = field(default_factory=dict)  # when
    against: Mapping[Payload, Mapping[Death, float]] = field(default_factory=dict)  # the deaths that stand against each
    refused: Mapping[Payload, float] = field(default_factory=dict)  # until when
    permits: Mapping[Payload, tuple[DeviceId, float]] = field(default_factory=dict)  # the last one's device, and when

    @property
    def published(self) -> tuple[object, ...]:
        """The part that agents must know."""
        return self.requests, self.against, self.refused


def message_of(quarantine: Quarantine, epoch: int, now_s: float) -> messages.Quarantine:
    """The message for the agents."""
    left_s = {payload: round(until_s - now_s, 1) for payload, until_s in quarantine.refused.items() if until_s > now_s}
    payloads = tuple(payload for payload in quarantine.against if payload not in left_s)
    return messages.Quarantine(
        epoch=epoch,
        requests=tuple(quarantine.requests)[-MAX_QUARANTINED:],
        payloads=payloads[-MAX_QUARANTINED:],
        refused=left_s,
    )


def next_deadline_s(quarantine: Quarantine) -> float | None:
    """The time at which ``expire`` next changes anything."""
    due = [*quarantine.requests.values(), *quarantine.refused.values()]
    due += [at_s + REFUSED_S for deaths in quarantine.against.values() for at_s in deaths.values()]
    return min(due, default=None)


def on_request(quarantine: Quarantine, request: RequestId, now_s: float) -> Quarantine:
    """Remember a request for a moment: it may be under way when a device dies."""
    return replace(quarantine, recent=(*quarantine.recent[1 - MAX_RECENT :], (request, now_s)))


def on_devices(
    quarantine: Quarantine,
    before: Cluster,
    after: Cluster,
    assignments: Mapping[DeviceId, Assignment],
    now_s: float,
) -> Quarantine:
    """React to the devices that died between two states of the cluster, of those that were assigned modules."""
    if after.devices is before.devices or not after.listening:
        return quarantine
    for name in after.devices.differences(before.devices):
        known, device = before.devices.get(name), after.devices.get(name)
        if device is not None and device.alive:
            quarantine = _on_life(quarantine, (name, device.session))
            continue
        has_died = known is not None and known.alive
        if known is not None and has_died and name in assignments and assignments[name].modules:
            quarantine = _on_death(quarantine, known, now_s)
    return quarantine


def on_birth(
    quarantine: Quarantine, known: Device | None, name: DeviceId, birth: DeviceState, now_s: float
) -> Quarantine:
    """React to what a device says of the process before; ``known`` is the device as it was before this birth."""
    if known is None or birth.status != "online" or (name, known.session) not in quarantine.deaths:
        return quarantine
    if birth.session == known.session and known.status == "online":
        return quarantine
    death = name, known.session
    died_s, told = quarantine.deaths[death], set(birth.died_with or ())
    was_off = birth.machine_up_s is not None and birth.machine_up_s < now_s - died_s
    for payload in told if not was_off else ():
        quarantine = _stand_against(quarantine, payload, {death: died_s}, now_s)
    if was_off or birth.died_with is not None:
        for payload, deaths in quarantine.against.items():
            if death in deaths and (was_off or payload not in told):
                quarantine = _without(quarantine, payload, death)
    return quarantine


def adopt(quarantine: Quarantine, said: messages.Quarantine, now_s: float) -> Quarantine:
    """Go on with what an earlier leader published, and the broker retained."""
    refused = {payload: now_s + min(REFUSED_S, left_s) for payload, left_s in said.refused.items()}
    requests = dict.fromkeys(said.requests, now_s + QUARANTINE_S)
    return replace(
        quarantine,
        refused=_latest({**refused, **quarantine.refused}, MAX_REFUSED),
        requests=_latest({**requests, **quarantine.requests}, MAX_QUARANTINED),
    )


def permit(quarantine: Quarantine, cluster: Cluster, device: Device, now_s: float) -> tuple[Quarantine, bool | None]:
    """Whether a device may compute now what it asks for; None: no answer, because the payload is refused."""
    if device.alone is None or now_s < quarantine.refused.get(device.alone.payload, -math.inf):
        return quarantine, None
    payload = device.alone.payload
    name, at_s = quarantine.permits.get(payload, (device.id, now_s))
    holder = cluster.devices.get(name) if now_s < at_s + QUARANTINE_S else None  # no device holds others up for longer
    if holder is not None and holder.id != device.id and holder.alive and _has_alone(holder, payload):
        return quarantine, False
    if holder is None or holder.id != device.id or payload not in quarantine.permits:
        permits = _latest({**quarantine.permits, payload: (device.id, now_s)}, MAX_DEATHS)
        quarantine = replace(quarantine, permits=permits)
    return quarantine, True


def _has_alone(device: Device, payload: Payload) -> bool:
    return device.alone is not None and device.alone.payload == payload


def expire(quarantine: Quarantine, now_s: float) -> Quarantine:
    """The same without what is over; the same object if nothing is."""
    due_s = next_deadline_s(quarantine)
    if due_s is None or now_s < due_s:
        return quarantine
    against = {
        payload: {death: at_s for death, at_s in deaths.items() if now_s < at_s + REFUSED_S}
        for payload, deaths in quarantine.against.items()
    }
    return replace(
        quarantine,
        requests={request: until_s for request, until_s in quarantine.requests.items() if now_s < until_s},
        against={payload: deaths for payload, deaths in against.items() if deaths},
        refused={payload: until_s for payload, until_s in quarantine.refused.items() if now_s < until_s},
    )


def _on_death(quarantine: Quarantine, device: Device, now_s: float) -> Quarantine:
    death: Death = device.id, device.session
    before = {other: at_s for other, at_s in quarantine.deaths.items() if now_s - at_s < QUARANTINE_S}
    recent = [request for request, at_s in quarantine.recent if now_s - at_s < RECENT_S]
    quarantine = replace(quarantine, deaths=_latest({**quarantine.deaths, death: now_s}, MAX_DEATHS))
    if recent:
        requests = {**quarantine.requests, **dict.fromkeys(recent, now_s + QUARANTINE_S)}
        quarantine = replace(quarantine, requests=_latest(requests, MAX_QUARANTINED))
    if device.alone is None or not before:
        return quarantine
    first = max(before, key=lambda other: before[other])
    return _stand_against(quarantine, device.alone.payload, {first: before[first], death: now_s}, now_s)


def _on_life(quarantine: Quarantine, death: Death) -> Quarantine:
    """The same without the death of a session that goes on."""
    if death not in quarantine.deaths:
        return quarantine
    deaths = {other: at_s for other, at_s in quarantine.deaths.items() if other != death}
    quarantine = replace(quarantine, deaths=deaths)
    for payload, standing in quarantine.against.items():
        if death in standing:
            quarantine = _without(quarantine, payload, death)
    return quarantine


def _stand_against(quarantine: Quarantine, payload: Payload, deaths: Mapping[Death, float], now_s: float) -> Quarantine:
    known = quarantine.against.get(payload, {})
    if deaths.keys() <= known.keys():
        return quarantine
    standing = {**known, **deaths}
    against = _latest({**quarantine.against, payload: standing}, MAX_QUARANTINED)
    refused = quarantine.refused
    if len(standing) > 1:
        refused = _latest({**refused, payload: now_s + REFUSED_S}, MAX_REFUSED)
    return replace(quarantine, against=against, refused=refused)


def _without(quarantine: Quarantine, payload: Payload, death: Death) -> Quarantine:
    standing = {other: at_s for other, at_s in quarantine.against[payload].items() if other != death}
    against = {each: deaths for each, deaths in quarantine.against.items() if each != payload}
    refused = quarantine.refused
    if len(standing) <= 1:
        refused = {each: until_s for each, until_s in refused.items() if each != payload}
    return replace(quarantine, against={**against, payload: standing} if standing else against, refused=refused)


def _latest(entries: dict[K, V], most: int) -> dict[K, V]:
    """The last of these entries, as many as are kept."""
    return entries if len(entries) <= most else dict(list(entries.items())[-most:])
