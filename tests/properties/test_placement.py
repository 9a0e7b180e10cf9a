"""What holds of every placement, whatever the fleet and the tasks."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceSpec, InputSpec, ModuleSpec, NodeSpec, Source, TaskSpec
from orchestrator.planner.costs import latency_s, objective_s, source_of
from orchestrator.planner.explain import explain
from orchestrator.planner.fleet import NOWHERE, Fleet
from orchestrator.planner.placement import Placement, distinct_modules, place, place_most
from orchestrator.planner.refine import refined
from orchestrator.planner.timing import Timing

CALMLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
BRIEFLY = settings(CALMLY, max_examples=50)
PARTS = [f"part-{number}" for number in range(6)]


def modules() -> st.SearchStrategy[dict[str, ModuleSpec]]:
    """Six modules of any size and weight in flops, with ties likely."""
    spec = st.builds(
        ModuleSpec,
        family=st.just("any.kind"),
        memory_bytes=st.integers(1, 100),
        flops=st.sampled_from([1e6, 1e9, 5e9, 2e10]),
        output_bytes=st.sampled_from([1, 1_000, 1_000_000]),
    )
    return st.lists(spec, min_size=len(PARTS), max_size=len(PARTS)).map(
        lambda specs: {
            part: spec.model_copy(update={"source": Source(pip="weights", part=part)})
            for part, spec in zip(PARTS, specs, strict=True)
        }
    )


@st.composite
def tasks(draw: st.DrawFn, known: dict[str, ModuleSpec]) -> list[TaskSpec]:
    """Up to four graphs over the same modules: each node needs inputs or nodes before it."""
    made = []
    for number in range(draw(st.integers(1, 4))):
        nodes: dict[str, NodeSpec] = {}
        for position, part in enumerate(draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4))):
            given_names = ["image", "text", *nodes]
            needs = draw(st.lists(st.sampled_from(given_names), min_size=1, max_size=3, unique=True))
            nodes[f"n{position}"] = NodeSpec(module=part, needs=tuple(needs))
        made.append(
            TaskSpec(
                task=f"task-{number}",
                inputs={"image": InputSpec(kind="image", bytes=150_000), "text": InputSpec(kind="text", bytes=200)},
                nodes=nodes,
                output=draw(st.sampled_from(sorted(nodes))),
                source=draw(st.sampled_from([None, "a", "b", "nobody"])),
                weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
                modules={node.module: known[node.module] for node in nodes.values()},
            )
        )
    return made


@st.composite
def fleets(draw: st.DrawFn) -> list[DeviceSpec]:
    return [
        DeviceSpec(
            id=name,
            memory_bytes=draw(st.integers(20, 400)),
            compute_flops_per_s=draw(st.sampled_from([1e9, 1e10, 3e10])),
            bandwidth_bits_per_s=draw(st.sampled_from([1e6, 1e8])),
            latency_s=draw(st.sampled_from([0.0, 0.001, 0.05])),
            compute_s=draw(st.dictionaries(st.sampled_from(PARTS), st.sampled_from([0.01, 0.5]), max_size=2)),
        )
        for name in draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True))
    ]


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[DeviceSpec], list[TaskSpec]]:
    return draw(fleets()), draw(tasks(draw(modules())))


def placed(devices: list[DeviceSpec], wanted: list[TaskSpec], keep: dict[str, str] | None = None) -> Placement:
    """The placement; instances that don't fit are not what the test is about."""
    try:
        return place(devices, wanted, keep=keep)
    except NoDeviceFits:
        assume(condition=False)
        raise


def used_bytes(placement: Placement, wanted: list[TaskSpec], device: str) -> int:
    """Counted anew, from the tasks alone."""
    sizes = {task.module_of(node).key: task.module_of(node).memory_bytes for task in wanted for node in task.nodes}
    return sum(size for key, size in sizes.items() if placement.where[key] == device)


@CALMLY
@given(instances())
def test_no_device_holds_more_than_its_memory_and_every_module_is_placed_once(
    instance: tuple[list[DeviceSpec], list[TaskSpec]],
) -> None:
    devices, wanted = instance
    placement = placed(devices, wanted)
    assert placement.where.keys() == {task.module_of(node).key for task in wanted for node in task.nodes}
    for device in devices:
        used = used_bytes(placement, wanted, device.id)
        assert used <= device.memory_bytes
        assert placement.use[device.id].used_bytes == used
    assert placement.shared_bytes == sum(use.used_bytes for use in placement.use.values())
    assert placement.shared_bytes <= placement.unshared_bytes


@CALMLY
@given(instances(), st.randoms(use_true_random=False))
def test_the_order_of_devices_and_tasks_does_not_matter(
    instance: tuple[list[DeviceSpec], list[TaskSpec]], chance: random.Random
) -> None:
    devices, wanted = instance
    placement = placed(devices, wanted)
    chance.shuffle(devices)
    chance.shuffle(wanted)
    assert place(devices, wanted) == placement


@CALMLY
@given(instances())
def test_the_objective_can_be_recomputed_from_where_modules_are(
    instance: tuple[list[DeviceSpec], list[TaskSpec]],
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
    instance: tuple[list[DeviceSpec], list[TaskSpec]],
) -> None:
    devices, wanted = instance
    placement = placed(devices, wanted)
    for key in placement.where:
        explanation = explain(placement, key)
        assert explanation.device == placement.where[key]
        assert explanation.rejected.keys() == {device.id for device in devices} - {explanation.device}


@CALMLY
@given(instances())
def test_modules_come_in_order_of_flops_then_memory(instance: tuple[list[DeviceSpec], list[TaskSpec]]) -> None:
    _, wanted = instance
    order = [spec for _, spec in distinct_modules(wanted).values()]
    assert all((a.flops, a.memory_bytes) >= (b.flops, b.memory_bytes) for a, b in pairwise(order))
    assert len({spec.key for spec in order}) == len(order)


@CALMLY
@given(instances(), fleets())
def test_what_is_placed_stays_when_devices_come(
    instance: tuple[list[DeviceSpec], list[TaskSpec]], newcomers: list[DeviceSpec]
) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    known = {device.id for device in devices}
    grown = [*devices, *(device for device in newcomers if device.id not in known)]
    assert place(grown, wanted, keep=before.where).where == before.where


@CALMLY
@given(instances(), st.integers(0, 4))
def test_when_a_device_goes_only_its_modules_move(
    instance: tuple[list[DeviceSpec], list[TaskSpec]], position: int
) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    lost = devices[position % len(devices)].id
    after = placed([device for device in devices if device.id != lost], wanted, keep=dict(before.where))
    assert all(after.where[key] == home for key, home in before.where.items() if home != lost)


@CALMLY
@given(instances())
def test_placing_as_many_as_fit_leaves_out_only_what_cannot_be_added(
    instance: tuple[list[DeviceSpec], list[TaskSpec]],
) -> None:
    devices, wanted = instance
    placement, refused = place_most(devices, wanted)
    admitted = [task for task in wanted if task.task not in refused]
    assert placement.where.keys() == {task.module_of(node).key for task in admitted for node in task.nodes}
    assert all(use.used_bytes <= use.capacity_bytes for use in placement.use.values())
    for task in wanted:
        if task.task in refused:
            for keep in ({}, placement.where):
                with pytest.raises(NoDeviceFits):
                    place(devices, [*admitted, task], keep=keep)
            assert refused[task.task].short_bytes


@CALMLY
@given(instances())
def test_an_error_names_for_every_device_how_many_bytes_it_lacks(
    instance: tuple[list[DeviceSpec], list[TaskSpec]],
) -> None:
    devices, wanted = instance
    _, refused = place_most(devices, wanted)
    for refusal in refused.values():
        assert refusal.short_bytes.keys() == {device.id for device in devices}
        assert all(0 < short <= refusal.memory_bytes for short in refusal.short_bytes.values())


@BRIEFLY
@given(instances(), st.data())
def test_one_placement_many_at_once_and_the_cost_model_say_the_same_seconds_bit_for_bit(
    instance: tuple[list[DeviceSpec], list[TaskSpec]], data: st.DataObject
) -> None:
    devices, wanted = instance
    fleet, task = Fleet.of(devices), wanted[0]
    keys = sorted({task.module_of(node).key for node in task.nodes})
    source = source_of(task, {device.id: device for device in devices})
    timing = Timing(task, fleet, source, {key: number for number, key in enumerate(keys)})
    row = st.integers(NOWHERE, len(devices) - 1)
    rows = data.draw(st.lists(row, min_size=len(keys), max_size=len(keys)))
    mover = data.draw(st.integers(0, len(keys) - 1))
    every = np.arange(len(devices))
    at_once = timing.latencies_s([every if slot == mover else there for slot, there in enumerate(rows)])
    bounds, exact = timing.bounds_s(mover, tuple(rows))
    for there in every.tolist():
        now = [there if slot == mover else other for slot, other in enumerate(rows)]
        where = {keys[timing.slots[slot]]: fleet.specs[at] for slot, at in enumerate(now) if at != NOWHERE}
        expected = latency_s(task, where, source)
        assert timing.latency_s(tuple(now)) == expected
        assert np.broadcast_to(at_once, len(devices))[there] == expected
        assert bounds[there] == expected if exact else bounds[there] <= expected * (1 + 1e-12)


@BRIEFLY
@given(instances(), st.randoms(use_true_random=False))
def test_refined_is_never_above_greedy_whatever_the_order(
    instance: tuple[list[DeviceSpec], list[TaskSpec]], chance: random.Random
) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    better = refined(devices, wanted)
    assert better.objective_s <= before.objective_s * (1 + 1e-9)
    assert all(use.used_bytes <= use.capacity_bytes for use in better.use.values())
    chance.shuffle(devices)
    chance.shuffle(wanted)
    assert refined(devices, wanted) == better


@BRIEFLY
@given(instances(), st.data())
def test_refined_moves_nothing_that_is_kept(
    instance: tuple[list[DeviceSpec], list[TaskSpec]], data: st.DataObject
) -> None:
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
    instance: tuple[list[DeviceSpec], list[TaskSpec]],
) -> None:
    devices, wanted = instance
    before = placed(devices, wanted)
    assert refined(devices, wanted, enough=lambda: True).objective_s <= before.objective_s * (1 + 1e-9)
