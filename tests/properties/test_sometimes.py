"""Devices that are on only sometimes hold no only copy where another device can, whatever the fleet and the tasks."""

from __future__ import annotations

from itertools import product
from unittest.mock import patch

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker.cost_model import may_run, objective_s, runnable, source_of
from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceSpec
from orchestrator.planner.copies import original_key, with_further_copies
from orchestrator.planner.device_rows import sometimes_of
from orchestrator.planner.exact import exact
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.moves import free_bytes
from orchestrator.planner.placement import place, place_most, refined
from orchestrator.planner.preferred import preferred_copies
from orchestrator.planner.spares import Spares, spares
from tests.builders import placed
from tests.oracles import placements
from tests.strategies import CALMLY, Instance, instances

MIXED = instances(mixed=True)
CONSTRAINED = instances(constrained=True, mixed=True)
SMALL = instances(most_devices=4, most_tasks=2, mixed=True)
EQUAL = 1e-9


def always_on(devices: list[DeviceSpec]) -> list[DeviceSpec]:
    sometimes = sometimes_of(devices)
    return [device for device in devices if device.id not in sometimes]


@CALMLY
@given(CONSTRAINED)
def test_no_module_is_only_there_if_the_devices_that_are_always_on_can_hold_all(instance: Instance) -> None:
    devices, wanted = instance
    always = always_on(devices)
    try:
        refined(always, wanted)
    except NoDeviceFits:
        return
    names = {device.id for device in always}
    assert names.issuperset(refined(devices, wanted).where.values())
    assert names.issuperset(exact(devices, wanted).where.values())
    placement, refused = place_most(devices, wanted)
    assert not refused
    assert names.issuperset(placement.where.values())
    try:
        place(always, wanted)
    except NoDeviceFits:
        return
    assert names.issuperset(place(devices, wanted).where.values())


@CALMLY
@given(CONSTRAINED)
def test_no_module_is_only_there_that_a_device_which_is_always_on_has_room_for(instance: Instance) -> None:
    devices, wanted = instance
    placement, tasks = placed(devices, wanted)
    copied = with_further_copies(tasks, placement.further)
    free = free_bytes(copied, {key: (home,) for key, home in placement.where.items()}, devices)
    modules, sometimes = distinct_modules(copied), sometimes_of(devices)
    for key, home in placement.where.items():
        users = [task for task in copied if key in {task.module_of(node).key for node in task.nodes}]
        others = {there for other, there in placement.where.items() if original_key(other) == original_key(key)}
        for device in always_on(devices) if home in sometimes else ():
            able = device.id not in others and all(may_run(task, device) for task in users)
            form = runnable(modules[key][1], device)
            assert not able or form is None or form.memory_bytes > free[device.id]


@CALMLY
@given(CONSTRAINED)
def test_as_many_tasks_are_served_as_if_all_devices_were_always_on(instance: Instance) -> None:
    devices, wanted = instance
    alike = [device.model_copy(update={"availability": "always"}) for device in devices]
    _, refused = place_most(devices, wanted)
    if not place_most(alike, wanted)[1]:
        assert not refused


@CALMLY
@given(MIXED)
def test_where_all_devices_are_alike_nothing_differs(instance: Instance) -> None:
    devices, wanted = instance
    fleets = [
        [device.model_copy(update={"availability": each}) for device in devices] for each in ("always", "sometimes")
    ]
    (first, tasks), (second, _) = (placed(fleet, wanted) for fleet in fleets)
    assert first == second
    copied = with_further_copies(tasks, first.further)
    assert spares(fleets[0], copied, first.where) == spares(fleets[1], copied, first.where)
    assert all(preferred_copies(fleet, tasks, first.where, further=first.further) == {} for fleet in fleets)


@CALMLY
@given(SMALL)
def test_the_optimum_has_the_fewest_only_copies_there_and_is_the_cheapest_of_those(instance: Instance) -> None:
    devices, wanted = instance
    sometimes = sometimes_of(devices)
    costs = [
        (sum(home in sometimes for home in where.values()), cost_s) for where, cost_s in placements(devices, wanted)
    ]
    if not costs:
        with pytest.raises(NoDeviceFits):
            exact(devices, wanted)
        return
    found = exact(devices, wanted)
    fewest, least_s = min(costs)
    assert found.proven
    assert sum(home in sometimes for home in found.where.values()) == fewest
    assert found.objective_s == pytest.approx(least_s, rel=1e-6)
    assert found.bound_s <= found.objective_s


@CALMLY
@given(CONSTRAINED)
def test_the_other_devices_have_the_spares_that_they_would_have_without_them(instance: Instance) -> None:
    devices, wanted = instance
    always, sometimes = always_on(devices), sometimes_of(devices)
    placement, tasks = placed(devices, wanted)
    assume(sometimes.isdisjoint(placement.where.values()))
    copied = with_further_copies(tasks, placement.further)
    preferred = preferred_copies(devices, tasks, placement.where, further=placement.further)
    chosen = spares(devices, copied, placement.where, preferred=preferred)
    known = {device.id for device in always}
    there = {task.source for task in copied}
    if there <= known | {None}:  # else without its source a task starts outside, and other devices are near
        alone = spares(always, copied, placement.where)
        assert dict(chosen.standby) == dict(alone.standby)
        shared = {key: tuple(d for d in homes if d in known) for key, homes in chosen.replicas.items()}
        assert {key: homes for key, homes in shared.items() if homes} == dict(alone.replicas)
    assert sometimes.isdisjoint(device for homes in chosen.standby.values() for device in homes)
    assert all(device in chosen.replicas[key] for key, device in preferred.items())
    actives = {key: (home, *chosen.of(key)) for key, home in placement.where.items()}
    assert min(free_bytes(copied, actives, devices).values()) >= 0


@CALMLY
@given(CONSTRAINED, st.data())
def test_devices_that_have_no_copy_make_no_difference_where_only_copies_that_exist_may_be_spares(
    instance: Instance, data: st.DataObject
) -> None:
    devices, wanted = instance
    placement, tasks = placed(devices, wanted)
    copied, names = with_further_copies(tasks, placement.further), [device.id for device in devices]
    kept = spares(devices, copied, placement.where)
    exist = {original_key(key): data.draw(st.sets(st.sampled_from(names))) for key in placement.where}
    movable = sorted(placement.where)
    pinned = data.draw(st.dictionaries(st.sampled_from(movable), st.sampled_from(names), max_size=2)) if movable else {}

    def chosen() -> Spares:
        return spares(devices, copied, placement.where, at_hand=exist, kept=kept, pinned=pinned, only=exist)

    with patch("orchestrator.planner.spares._concerned", lambda devices, *_: devices):
        of_all = chosen()
    assert chosen() == of_all


@CALMLY
@given(SMALL)
def test_copies_beside_make_tasks_as_fast_as_any_choice_of_them(instance: Instance) -> None:
    devices, wanted = instance
    sometimes, by_id = sometimes_of(devices), {device.id: device for device in devices}
    placement, tasks = placed(devices, wanted)
    assume(sometimes and tasks)
    modules, sources = distinct_modules(tasks), {task.task: source_of(task, by_id) for task in tasks}

    def cost_s(where: dict[str, str]) -> float:
        return objective_s(tasks, {key: by_id[home] for key, home in where.items()}, sources)

    choices = [[home] if home in sometimes else [home, *sorted(sometimes)] for home in placement.where.values()]
    least_s = cost_s(dict(placement.where))
    for homes in product(*choices):
        where = dict(zip(placement.where, homes, strict=True))
        room = free_bytes(tasks, {key: (home,) for key, home in where.items()}, devices)
        if min(room[name] for name in sometimes) >= 0:
            least_s = min(least_s, cost_s(where))
    preferred = preferred_copies(devices, tasks, placement.where, further={})
    assert sometimes.issuperset(preferred.values())
    assert cost_s({**placement.where, **preferred}) == pytest.approx(least_s, rel=EQUAL)
    assert modules.keys() >= preferred.keys()
