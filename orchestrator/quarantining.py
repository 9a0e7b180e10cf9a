"""The leader's rules for requests that may kill devices: it follows the evidence, and tells the agents.

Owns the step from events to ``membership.quarantine``, and from that to messages. Only devices that were assigned a
module can have died of a request.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from broker.protocol.codec import load_digest, request_id
from broker.protocol.messages import Payload
from broker.protocol.specs import DeviceId
from broker.transport.port import LinkDown, LinkUp
from orchestrator import events
from orchestrator.events import Action, DeviceStateReceived, Event, HeartbeatReceived, RequestReceived
from orchestrator.membership import deadly_loads, quarantine
from orchestrator.membership.device import Device
from orchestrator.membership.failure_detector import wills_doubtful_since_s
from orchestrator.membership.frozen import with_fields
from orchestrator.state import State


def note_request(state: State, request: RequestReceived, now_s: float) -> State:
    """The state with a request remembered that may be under way when a device dies."""
    if request.task not in state.tasks:
        return state
    name = request_id(request.task, request.reply_to, request.correlation or b"", request.payload)
    return with_fields(state, quarantine=quarantine.on_request(state.quarantine, name, now_s))


def adopt(state: State, heard: events.QuarantineHeard, now_s: float) -> tuple[State, list[Action]]:
    """Go on with what an earlier leader found out, and overwrite what another client publishes."""
    said = heard.message
    if heard.retained and said is not None and said.epoch < state.epoch:
        state = replace(state, quarantine=quarantine.adopt(state.quarantine, said, now_s))
    elif not heard.retained and said != state.quarantine_said and (said or any(state.quarantine.published)):
        state = replace(state, quarantine_told=(said,))
    return tell(state, heard, now_s)


def follow(before: State, state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """React to deaths and births, permit what a device asks for, and publish the list where it changed."""
    known = after = state.quarantine
    after = quarantine.on_devices(after, before.cluster, state.cluster, before.assignments, now_s)
    state, loads = _follow_loads(before, state, event, now_s)
    if isinstance(event, DeviceStateReceived):
        born, birth = before.cluster.devices.get(event.device), event.message
        if birth.died_with:
            payloads = tuple(payload for payload in birth.died_with if payload not in loads)
            birth = birth.model_copy(update={"died_with": payloads})
        after = quarantine.on_birth(after, born, event.device, birth, now_s)
    after = quarantine.expire(after, now_s)
    if after is not known:
        state = replace(state, quarantine=after)
    actions = [*_notes(known, after), *_notes_of_loads(before, state)]
    if isinstance(event, LinkUp):
        return replace(state, quarantine_told=()), actions  # the broker may have lost it
    device = state.cluster.devices.get(event.device) if isinstance(event, HeartbeatReceived) else None
    if isinstance(event, HeartbeatReceived) and device is not None and device.alone == event.message.alone is not None:
        state, answer = _answer(state, device, now_s)
        actions += [answer] if answer else []
    state, permits = _permit_the_next(before, state, now_s)
    state, told = tell(state, event, now_s)
    return state, [*actions, *permits, *told]


def _permit_the_next(before: State, state: State, now_s: float) -> tuple[State, list[Action]]:
    """Permit a payload that a device has computed, or died of, to one that waits for it: its next heartbeat is far."""
    then, now = before.cluster.devices, state.cluster.devices
    if not before.quarantine.permits or then is now:
        return state, []
    had = {name: _payload_alone(then.get(name)) for name in now.differences(then)}
    over = {payload for name, payload in had.items() if payload != _payload_alone(now.get(name))} - {None}
    actions: list[Action] = []
    for device in now.values() if over else ():
        payload = _payload_alone(device)
        if payload is None or payload not in over or state.quarantine.permits.get(payload, ("", 0))[0] == device.id:
            continue
        state, answer = _answer(state, device, now_s)
        actions += [answer] if answer and answer.granted else []
    return state, actions


def _answer(state: State, device: Device, now_s: float) -> tuple[State, events.PublishPermit | None]:
    """The leader's answer to a device that asks to compute a payload in quarantine; none to one that doesn't."""
    after, granted = quarantine.permit(state.quarantine, state.cluster, device, now_s)
    state = state if after is state.quarantine else replace(state, quarantine=after)
    if granted is None or device.alone is None:
        return state, None
    return state, events.PublishPermit(device.id, state.epoch, device.alone.request, granted)


def _payload_alone(device: Device | None) -> Payload | None:
    return device.alone.payload if device is not None and device.alive and device.alone is not None else None


def _follow_loads(before: State, state: State, event: Event, now_s: float) -> tuple[State, frozenset[Payload]]:
    """The state with the deaths of devices that loaded modules, and the digests of these loads."""
    known = deaths = state.load_deaths
    if before.cluster.devices is not state.cluster.devices:
        deaths = deadly_loads.on_devices(deaths, before.cluster, state.cluster, partial(_assigned, before), now_s)
    if isinstance(event, LinkDown):
        deaths = deadly_loads.on_link_down(deaths, wills_doubtful_since_s(before.cluster, now_s))
    if isinstance(event, DeviceStateReceived):
        deaths = deadly_loads.on_birth(deaths, event.device, event.message, now_s)
    deaths = deadly_loads.expire(deaths, now_s)
    has_told = isinstance(event, DeviceStateReceived) and event.message.died_with
    loads = frozenset(map(load_digest, known)) if has_told and known else frozenset()
    return (state if deaths is known else with_fields(state, load_deaths=deaths)), loads


def _assigned(state: State, device: DeviceId) -> deadly_loads.Assigned | None:
    last = state.assignments.get(device)
    return None if last is None else (last, state.assigned_s.get(device, -math.inf))


def _notes_of_loads(before: State, after: State) -> list[Action]:
    if before.load_deaths is after.load_deaths:
        return []
    deadly = deadly_loads.deadly(after.load_deaths) - deadly_loads.deadly(before.load_deaths)
    return [
        events.Note("load_refused", {"module": key, "devices": sorted(after.load_deaths[key])})
        for key in sorted(deadly)
    ]


def tell(state: State, _: Event, now_s: float) -> tuple[State, list[Action]]:
    """Publish the list if agents don't know it; over a new link once no other leader has shown up."""
    published = state.quarantine.published
    if state.link is None or state.republish_at_s is not None or state.quarantine_told == published:
        return state, []
    is_news = any(published) or any(state.quarantine_told)
    message = quarantine.message_of(state.quarantine, state.epoch, now_s)
    state = replace(state, quarantine_told=published, quarantine_said=message)
    return state, [events.PublishQuarantine(message)] if is_news else []


def _notes(before: quarantine.Quarantine, after: quarantine.Quarantine) -> list[Action]:
    if before.refused is after.refused:
        return []
    notes: list[Action] = []
    for payload in after.refused.keys() - before.refused.keys():
        devices = sorted({device for device, _ in after.against.get(payload, ())})
        notes.append(events.Note("payload_refused", {"payload": payload, "devices": devices}))
    over = before.refused.keys() - after.refused.keys()
    return [*notes, *(events.Note("payload_allowed", {"payload": payload}) for payload in over)]
