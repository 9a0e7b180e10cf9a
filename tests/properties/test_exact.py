"""The optimum keeps its promises, whatever the fleet and the tasks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceSpec, TaskSpec
from orchestrator.planner.exact import Optimum, exact
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.placement import place, refined
from tests.oracles import copies_of, counted_s, exhaustive, key_of, size_of
from tests.strategies import CALMLY, Instance, instances

EQUAL = 1e-9


CONSTRAINED = instances(most_devices=4, most_tasks=3, constrained=True)


def optimum(devices: list[DeviceSpec], wanted: list[TaskSpec]) -> Optimum | None:
    try:
        found = exact(devices, wanted)
    except NoDeviceFits:
        return None
    assert found.proven
    return found


@CALMLY
@given(CONSTRAINED)
def test_the_optimum_is_that_of_trying_every_placement(instance: Instance) -> None:
    found, best = optimum(*instance), exhaustive(*instance)
    assert (found is None) == (best is None)
    if found and best:
        assert found.objective_s == pytest.approx(best[1], rel=EQUAL)


@CALMLY
@given(CONSTRAINED)
def test_the_optimum_keeps_to_the_memory_and_the_engines_and_places_every_copy_once(instance: Instance) -> None:
    devices, wanted = instance
    if found := optimum(devices, wanted):
        copies = copies_of(devices, wanted)
        modules = {key: module for key, (_, module) in distinct_modules(wanted).items()}
        keys = {key_of((key, number)): key for used in copies.values() for key, number in used.items()}
        assert found.where.keys() == keys.keys()
        for device in devices:
            held = [modules[keys[copy]] for copy, home in found.where.items() if home == device.id]
            sizes = [size_of(module, device) for module in held]
            assert None not in sizes
            assert sum(size for size in sizes if size is not None) <= device.memory_bytes


@CALMLY
@given(CONSTRAINED)
def test_exact_is_at_most_refined_and_refined_at_most_greedy_and_all_count_as_the_cost_model(
    instance: Instance,
) -> None:
    devices, wanted = instance
    copies = copies_of(devices, wanted)
    if not (found := optimum(devices, wanted)):
        return
    better = refined(devices, wanted)
    assert found.objective_s <= better.objective_s * (1 + EQUAL)
    assert found.objective_s == pytest.approx(counted_s(devices, wanted, copies, found.where), rel=EQUAL)
    assert better.objective_s == pytest.approx(counted_s(devices, wanted, copies, better.where), rel=EQUAL)
    try:
        greedy = place(devices, wanted)
    except NoDeviceFits:
        return
    assert better.objective_s <= greedy.objective_s * (1 + EQUAL)
    assert greedy.objective_s == pytest.approx(counted_s(devices, wanted, copies, greedy.where), rel=EQUAL)


@CALMLY
@given(instances(most_devices=4, most_tasks=3), st.integers(0, 3), st.integers(1, 200))
def test_more_memory_never_worsens_the_optimum(instance: Instance, position: int, more_bytes: int) -> None:
    devices, wanted = instance
    grown = list(devices)
    device = grown[position % len(grown)]
    grown[position % len(grown)] = device.model_copy(update={"memory_bytes": device.memory_bytes + more_bytes})
    if before := optimum(devices, wanted):
        after = optimum(grown, wanted)
        assert after is not None
        assert after.objective_s <= before.objective_s * (1 + EQUAL)


@CALMLY
@given(instances(most_devices=4, most_tasks=3, chains=True), st.integers(0, 3), st.floats(1, 100))
def test_a_faster_device_never_worsens_the_optimum_of_tasks_whose_nodes_come_one_after_the_other(
    instance: Instance, position: int, factor: float
) -> None:
    """Only of those: where nodes of one task compete for a device, list scheduling has anomalies (unit/test_exact)."""
    devices, wanted = instance
    faster = list(devices)
    device = faster[position % len(faster)]
    faster[position % len(faster)] = device.model_copy(
        update={
            "compute_flops_per_s": device.compute_flops_per_s * factor,
            "compute_s": {name: seconds / factor for name, seconds in device.compute_s.items()},
        }
    )
    before, after = optimum(devices, wanted), optimum(faster, wanted)
    assert (before is None) == (after is None)
    if before and after:
        assert after.objective_s <= before.objective_s * (1 + EQUAL)
