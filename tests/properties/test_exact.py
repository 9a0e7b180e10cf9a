"""What holds of the optimum, whatever the fleet and the tasks."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceSpec, InputSpec, ModuleSpec, NodeSpec, Source, TaskSpec
from orchestrator.planner.exact import Optimum, exact
from orchestrator.planner.exhaustive import exhaustive
from orchestrator.planner.placement import place
from orchestrator.planner.refine import refined

CALMLY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
PARTS = [f"part-{number}" for number in range(5)]
EQUAL = 1e-9
Instance = tuple[list[DeviceSpec], list[TaskSpec]]


@st.composite
def modules(draw: st.DrawFn) -> dict[str, ModuleSpec]:
    return {
        part: ModuleSpec(
            family="any.kind",
            source=Source(pip="weights", part=part),
            memory_bytes=draw(st.integers(1, 100)),
            flops=draw(st.sampled_from([1e6, 1e9, 5e9, 2e10])),
            output_bytes=draw(st.sampled_from([1, 1_000, 1_000_000])),
        )
        for part in PARTS
    }


@st.composite
def fleets(draw: st.DrawFn) -> list[DeviceSpec]:
    return [
        DeviceSpec(
            id=name,
            memory_bytes=draw(st.integers(20, 300)),
            compute_flops_per_s=draw(st.sampled_from([1e9, 1e10, 3e10])),
            bandwidth_bits_per_s=draw(st.sampled_from([1e6, 1e8])),
            latency_s=draw(st.sampled_from([0.0, 0.001, 0.05])),
            compute_s=draw(st.dictionaries(st.sampled_from(PARTS), st.sampled_from([0.01, 0.5]), max_size=2)),
        )
        for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    ]


@st.composite
def instances(draw: st.DrawFn, *, chains: bool = False) -> Instance:
    """Up to three tasks over five modules. ``chains``: each node needs the one before it."""
    known, made = draw(modules()), []
    for number in range(draw(st.integers(1, 3))):
        nodes: dict[str, NodeSpec] = {}
        for position, part in enumerate(draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4))):
            some = st.lists(st.sampled_from(["image", "text", *nodes]), min_size=1, max_size=3, unique=True)
            needs = [f"n{position - 1}" if position else "image"] if chains else draw(some)
            nodes[f"n{position}"] = NodeSpec(module=part, needs=tuple(needs))
        made.append(
            TaskSpec(
                task=f"task-{number}",
                source=draw(st.sampled_from("abcd")),
                inputs={"image": InputSpec(kind="image", bytes=150_000), "text": InputSpec(kind="text", bytes=200)},
                nodes=nodes,
                output=list(nodes)[-1] if chains else draw(st.sampled_from(sorted(nodes))),
                weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
                modules={node.module: known[node.module] for node in nodes.values()},
            )
        )
    return draw(fleets()), made


def optimum(devices: list[DeviceSpec], wanted: list[TaskSpec]) -> Optimum | None:
    try:
        found = exact(devices, wanted)
    except NoDeviceFits:
        return None
    assert found.proven
    return found


@CALMLY
@given(instances())
def test_the_optimum_is_that_of_trying_every_placement(instance: Instance) -> None:
    found, best = optimum(*instance), exhaustive(*instance)
    assert (found is None) == (best is None)
    if found and best:
        assert found.objective_s == pytest.approx(best[1], rel=EQUAL)


@CALMLY
@given(instances())
def test_the_optimum_keeps_to_the_memory_and_places_every_module_once(instance: Instance) -> None:
    devices, wanted = instance
    if found := optimum(devices, wanted):
        sizes = {task.module_of(node).key: task.module_of(node).memory_bytes for task in wanted for node in task.nodes}
        assert found.where.keys() == sizes.keys()
        for device in devices:
            assert sum(sizes[key] for key, home in found.where.items() if home == device.id) <= device.memory_bytes


@CALMLY
@given(instances())
def test_exact_is_at_most_refined_and_refined_at_most_greedy(instance: Instance) -> None:
    if found := optimum(*instance):
        better = refined(*instance)
        assert found.objective_s <= better.objective_s * (1 + EQUAL)
        try:
            assert better.objective_s <= place(*instance).objective_s * (1 + EQUAL)
        except NoDeviceFits:
            return


@CALMLY
@given(instances(), st.integers(0, 3), st.integers(1, 200))
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
@given(instances(chains=True), st.integers(0, 3), st.floats(1, 100))
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
