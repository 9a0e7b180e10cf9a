"""The refined search finds more than the greedy rule, and its refusal says what would help."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from broker.protocol.errors import NoDeviceFits
from orchestrator.planner.explain import explain
from orchestrator.planner.placement import place, place_most, refined
from orchestrator.planner.problem import Placement
from tests import builders
from tests.builders import device, joined
from tests.oracles import exhaustive

module = partial(builders.module, output_bytes=2_000)
task = partial(joined, image_bytes=150_000)
HEAD = module("head", 1, flops=1e5, output_bytes=100)
SEE, READ = module("see", 60, flops=30e9), module("read", 40, flops=10e9)


@pytest.mark.parametrize("solver", [place, refined])
def test_what_fits_on_one_device_and_is_faster_there_is_not_split(solver: Callable[..., Placement]) -> None:
    devices = [device("slow", 1000, speed=1e9), device("fast", 1000, speed=100e9), device("middling", 1000)]
    placement = solver(devices, [task("t", [SEE, READ], HEAD, source="fast")])
    assert set(placement.where.values()) == {"fast"}


@pytest.mark.parametrize("solver", [place, refined])
def test_what_is_faster_side_by_side_is_split_though_it_fits_on_one_device(solver: Callable[..., Placement]) -> None:
    twins = [module("one", 60, flops=30e9), module("two", 60, flops=30e9)]
    placement = solver([device("a", 1000), device("b", 1000)], [task("t", twins, HEAD, source="a")])
    assert {placement.where[twin.key] for twin in twins} == {"a", "b"}


def test_modules_that_only_fit_together_one_way_are_packed_that_way() -> None:
    modules = [module(f"m{n}", size, flops=size * 1e6) for n, size in enumerate((50, 34, 33, 33, 26, 24))]
    tasks = [task(f"t{number}", [], spec) for number, spec in enumerate(modules)]
    placement = refined([device("a", 100, speed=9e12), device("b", 100, speed=1e12)], tasks)
    assert sorted(placement.used_bytes.values()) == [100, 100]


def test_a_large_fleet_that_the_rule_fills_badly_is_packed() -> None:
    """Here the rule doesn't look ahead: 30 devices with room for one pair each, and it pairs whom it finds first."""
    devices = [device(f"d{number:02}", 100) for number in range(30)]
    sizes = [size for number in range(30) for size in (30 + number, 70 - number)]
    modules = [module(f"m{n}", size, flops=1e9 - size * 1e6) for n, size in enumerate(sizes)]
    tasks = [task(f"t{number}", [], spec) for number, spec in enumerate(modules)]
    with pytest.raises(NoDeviceFits):
        place(devices, tasks)
    placement = refined(devices, tasks, enough=lambda: True)
    assert all(used_bytes == 100 for used_bytes in placement.used_bytes.values())


def test_a_few_dear_modules_are_placed_as_well_as_trying_everything_finds() -> None:
    """The rule gives the one fast device to the heaviest module; two lighter ones together would gain more there."""
    heavy, pair = module("heavy", 90, flops=50e9), [module("one", 50, flops=40e9), module("two", 50, flops=40e9)]
    tasks = [task("h", [heavy], HEAD, source="a"), *(task(f"p{n}", [m], HEAD, source="a") for n, m in enumerate(pair))]
    devices = [device("a", 100, speed=100e9), device("b", 300, speed=10e9), device("c", 40, speed=5e9)]
    best = exhaustive(devices, tasks)
    assert best is not None
    assert refined(devices, tasks).objective_s == pytest.approx(best[1], rel=1e-9)


def test_the_refusal_names_the_smallest_change_that_makes_all_fit() -> None:
    devices = [device("a", 90), device("b", 50)]
    tasks = [task("t", [SEE, READ], HEAD), task("u", [module("other", 45)], HEAD)]
    with pytest.raises(NoDeviceFits, match="with 10 bytes more on a all would fit") as refusal:
        refined(devices, tasks)
    assert refusal.value.change == ("a", 10)
    assert refined([device("a", 100), device("b", 50)], tasks).shared_bytes == 146
    with pytest.raises(NoDeviceFits):
        refined([device("a", 99), device("b", 50)], tasks)


def test_a_refused_task_names_the_change_too() -> None:
    _, refused = place_most([device("a", 90), device("b", 50)], [task("t", [SEE], HEAD), task("u", [READ, SEE], HEAD)])
    assert refused == {}
    _, refused = place_most([device("a", 90)], [task("t", [SEE], HEAD), task("u", [READ, SEE], HEAD)])
    assert refused["u"].change == ("a", 11)


def test_weights_at_hand_decide_between_devices_that_hardly_differ() -> None:
    devices = [device("a", 100, speed=10.0e9), device("b", 100, speed=10.2e9), device("c", 100, speed=40e9)]
    near = [devices[0], devices[1]]
    wanted = [task("t", [SEE], HEAD)]
    for solver in (place, refined):
        assert solver(near, wanted).where[SEE.key] == "b"
        assert solver(near, wanted, at_hand={SEE.key: {"a"}}).where[SEE.key] == "a"
        assert solver(devices, wanted, at_hand={SEE.key: {"a"}}).where[SEE.key] == "c"
    assert "its weights are there" in explain(place(near, wanted, at_hand={SEE.key: {"a"}}), SEE.key).why


def test_when_a_device_is_lost_only_its_modules_move() -> None:
    devices = [device("a", 61), device("b", 41), device("c", 200, speed=1e9)]
    wanted = [task("t", [SEE, READ], HEAD)]
    before = refined(devices, wanted)
    after = place([each for each in devices if each.id != "b"], wanted, keep=before.where)
    assert {key for key, home in after.where.items() if before.where[key] != home} == {
        key for key, home in before.where.items() if home == "b"
    }
