"""Every placement keeps its promises, whatever the fleet and the tasks."""

from __future__ import annotations

import random
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker.cost_model import latency_s, objective_s, source_of
from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceSpec, TaskSpec
from orchestrator.planner.budget import Budget
from orchestrator.planner.candidates import candidates_of, least_s, tails_s
from orchestrator.planner.device_rows import NOWHERE
from orchestrator.planner.explain import explain
from orchestrator.planner.fleet import Fleet
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.placement import place, place_most, refined
from orchestrator.planner.problem import Placement, Problem
from orchestrator.planner.schedule import TaskSchedule
from tests.oracles import request_of, simulated_latency_s, size_of
from tests.strategies import CALMLY, Instance, fleets, instances, modules

BRIEFLY = settings(CALMLY, max_examples=CALMLY.max_examples // 2)


def placed(devices: list[DeviceSpec], wanted: list[TaskSpec], keep: dict[str, str] | None = None) -> Placement:
    """The placement; instances that don't fit are not what the test is about."""
    try:
        return place(devices, wanted, keep=keep)
    except NoDeviceFits:
        assume(condition=False)
        raise


def used_bytes(placement: Placement, wanted: list[TaskSpec], device: DeviceSpec) -> int:
    """Counted once more, from the tasks and the device alone."""
    there = [module for key, (_, module) in distinct_modules(wanted).items() if placement.where[key] == device.id]
    return sum(size_of(module, device) or 0 for module in there)


@CALMLY
@given(instances())
def test_no_device_holds_more_than_its_memory_and_every_module_is_placed_once(
    instance: Instance,
) -> None:
    devices, wanted = instance
    placement = placed(devices, wanted)
    assert placement.where.keys() == {task.module_of(node).key for task in wanted for node in task.nodes}
    for device in devices:
        used = used_bytes(placement, wanted, device)
        assert used <= device.memory_bytes
        assert placement.used_bytes[device.id] == used
    assert placement.shared_bytes == sum(placement.used_bytes.values())
    assert placement.shared_bytes <= placement.unshared_bytes


@CALMLY
@given(instances(), st.randoms(use_true_random=False))
def test_the_order_of_devices_and_tasks_does_not_matter(instance: Instance, chance: random.Random) -> None:
    devices, wanted = instance
    placement = placed(devices, wanted)
    chance.shuffle(devices)
    chance.shuffle(wanted)
    assert place(devices, wanted) == placement


@CALMLY
@given(instances())
def test_the_objective_can_be_recomputed_from_where_modules_are(
    instance: Instance,
) -> None:
    devices, wanted = instance
    placement = placed(devices, wanted)
    by_id = {device.id: device for device in devices}
    where = {key: by_id[name] for key, name in placement.where.items()}
    sources = {task.task: source_of(task, by_id) for task in wanted}
    assert abs(placement.objective_s - objective_s(wanted, where, sources)) <= 1e-9
    weighted = sum(task.weight * placement.latency_s[task.task] for task in wanted)
    assert abs(placement.objective_s - weighted) <= 1e-9


@CALMLY
@given(instances())
def test_every_module_says_why_it_is_there_and_why_nowhere_else(
    instance: Instance,
) -> None:
    devices, wanted = instance
    placement = placed(devices, wanted)
    for key in placement.where:
        explanation = explain(placement, key)
        assert explanation.device == placement.where[key]
        assert explanation.rejected.keys() == {device.id for device in devices} - {explanation.device}


@CALMLY
@given(instances())
def test_modules_come_in_order_of_flops_then_memory(instance: Instance) -> None:
    _, wanted = instance
    order = [spec for _, spec in distinct_modules(wanted).values()]
    assert all((a.flops, a.memory_bytes) >= (b.flops, b.memory_bytes) for a, b in pairwise(order))
    assert len({spec.key for spec in order}) == len(order)


@CALMLY
@given(instances(), modules().flatmap(fleets))
def test_what_is_placed_stays_when_devices_come(instance: Instance, newcomers: list[DeviceSpec]) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    known = {device.id for device in devices}
    grown = [*devices, *(device for device in newcomers if device.id not in known)]
    assert place(grown, wanted, keep=before.where).where == before.where


@CALMLY
@given(instances(), st.integers(0, 4))
def test_when_a_device_goes_only_its_modules_move(instance: Instance, position: int) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    lost = devices[position % len(devices)].id
    after = placed([device for device in devices if device.id != lost], wanted, keep=dict(before.where))
    assert all(after.where[key] == home for key, home in before.where.items() if home != lost)


@CALMLY
@given(instances())
def test_placing_as_many_as_fit_leaves_out_only_what_cannot_be_added(
    instance: Instance,
) -> None:
    devices, wanted = instance
    placement, refused = place_most(devices, wanted)
    admitted = [task for task in wanted if task.task not in refused]
    assert placement.where.keys() == {task.module_of(node).key for task in admitted for node in task.nodes}
    assert all(placement.used_bytes[device.id] <= device.memory_bytes for device in devices)
    for task in wanted:
        if task.task in refused:
            for keep in ({}, placement.where):
                with pytest.raises(NoDeviceFits):
                    place(devices, [*admitted, task], keep=keep)
            assert refused[task.task].short_bytes


@CALMLY
@given(instances())
def test_an_error_names_for_every_device_how_many_bytes_it_lacks(
    instance: Instance,
) -> None:
    devices, wanted = instance
    _, refused = place_most(devices, wanted)
    for refusal in refused.values():
        assert refusal.short_bytes.keys() == {device.id for device in devices}
        assert all(0 < short <= refusal.memory_bytes for short in refusal.short_bytes.values())


@st.composite
def placed_tasks(draw: st.DrawFn) -> tuple[list[DeviceSpec], TaskSpec, dict[str, str]]:
    """A task, and devices for some of its modules, without a look at the memory."""
    devices, (task, *_) = draw(instances(most_tasks=1))
    keys = sorted({task.module_of(node).key for node in task.nodes})
    home = st.sampled_from([None, *(device.id for device in devices)])
    return devices, task, {key: there for key in keys if (there := draw(home)) is not None}


@settings(CALMLY, max_examples=2 * CALMLY.max_examples)
@given(placed_tasks())
def test_the_latency_is_that_of_letting_time_go_on_event_by_event(
    drawn: tuple[list[DeviceSpec], TaskSpec, dict[str, str]],
) -> None:
    devices, task, homes = drawn
    by_id = {device.id: device for device in devices}
    where = {key: by_id[home] for key, home in homes.items()}
    source = source_of(task, by_id)
    assert latency_s(task, where, source) == simulated_latency_s(task, where, str(source.id), devices)


@CALMLY
@given(instances(most_tasks=1), st.data())
def test_one_placement_many_at_once_and_the_cost_model_say_the_same_seconds_bit_for_bit(
    instance: Instance, data: st.DataObject
) -> None:
    devices, (task,) = instance
    fleet = Fleet(devices)
    keys = sorted({task.module_of(node).key for node in task.nodes})
    source = source_of(task, {device.id: device for device in devices})
    schedule = TaskSchedule(task, fleet, source, {key: number for number, key in enumerate(keys)})
    row = st.integers(NOWHERE, len(devices) - 1)
    rows = data.draw(st.lists(row, min_size=len(keys), max_size=len(keys)))
    mover = data.draw(st.integers(0, len(keys) - 1))
    every = np.arange(len(devices))
    at_once = schedule.latencies_s([every if slot == mover else there for slot, there in enumerate(rows)])
    bounds, exact = schedule.bounds_s(mover, tuple(rows))
    for there in every.tolist():
        now = [there if slot == mover else other for slot, other in enumerate(rows)]
        where = {keys[schedule.slots[slot]]: fleet.specs[at] for slot, at in enumerate(now) if at != NOWHERE}
        expected = latency_s(task, where, source)
        assert schedule.latency_s(tuple(now)) == expected
        assert np.broadcast_to(at_once, len(devices))[there] == expected
        assert bounds[there] == expected if exact else bounds[there] <= expected * (1 + 1e-12)


@CALMLY
@given(instances(most_tasks=1, most_devices=3))
def test_every_assignment_at_once_has_the_seconds_of_each_and_the_bounds_are_below(instance: Instance) -> None:
    devices, (task,) = instance
    fleet = Fleet(devices)
    keys = sorted({task.module_of(node).key for node in task.nodes})
    source = source_of(task, {device.id: device for device in devices})
    schedule = TaskSchedule(task, fleet, source, {key: number for number, key in enumerate(keys)})
    every = np.array([*product(range(len(devices)), repeat=len(keys))])
    latencies = schedule.latencies_s([*every.T])
    assert latencies.tolist() == [schedule.latency_s(tuple(rows)) for rows in every.tolist()]
    allowed = [fleet.every] * len(keys)
    assert least_s(schedule, allowed) <= latencies.min() * (1 + 1e-12)
    tails = tails_s(schedule, allowed)
    for rows, latency in zip(every.tolist(), latencies.tolist(), strict=True):
        where = {keys[schedule.slots[slot]]: fleet.specs[row] for slot, row in enumerate(rows)}
        ends = request_of(task, where, str(source.id), devices).finishes_s()
        for node, tail in tails.items():
            end = ends[schedule.graph.names[node]]
            assert end + tail[rows[schedule.slot_of[node]]] <= latency * (1 + 1e-12)
    found = candidates_of(schedule, allowed, [None] * len(keys), [0 * fleet.every] * len(keys), np.inf)
    assert sorted(map(tuple, found.rows.tolist())) == sorted(map(tuple, every.tolist()))
    assert found.costs.tolist() == sorted((task.weight * latencies).tolist())


@BRIEFLY
@given(instances(), st.randoms(use_true_random=False))
def test_refined_is_never_above_greedy_whatever_the_order(instance: Instance, chance: random.Random) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    better = refined(devices, wanted)
    assert better.objective_s <= before.objective_s * (1 + 1e-9)
    assert all(better.used_bytes[device.id] <= device.memory_bytes for device in devices)
    chance.shuffle(devices)
    chance.shuffle(wanted)
    assert refined(devices, wanted) == better


@BRIEFLY
@given(instances(), st.data())
def test_refined_moves_nothing_that_is_kept(instance: Instance, data: st.DataObject) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    some = data.draw(st.sets(st.sampled_from(sorted(before.where))))
    keep = {key: before.where[key] for key in some}
    after = refined(devices, wanted, keep=keep)
    assert {key: after.where[key] for key in some} == keep
    assert after.kept == some


@BRIEFLY
@given(instances())
def test_a_clock_that_has_run_out_still_gives_a_placement_as_good_as_greedy(
    instance: Instance,
) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    assert refined(devices, wanted, enough=lambda: True).objective_s <= before.objective_s * (1 + 1e-9)


@CALMLY
@given(instances(), st.data())
def test_schedules_that_another_problem_prepared_say_the_same_under_other_numbers(
    instance: Instance, data: st.DataObject
) -> None:
    devices, wanted = instance
    fleet, known = Fleet(devices), dict[str, TaskSchedule]()
    some = data.draw(st.lists(st.sampled_from(wanted), unique_by=lambda task: task.task))
    Problem(fleet, some, known=known)
    problem, alone = Problem(fleet, wanted, known=known), Problem(fleet, wanted)
    row = st.integers(NOWHERE, len(devices) - 1)
    where = data.draw(st.lists(row, min_size=len(alone.keys), max_size=len(alone.keys)))
    assert [schedule.slots for schedule in problem.schedules] == [schedule.slots for schedule in alone.schedules]
    assert problem.objective(where) == alone.objective(where)


@CALMLY
@given(instances(), st.integers(0, 2_000), st.data())
def test_with_any_budget_the_plan_fits_keeps_what_was_served_and_refuses_with_a_reason(
    instance: Instance, units: int, data: st.DataObject
) -> None:
    devices, wanted = instance
    some = data.draw(st.lists(st.sampled_from(wanted), unique_by=lambda task: task.task))
    before, refused_before = place_most(devices, some)
    served = {task.task for task in some} - refused_before.keys()
    least = min((task.weight for task in some), default=1.0)
    later = [task.model_copy(update={"weight": least}) for task in wanted if task not in some]
    placement, refused = place_most(devices, [*some, *later], keep=before.where, budget=Budget(units))
    admitted = [task for task in wanted if task.task not in refused]
    assert placement.where.keys() == {task.module_of(node).key for task in admitted for node in task.nodes}
    for device in devices:
        assert placement.used_bytes[device.id] <= device.memory_bytes
    assert not served & refused.keys()
    for refusal in refused.values():
        assert refusal.short_bytes.keys() == {device.id for device in devices}
