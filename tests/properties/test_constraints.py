"""Modules stand only where they may, and the right tasks yield, whatever the fleet, the tasks and their constraints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hypothesis import assume, given
from hypothesis import strategies as st

from broker.cost_model import may_run
from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import TaskSpec
from orchestrator.planner.copies import Constraints, original_key, with_further_copies
from orchestrator.planner.explain import explain
from orchestrator.planner.fleet import Fleet
from orchestrator.planner.placement import place_most, refined
from orchestrator.planner.problem import Placement
from orchestrator.planner.spares import spares
from tests import oracles
from tests.builders import placed
from tests.oracles import exhaustive, may_hold
from tests.strategies import CALMLY, Instance, instances

CONSTRAINED = instances(constrained=True)


def homes_of(placement: Placement, task: TaskSpec) -> Mapping[str, str]:
    """The device of each module that a task uses, by the module's own key."""
    (copied,) = with_further_copies([task], placement.further)
    keys = {copied.module_of(node).key for node in task.nodes}
    return {original_key(key): placement.where[key] for key in keys}


@CALMLY
@given(CONSTRAINED)
def test_every_task_uses_only_devices_where_it_may_run(instance: Instance) -> None:
    devices, _ = instance
    by_id = {device.id: device for device in devices}
    placement, tasks = placed(*instance)
    for task in tasks:
        for home in homes_of(placement, task).values():
            assert oracles.may_run(task, by_id[home])


@CALMLY
@given(CONSTRAINED)
def test_a_module_has_further_copies_only_where_no_device_may_hold_it_for_all_its_tasks(instance: Instance) -> None:
    devices, tasks = instance
    try:
        placement = refined(devices, tasks)
    except NoDeviceFits:
        return
    assert len({(original_key(key), home) for key, home in placement.where.items()}) == len(placement.where)
    for key, number in Counter(map(original_key, placement.where)).items():
        users = [task for task in tasks if key in {task.module_of(node).key for node in task.nodes}]
        modules = {task.task: next(m for m in map(task.module_of, task.nodes) if m.key == key) for task in users}
        together = [d for d in devices if all(may_hold(modules[task.task], d, users) for task in users)]
        assert (number == 1) or not together


@CALMLY
@given(CONSTRAINED)
def test_spares_keep_to_the_constraints_and_no_device_has_two_copies_of_a_module(instance: Instance) -> None:
    devices, _ = instance
    by_id = {device.id: device for device in devices}
    placement, tasks = placed(*instance)
    copied = with_further_copies(tasks, placement.further)
    chosen = spares(devices, copied, placement.where)
    there = [(original_key(key), home) for key, home in placement.where.items()]
    for key in placement.where:
        users = [task for task in copied if key in {task.module_of(node).key for node in task.nodes}]
        for home in chosen.of(key):
            there.append((original_key(key), home))
            assert all(oracles.may_run(task, by_id[home]) for task in users)
    assert len(set(there)) == len(there)


@CALMLY
@given(CONSTRAINED)
def test_an_explanation_gives_a_reason_for_every_other_device(instance: Instance) -> None:
    devices, _ = instance
    placement, tasks = placed(*instance)
    for key in placement.where:
        rejected = explain(placement, key).rejected
        assert rejected.keys() == {device.id for device in devices} - {placement.where[key]}
        users = [t for t in with_further_copies(tasks, placement.further) if key in {m.key for m in t.modules.values()}]
        for device in devices:
            if device.id != placement.where[key] and not all(may_run(task, device) for task in users):
                reason = rejected[device.id]
                assert " may only " in reason or (device.tasks == () and reason == "it holds nothing")


@CALMLY
@given(CONSTRAINED)
def test_the_planners_flags_are_the_cost_models_word(instance: Instance) -> None:
    devices, tasks = instance
    fleet = Fleet(devices)
    constraints = Constraints(fleet, tasks)
    for task in tasks:
        allowed = constraints.may_run(task)
        assert fleet.flags(allowed).tolist() == [may_run(task, spec) for spec in fleet.specs]
        assert fleet.flags(allowed).tolist() == [oracles.may_run(task, spec) for spec in fleet.specs]
        for module in task.modules.values():
            able = allowed & fleet.runs(module) & fleet.fits(module)
            assert fleet.flags(able).tolist() == [may_hold(module, spec, [task]) for spec in fleet.specs]


@CALMLY
@given(CONSTRAINED)
def test_what_is_placed_stays_when_it_is_placed_again(instance: Instance) -> None:
    devices, wanted = instance
    placement, tasks = placed(devices, wanted)
    assert refined(devices, tasks, keep=placement.where).where == placement.where
    again, refused = place_most(devices, wanted, keep=placement.where)
    assert again.where == placement.where
    assert refused.keys() == {task.task for task in wanted} - {task.task for task in tasks}


@CALMLY
@given(instances(most_devices=4, most_tasks=3, constrained=True))
def test_a_refused_task_fits_beside_no_placement_of_the_tasks_that_come_first(instance: Instance) -> None:
    devices, wanted = instance
    _, refused = place_most(devices, wanted)
    order = sorted(wanted, key=lambda task: -task.weight)  # the older ones come first in ``wanted``
    for name, refusal in refused.items():
        task = next(task for task in order if task.task == name)
        first = [other for other in order[: order.index(task)] if other.task not in refused]
        assert exhaustive(devices, [*first, task]) is None
        assert set(refusal.yields_to) <= {other.task for other in first}
        if exhaustive(devices, [task]) is None:
            assert refusal.yields_to == ()
        elif first:
            assert refusal.yields_to, "it would fit alone, so another task is in its way"


@CALMLY
@given(CONSTRAINED, st.data())
def test_a_served_task_is_not_dropped_for_a_later_one_of_no_greater_weight(
    instance: Instance, data: st.DataObject
) -> None:
    devices, wanted = instance
    assume(len(wanted) > 1)
    later = wanted[-1].model_copy(update={"weight": min(task.weight for task in wanted)})
    before, refused_before = place_most(devices, wanted[:-1])
    position = data.draw(st.sampled_from([None, before.where]), label="keep")
    _, refused_after = place_most(devices, [*wanted[:-1], later], keep=position)
    assert refused_after.keys() - {later.task} <= refused_before.keys()


@CALMLY
@given(CONSTRAINED)
def test_a_refusal_names_every_device_and_why_it_does_not_count(instance: Instance) -> None:
    devices, wanted = instance
    _, refused = place_most(devices, wanted)
    for refusal in refused.values():
        assert refusal.short_bytes.keys() | refusal.excluded.keys() == {device.id for device in devices}
        assert not refusal.short_bytes.keys() & refusal.excluded.keys()
        assert all(name in str(refusal) for name in refusal.excluded)


@CALMLY
@given(CONSTRAINED)
def test_where_there_is_memory_a_new_task_moves_no_copy(instance: Instance) -> None:
    devices, wanted = instance
    devices = [device.model_copy(update={"memory_bytes": 10_000}) for device in devices]
    before, refused = place_most(devices, wanted[:-1])
    earlier = [task for task in wanted[:-1] if task.task not in refused]
    after, _ = place_most(devices, [*earlier, wanted[-1]], keep=before.where)
    for task in earlier:
        assert homes_of(after, task) == homes_of(before, task)
