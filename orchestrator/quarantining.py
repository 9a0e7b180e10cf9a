"""The leader's rules for requests that may kill devices: it follows the evidence, and tells the agents.

Owns the step from events to ``membership.quarantine``, and from that to messages. Only devices that were assigned a
module can have died of a request.
"""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.codec import request_id
from broker.transport.port import LinkUp
from orchestrator import events
from orchestrator.events import Action, DeviceStateReceived, Event, HeartbeatReceived, RequestReceived
from orchestrator.membership import quarantine
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
    if isinstance(event, DeviceStateReceived):
        born = before.cluster.devices.get(event.device)
        after = quarantine.on_birth(after, born, event.device, event.message, now_s)
    after = quarantine.expire(after, now_s)
    if after is not known:
        state = replace(state, quarantine=after)
    actions = _notes(known, after)
    if isinstance(event, LinkUp):
        return replace(state, quarantine_told=()), actions  # the broker may have lost it
    device = state.cluster.devices.get(event.device) if isinstance(event, HeartbeatReceived) else None
    if isinstance(event, HeartbeatReceived) and device is not None and device.alone == event.message.alone is not None:
        after, granted = quarantine.permit(state.quarantine, state.cluster, device, now_s)
        state = state if after is state.quarantine else replace(state, quarantine=after)
        if granted is not None:
            actions.append(events.PublishPermit(device.id, state.epoch, event.message.alone.request, granted))
    state, told = tell(state, event, now_s)
    return state, [*actions, *told]


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
