"""What planning reads from the state: devices with what they measured, tasks with what they really need.

Owns the step from reports to the planner's arguments. Changes nothing; knows nothing of how a placement is found.

Invariants:
- a measured value wins over an estimate; of measured footprints the largest counts everywhere, and the spec's at least;
- a module needs the bytes that its own device reports, where it is ready: another device's larger measurement takes
  nobody's place away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.membership.device import Device
from orchestrator.placement.deployability import refused_too_often, unservable
from orchestrator.planner.placement import AtHand, Bars
from orchestrator.state import Facts, Standing, State


def facts_of(state: State) -> Facts:
    """All that calls for placing anew when it changes."""
    alive = state.cluster.alive()
    barred: dict[ModuleKey, dict[DeviceId, str]] = {}
    for device in alive:
        for key, error in device.barred.items():
            barred.setdefault(key, {})[device.id] = f"it failed there: {error}"
    tasks = [task for _, task in sorted(state.tasks.items())]
    reasons = {task.task: why for task in tasks if (why := unservable(state, task, barred)) is not None}
    served = tuple(task for task in tasks if task.task not in reasons)
    return Facts(
        candidates=tuple((device.id, device.profile) for device in alive),
        tasks=served,
        unservable=reasons,
        barred=barred,
        footprints=_footprints(state.footprints, served),
        doubts={device.id: device.doubt for device in alive if device.doubt is not None},
    )


def placement_constraints(
    state: State, facts: Facts, *more: Mapping[ModuleKey, DeviceId], only_drained: bool = False
) -> Bars:
    """``facts.barred``, and what doubtful devices don't hold yet.

    A device that is drained keeps what only it serves; the others keep all that they were told to hold.

    Args:
        state: for what stands.
        facts: the devices and tasks.
        more: further homes of modules, that may stay as well.
        only_drained: whether other doubts don't count, because nothing else fits.
    """
    bars: dict[ModuleKey, dict[DeviceId, str]] = {key: dict(refusals) for key, refusals in facts.barred.items()}
    keys = {module.key for task in facts.tasks for module in task.modules.values()}
    for name, why in facts.doubts.items():
        draining = state.cluster.devices[name].draining
        if only_drained and not draining:
            continue
        stays = {key for homes in (state.standing.where, *more) for key, home in homes.items() if home == name}
        if not draining:
            stays |= state.standing.held_by.get(name, {}).keys()
        for key in keys - stays:
            bars.setdefault(key, {}).setdefault(name, why)
    return bars


def grown(state: State, name: DeviceId) -> Mapping[ModuleKey, int]:
    """The footprints that planning must reckon with after a device's report; only of what a task needs."""
    known = state.cluster.devices.get(name)
    larger = {
        key: module.memory_bytes
        for key, module in (known.held.items() if known else ())
        if module.state == "ready" and module.memory_bytes > state.footprints.get(key, 0)
    }
    if larger:
        needed = {module.key for task in state.tasks.values() for module in task.modules.values()}
        larger = {key: size_bytes for key, size_bytes in larger.items() if key in needed}
    return {**state.footprints, **larger} if larger else state.footprints


def candidate_specs(state: State, facts: Facts) -> dict[DeviceId, DeviceSpec]:
    """The candidates as planning sees them."""
    return {name: state.cluster.devices[name].spec for name, _ in facts.candidates}


def with_measured_footprints(tasks: Sequence[TaskSpec], footprints: Mapping[ModuleKey, int]) -> list[TaskSpec]:
    """The tasks with the bytes that their modules really occupy."""
    return [_as_measured(task, footprints) for task in tasks]


def memory_credit(state: State, standing: Standing, facts: Facts) -> dict[DeviceId, int]:
    """Bytes to add to a device's memory for active copies that are ready there in less than their footprint."""
    credit: dict[DeviceId, int] = {}
    for key, home in standing.where.items():
        device = state.cluster.devices.get(home)
        if key in facts.footprints and device is not None and device.ready(key):
            own = max(device.held[key].memory_bytes, standing.modules[key][1].memory_bytes)
            credit[home] = credit.get(home, 0) + max(0, facts.footprints[key] - own)
    return {device: size_bytes for device, size_bytes in credit.items() if size_bytes}


def at_hand(state: State) -> AtHand:
    """The devices that hold a module's weights, load them, or have them on their disk."""
    found: dict[ModuleKey, set[DeviceId]] = {}
    for device in state.cluster.alive():
        for key in (*_held(device), *device.cached):
            found.setdefault(key, set()).add(device.id)
    return found


def existing(state: State) -> AtHand:
    """The copies that are there, or that a device was told to hold: to keep those costs no load."""
    found: dict[ModuleKey, set[DeviceId]] = {}
    for device, keys in state.standing.held_by.items():
        for key in keys:
            found.setdefault(key, set()).add(device)
    for alive in state.cluster.alive():
        for key in _held(alive):
            found.setdefault(key, set()).add(alive.id)
    return found


def adopted(state: State, barred: Bars) -> dict[ModuleKey, DeviceId]:
    """Modules that devices hold already; of several devices one that is ready, then one that served, then by id."""
    serving: dict[ModuleKey, tuple[DeviceId, ...]] = {}
    for route in state.remembered.values():
        serving |= route.serving
    held = [
        (device.doubt is not None, not device.ready(key), _rank(device.id, serving.get(key, ())), device.id, key)
        for device in state.cluster.alive()
        for key in _held(device)
        if device.id not in barred.get(key, {})
    ]
    return {key: device for *_, device, key in sorted(held, reverse=True)}


def load_s(state: State) -> dict[ModuleKey, float]:
    """The longest time that any device needed to load each module."""
    longest: dict[ModuleKey, float] = {}
    for device in state.cluster.alive():
        for key, module in device.held.items():
            if module.load_s:
                longest[key] = max(module.load_s, longest.get(key, 0.0))
    return longest


def spare_constraints(state: State, facts: Facts, where: Mapping[ModuleKey, DeviceId]) -> Bars:
    """As ``placement_constraints``; what was refused too often gets no further copies at all."""
    stays = state.standing.held_by
    bars: dict[ModuleKey, Mapping[DeviceId, str]] = dict(placement_constraints(state, facts, where))
    for key in facts.barred:
        if refused_too_often(key, facts.barred):
            others = {name: "" for name, _ in facts.candidates if key not in stays.get(name, {})}
            bars[key] = {**others, **bars[key]}
    return bars


def _held(device: Device) -> list[ModuleKey]:
    return [key for key, module in device.held.items() if module.state != "failed"]


def _rank(device: DeviceId, serving: Sequence[DeviceId]) -> int:
    return serving.index(device) if device in serving else len(serving)


def _footprints(measured: Mapping[ModuleKey, int], tasks: Sequence[TaskSpec]) -> dict[ModuleKey, int]:
    modules = {module.key: module for task in tasks for module in task.modules.values()}
    return {
        key: measured[key] for key, module in modules.items() if key in measured and measured[key] > module.memory_bytes
    }


def _as_measured(task: TaskSpec, footprints: Mapping[ModuleKey, int]) -> TaskSpec:
    larger = {
        name: module.model_copy(update={"memory_bytes": footprints[module.key]})
        for name, module in task.modules.items()
        if module.key in footprints
    }
    return task.model_copy(update={"modules": {**task.modules, **larger}}) if larger else task
