"""First loads: the digest that the site keeps of each source whose task file states none.

Owns which digest counts. A device reports the digest of the weights that it loaded. The first one counts for every
device, and is stored with the operators' orders. Assignments have it: a device that finds another digest refuses the
weights. One that reports such weights as ready loaded them before it could know, and counts as failed there. Pure.

Invariants:
- a digest never becomes a module's key: nothing moves because one was recorded;
- only a device that was assigned the module, and has it ready, sets the digest of its source. A word about any other
  module changes nothing, and a word about one's own weights bars nobody else who has the first ones;
- what one device alone found first counts until two others found another one and the first doesn't serve: so a device
  that lies can't keep a module from the others. What two devices found first stays;
- a task file that states the digest needs none of this;
- what is kept is bounded in number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from broker.protocol.messages import MAX_FIRST_DEVICES, FirstLoad, HeldModule
from broker.protocol.specs import DeviceId, ModuleKey, ModuleSpec, TaskName
from orchestrator.events import Action, HeartbeatReceived, Note
from orchestrator.leadership.orders import with_digests
from orchestrator.membership.failure_detector import clear_backoffs
from orchestrator.state import Moment, OtherDigests, State

ENOUGH = 2  # devices that agree
MAX_SOURCES = 1_000  # of which others than the first digest are remembered
MAX_FINDERS = 8  # of one source


def on_heartbeat(state: State, event: HeartbeatReceived) -> tuple[State, HeartbeatReceived, list[Action]]:
    """Take in the digests that a device reports; in the returned event, modules of other weights are failed ones."""
    told = {key: held for key, held in event.message.modules.items() if held.digest is not None}
    assignment = state.assignments.get(event.device)
    if not told or assignment is None or event.device not in state.cluster.devices:
        return state, event, []
    notes: list[Action] = []
    failed: dict[ModuleKey, HeldModule] = {}
    for spec in (each.spec for each in assignment.modules if each.spec.key in told):
        held, name = told[spec.key], spec.recorded_as
        if name is None or held.digest is None:
            continue
        first = state.orders.digests.get(name)
        if first is not None and first.digest != held.digest:
            state = _with_other(state, name, spec.key, event.device, held.digest)
            if held.state == "ready":
                fields = {"state": "failed", "error": first.refusal(spec.source, held.digest)}
                failed[spec.key] = held.model_copy(update=fields)
            continue
        state = _without_other(state, name, event.device)
        if held.state == "ready" and (first is None or _confirms(first, event.device)):
            devices = (*(first.devices if first else ()), event.device)
            state = _recorded(state, name, FirstLoad(digest=held.digest, devices=devices))
            notes += [Note("digest_recorded", {"source": name, "digest": held.digest, "devices": [*devices]})]
    if not failed:
        return state, event, notes
    message = event.message.model_copy(update={"modules": {**event.message.modules, **failed}})
    return state, replace(event, message=message), notes


def outvote(state: State, moment: Moment) -> tuple[State, list[Action]]:  # noqa: ARG001 - a rule of ``decide``
    """Let a digest that two devices found count in place of one that only one found, which doesn't serve now."""
    notes: list[Action] = []
    for name, others in state.other_digests.items():
        winner = _winner(state, name, others)
        if winner is None:
            continue
        first = state.orders.digests[name]
        state = _recorded(state, name, winner)
        state = replace(state, cluster=clear_backoffs(state.cluster, {others.key}))
        fields = {"source": name, "digest": winner.digest, "devices": [*winner.devices]}
        notes.append(Note("digest_outvoted", {**fields, "before": first.digest, "device": first.devices[0]}))
    return state, notes


def first_load(state: State, spec: ModuleSpec) -> FirstLoad | None:
    """The digest that a module's weights must have; None if its task file states it, or no device loaded them yet."""
    return state.orders.digests.get(spec.recorded_as) if state.orders.digests and spec.recorded_as else None


def of_task(state: State, task: TaskName) -> dict[str, FirstLoad]:
    """The first digests of a task's sources."""
    if not state.orders.digests:
        return {}
    specs = [spec for spec in (state.tasks.get(task), state.served.get(task)) if spec is not None]
    names = sorted({module.recorded_as for spec in specs for module in spec.modules.values() if module.recorded_as})
    return {name: state.orders.digests[name] for name in names if name in state.orders.digests}


def _confirms(first: FirstLoad, device: DeviceId) -> bool:
    return device not in first.devices and len(first.devices) < MAX_FIRST_DEVICES


def _recorded(state: State, name: str, first: FirstLoad) -> State:
    """The state with the digest of a source; what other devices found before is forgotten."""
    others = {each: found for each, found in state.other_digests.items() if each != name}
    return replace(state, orders=with_digests(state.orders, {name: first}), other_digests=others)


def _with_other(state: State, name: str, key: ModuleKey, device: DeviceId, digest: str) -> State:
    """The state in which a device found another digest than the first one."""
    known: Mapping[DeviceId, str] = state.other_digests[name].found if name in state.other_digests else {}
    is_full = len(known) >= MAX_FINDERS if known else len(state.other_digests) >= MAX_SOURCES
    if known.get(device) == digest or (device not in known and is_full):
        return state
    others = OtherDigests(key, {**known, device: digest})
    return replace(state, other_digests={**state.other_digests, name: others})


def _without_other(state: State, name: str, device: DeviceId) -> State:
    """The state in which a device has the first digest, whatever it found before."""
    known = state.other_digests.get(name)
    if known is None or device not in known.found:
        return state
    found = {other: digest for other, digest in known.found.items() if other != device}
    others = {each: of for each, of in state.other_digests.items() if each != name}
    return replace(state, other_digests={**others, name: replace(known, found=found)} if found else others)


def _winner(state: State, name: str, others: OtherDigests) -> FirstLoad | None:
    """The first load that counts from now on; None if the present one stays."""
    first = state.orders.digests.get(name)
    if first is None or len(first.devices) >= ENOUGH:
        return None
    home = state.cluster.devices.get(first.devices[0])
    if home is not None and home.serves(others.key) and not home.unresponsive:
        return None
    found = {device: digest for device, digest in others.found.items() if device not in first.devices}
    digest, count = max(Counter(found.values()).items(), key=lambda each: (each[1], each[0]), default=("", 0))
    if count < ENOUGH:
        return None
    devices = sorted(device for device, each in found.items() if each == digest)
    return FirstLoad(digest=digest, devices=tuple(devices[:MAX_FIRST_DEVICES]))
