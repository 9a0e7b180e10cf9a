"""A fleet file and a scenario for the questions "what if a device dies" and "what if one more comes".

Owns both changes, and the id of one more device. Knows no site.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from broker.protocol.errors import BadFile
from broker.protocol.specs import DeviceId, FleetSpec
from s2m3.testbed.replay.scenario import Scenario

FIRST, SECOND = 0.3, 0.6  # of the load's time: when devices die, and when others come after that
MAX_ID = 63  # characters


def changed_fleet(fleet: FleetSpec, without: Sequence[DeviceId], more: Sequence[DeviceId]) -> FleetSpec:
    """A fleet without these devices, and with one more like each of ``more``.

    Raises:
        BadFile: it has no such device, or can't be without it.
    """
    by_id = {device.id: device for device in fleet.devices}
    _check(without, more, by_id)
    if fleet.source in without:
        problem, fix = f"requests start at {fleet.source}, the fleet's source", "name another source in the fleet file"
        raise BadFile(file="--without", problem=problem, fix=fix)
    added = [by_id[name].model_copy(update={"id": new}) for name, new in _ids(more, by_id)]
    kept = [device for device in fleet.devices if device.id not in without]
    return FleetSpec(source=fleet.source, devices=(*kept, *added))


def changed_scenario(scenario: Scenario, without: Sequence[DeviceId], more: Sequence[DeviceId]) -> Scenario:
    """A scenario in which these devices die under its load, and one more like each of ``more`` joins.

    Raises:
        BadFile: it has no such device.
    """
    by_id = {device.id: device for device in scenario.fleet}
    _check(without, more, by_id)
    ids = _ids(more, by_id)
    end_s = scenario.load.duration_s
    faults = [{"at_s": FIRST * end_s, "kill": name} for name in without]
    faults += [{"at_s": (SECOND if without else FIRST) * end_s, "join": new} for _, new in ids]
    fields = scenario.model_dump(exclude_unset=True)
    devices = [*fields["fleet"]]
    devices += [by_id[name].model_dump(exclude_unset=True) | {"id": new} for name, new in ids]
    what = [f"{name} dies" for name in without] + [f"{new} joins" for _, new in ids]
    name = f"{scenario.name}: {', '.join(what)}"[:200]
    return scenario.changed(name=name, fleet=devices, faults=[*fields.get("faults", ()), *faults])


def _check(without: Sequence[DeviceId], more: Sequence[DeviceId], known: Collection[DeviceId]) -> None:
    for option, names in (("--without", without), ("--one-more", more)):
        for position, name in enumerate(names):
            if name not in known:
                raise BadFile(file=option, problem=f"{name} is not a device of the fleet", fix=_one_of(known))
            if option == "--without" and name in names[:position]:
                raise BadFile(file=option, problem=f"{name} is named twice", fix="name it once")
    if without and not set(known) - set(without):
        raise BadFile(file="--without", problem="no device would be left", fix="leave one of them out")


def _one_of(known: Collection[DeviceId]) -> str:
    return f"use one of: {', '.join(sorted(known))}"


def _ids(more: Sequence[DeviceId], known: Collection[DeviceId]) -> list[tuple[DeviceId, DeviceId]]:
    """Each of these with the id of one more like it: gw-a-2, gw-a-3 ..."""
    taken, found = set(known), []
    for name in more:
        number = 2
        while (new := f"{name[: MAX_ID - 4]}-{number}") in taken:
            number += 1
        taken.add(new)
        found.append((name, new))
    return found
