"""Forgetting: a device that is gone for good leaves the site's picture, by an operator's order.

Owns what the broker retains of such a device, and its late will. A device that sends heartbeats is never forgotten: the
failure detector says so. One that comes back after all is a new device: nothing is held against it, and no drain.
"""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.topics import DEVICE_STATE, OF_A_DEVICE
from orchestrator import events
from orchestrator.events import Action, DeviceStateReceived, Event, ForgetReceived
from orchestrator.state import State

MAX_FORGOTTEN = 1_000  # whose late wills are cleared; a device that is forgotten was silent for some seconds before


def forget(before: State, state: State, event: Event, _: float) -> tuple[State, list[Action]]:
    """Clear what the broker retains of a forgotten device, and its will if that comes later."""
    if isinstance(event, ForgetReceived):
        return _forget(before, state, event.device)
    if not isinstance(event, DeviceStateReceived) or event.device not in state.forgotten:
        return state, []
    if event.device in state.cluster.devices:  # it is back
        return replace(state, forgotten=tuple(name for name in state.forgotten if name != event.device)), []
    return state, [events.Clear(DEVICE_STATE, event.device)]


def _forget(before: State, state: State, name: str) -> tuple[State, list[Action]]:
    if name in state.cluster.devices:
        return state, [events.Note("forget_refused", {"device": name, "why": "it is online: end its agent first"})]
    known = before.cluster.devices.get(name)
    fields = {"device": name, "was": known.absence if known else "it wasn't known"}
    others = tuple(other for other in state.forgotten if other != name)
    state = replace(state, forgotten=(*others, name)[-MAX_FORGOTTEN:])
    clears = [events.Clear(topic, name) for topic in OF_A_DEVICE]
    return state, [events.Note("device_forgotten", fields), *clears]
