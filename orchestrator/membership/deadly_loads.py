"""The modules whose loads end processes: which devices died while they loaded which module. Pure.

Owns this evidence. A device that dies while a module of its assignment isn't ready may have died of the load: a damaged
file of weights, or more memory than there is. The module isn't loaded there again for a while, and after deaths of
``ENOUGH`` devices nowhere; copies that are ready go on. So a hostile file takes down two devices, and not one after the
other.

Invariants:
- only deaths that this orchestrator saw itself count, of devices that were assigned the module. Two deaths of one
  device say nothing about the others: no device takes a task from another one;
- a death counts no more if the device comes back and says that it didn't crash of the load, if its machine was
  switched off meanwhile, or if the same session goes on, which was only silent. Without a word it counts for
  ``UNTOLD_S``, and for ``TOLD_S`` if the device says so;
- what is kept is bounded in number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from broker.protocol.codec import load_digest
from broker.protocol.messages import Assignment, DeviceState
from broker.protocol.specs import DeviceId, ModuleKey
from orchestrator.membership.device import Device
from orchestrator.membership.failure_detector import Cluster

ENOUGH = 2  # devices: then no other one tries
BEGIN_S = 0.01  # from an assignment to a death that can be of its loads
UNTOLD_S = 60.0
TOLD_S = 600.0
MAX_LOADS = 32  # of one device that are counted, those of its assignment's beginning; it loads one at a time
MAX_MODULES = 1_000


@dataclass(frozen=True)
class LoadDeath:
    """The end of a device that was to load a module."""

    session: int  # that ended
    at_s: float
    until_s: float  # it counts


LoadDeaths = Mapping[ModuleKey, Mapping[DeviceId, LoadDeath]]
Assigned = tuple[Assignment, float]
"""An assignment, and when it was published."""


def on_devices(
    deaths: LoadDeaths,
    before: Cluster,
    after: Cluster,
    assigned: Callable[[DeviceId], Assigned | None],
    now_s: float,
) -> LoadDeaths:
    """Count the devices that died between two states of the cluster, and had the time to begin a load."""
    if after.devices is before.devices or not after.listening:
        return deaths
    for name in after.devices.differences(before.devices):
        known, device = before.devices.get(name), after.devices.get(name)
        if device is not None and device.alive:
            deaths = _without_session(deaths, name, device.session)
            continue
        if known is None or not known.alive:
            continue
        if (given := assigned(name)) is None:
            continue
        assignment, at_s = given
        for key in _loading(known, assignment) if now_s - at_s >= BEGIN_S else ():
            death = LoadDeath(known.session, now_s, now_s + UNTOLD_S)
            deaths = {**deaths, key: {**deaths.get(key, {}), name: death}}
    return deaths if len(deaths) <= MAX_MODULES else dict([*deaths.items()][-MAX_MODULES:])


def on_link_down(deaths: LoadDeaths, doubtful_since_s: float) -> LoadDeaths:
    """Forget the ends that a broker said of all devices when it ended itself."""
    doubtful = [(key, name) for key, by in deaths.items() for name, each in by.items() if each.at_s > doubtful_since_s]
    for key, name in doubtful:
        deaths = _without(deaths, key, name)
    return deaths


def _loading(device: Device, assignment: Assignment) -> list[ModuleKey]:
    """The modules of its assignment that a device may have been loading: those that it reports as neither."""
    over = {key for key, module in device.modules.items() if module.state != "loading"}
    return [each.spec.key for each in assignment.modules if each.spec.key not in over][:MAX_LOADS]


def on_birth(deaths: LoadDeaths, name: DeviceId, birth: DeviceState, now_s: float) -> LoadDeaths:
    """React to what a device says of the process before."""
    of_device = {key: by[name] for key, by in deaths.items() if name in by}
    for key, death in of_device.items() if birth.status == "online" else ():
        if birth.session == death.session:
            continue
        was_off = birth.machine_up_s is not None and birth.machine_up_s < now_s - death.at_s
        if was_off or (birth.died_with is not None and load_digest(key) not in birth.died_with):
            deaths = _without(deaths, key, name)
        elif birth.died_with is not None and death.until_s < death.at_s + TOLD_S:
            told = replace(death, until_s=death.at_s + TOLD_S)
            deaths = {**deaths, key: {**deaths[key], name: told}}
    return deaths


def expire(deaths: LoadDeaths, now_s: float) -> LoadDeaths:
    """The same without what is over; the same object if nothing is."""
    if now_s < next_deadline_s(deaths):
        return deaths
    over = [(key, name) for key, by in deaths.items() for name, death in by.items() if now_s >= death.until_s]
    for key, name in over:
        deaths = _without(deaths, key, name)
    return deaths


def next_deadline_s(deaths: LoadDeaths) -> float:
    """The time at which ``expire`` next changes anything."""
    return min((death.until_s for by in deaths.values() for death in by.values()), default=math.inf)


def deadly(deaths: LoadDeaths) -> frozenset[ModuleKey]:
    """The modules that no other device may load now."""
    return frozenset(key for key, by in deaths.items() if len(by) >= ENOUGH)


def _without_session(deaths: LoadDeaths, name: DeviceId, session: int) -> LoadDeaths:
    """The same without the deaths of a session that goes on."""
    for key in [key for key, by in deaths.items() if name in by and by[name].session == session]:
        deaths = _without(deaths, key, name)
    return deaths


def _without(deaths: LoadDeaths, key: ModuleKey, name: DeviceId) -> LoadDeaths:
    left = {other: death for other, death in deaths[key].items() if other != name}
    others = {each: by for each, by in deaths.items() if each != key}
    return {**others, key: left} if left else others
