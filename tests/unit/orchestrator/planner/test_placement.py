"""The greedy rule, sharing, and what happens when not everything fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest

from broker.cost_model import OUTSIDE, objective_s
from broker.protocol.errors import NoDeviceFits
from orchestrator.planner.copies import copy_key
from orchestrator.planner.exact import exact
from orchestrator.planner.explain import explain, reason
from orchestrator.planner.placement import place, place_most, refined
from tests.builders import chain, device, graph, module

VISION = module("vision", memory_bytes=60, flops=30e9)
HEAD = module("head", memory_bytes=10)


def test_the_heaviest_module_gets_the_fastest_device() -> None:
    placement = place([device("slow", 1000, speed=1e9), device("fast", 1000)], [chain("t", VISION, HEAD)])
    assert placement.where == {VISION.key: "fast", HEAD.key: "fast"}
    assert explain(placement, VISION.key).why.startswith("adds 3.0")
    assert explain(placement, VISION.key).rejected == {"slow": "slower by 27 s"}


def test_a_module_that_does_not_fit_the_fastest_goes_elsewhere_and_the_bytes_are_named() -> None:
    placement = place([device("slow", 1000, speed=1e9), device("fast", 59)], [chain("t", VISION, HEAD)])
    assert placement.where == {VISION.key: "slow", HEAD.key: "fast"}
    assert explain(placement, VISION.key).rejected == {"fast": "memory short by 11 bytes"}


def test_a_shared_module_is_placed_once_and_counted_once() -> None:
    other = module("other", memory_bytes=20)
    placement = place([device("a", 90)], [chain("t", VISION, HEAD), chain("u", VISION, other)])
    assert placement.used_bytes["a"] == 60 + 10 + 20
    assert placement.shared_bytes == 90
    assert placement.unshared_bytes == 150


def test_one_task_that_uses_a_module_twice_holds_it_once_shared_or_not() -> None:
    placement = place([device("a", 60)], [graph("t", {"first": (VISION, ("image",)), "second": (VISION, ("first",))})])
    assert (placement.shared_bytes, placement.unshared_bytes) == (60, 60)


def test_where_two_specs_of_one_module_disagree_the_larger_memory_counts() -> None:
    larger = VISION.model_copy(update={"memory_bytes": 80})
    placement = place([device("a", 80)], [chain("t", VISION), chain("u", larger)])
    assert placement.used_bytes["a"] == 80
    with pytest.raises(NoDeviceFits):
        place([device("a", 79)], [chain("t", VISION), chain("u", larger)])


def test_equal_devices_are_taken_in_order_of_their_names() -> None:
    placement = place([device("b", 1000), device("a", 1000)], [chain("t", VISION)])
    assert placement.where == {VISION.key: "a"}
    assert explain(placement, VISION.key).rejected == {"b": "as fast, but later in the alphabet"}


@pytest.mark.parametrize(("devices", "more"), [(5, ""), (6, "; and 1 more"), (300, "; and 295 more")])
def test_a_modules_reason_compares_four_other_devices_and_counts_the_rest(
    monkeypatch: pytest.MonkeyPatch, devices: int, more: str
) -> None:
    placement = place([device(f"d-{number:03}", 1000) for number in range(devices)], [chain("t", VISION)])
    compared = Mock(return_value="slow")
    monkeypatch.setattr("orchestrator.planner.explain._slower", compared)
    others = "; ".join(f"d-{number:03}: slow" for number in range(1, 5))
    assert reason(placement, VISION.key) == f"adds 3.01 s, the least; {others}{more}"
    assert compared.call_count == 4


def test_what_is_kept_stays_though_a_faster_device_is_there() -> None:
    devices = [device("slow", 1000, speed=1e9), device("fast", 1000)]
    placement = place(devices, [chain("t", VISION)], keep={VISION.key: "slow"})
    assert placement.where == {VISION.key: "slow"}
    assert explain(placement, VISION.key).why == "stays where it is"


@pytest.mark.parametrize("home", ["gone", "small"])
def test_what_is_kept_moves_when_its_device_is_gone_or_too_small_now(home: str) -> None:
    placement = place([device("a", 1000), device("small", 59)], [chain("t", VISION)], keep={VISION.key: home})
    assert placement.where == {VISION.key: "a"}


def test_a_barred_device_is_not_used_and_the_reason_is_given() -> None:
    barred = {VISION.key: {"fast": "it failed there: no weights"}}
    devices = [device("slow", 1000, speed=1e9), device("fast", 1000)]
    placement = place(devices, [chain("t", VISION)], keep={VISION.key: "fast"}, barred=barred)
    assert placement.where == {VISION.key: "slow"}
    assert explain(placement, VISION.key).rejected == {"fast": "it failed there: no weights"}


def test_the_error_says_how_many_bytes_each_device_lacks() -> None:
    with pytest.raises(NoDeviceFits) as refusal:
        place([device("a", 50), device("b", 58)], [chain("t", VISION)])
    assert refusal.value.short_bytes == {"a": 10, "b": 2}
    with pytest.raises(NoDeviceFits, match="there are no devices"):
        place([], [chain("t", VISION)])


def test_the_objective_is_the_cost_models() -> None:
    tasks = [chain("t", VISION, HEAD, weight=3.0), chain("u", VISION, module("x", memory_bytes=5, flops=9e9))]
    devices = {spec.id: spec for spec in (device("a", 65), device("b", 30, speed=3e9))}
    placement = place(list(devices.values()), tasks)
    where = {key: devices[name] for key, name in placement.where.items()}
    assert placement.objective_s == objective_s(tasks, where, {"t": OUTSIDE, "u": OUTSIDE})
    assert placement.objective_s == pytest.approx(3.0 * placement.latency_s["t"] + placement.latency_s["u"], abs=1e-9)


def test_no_tasks_need_no_devices() -> None:
    placement = place([], [])
    assert (placement.where, placement.objective_s, placement.shared_bytes) == ({}, 0.0, 0)


def test_a_task_that_does_not_fit_leaves_the_others_served_and_names_what_it_lacks_beside_them() -> None:
    big = module("big", memory_bytes=500, flops=99e9)
    placement, refused = place_most([device("a", 100)], [chain("huge", big), chain("t", VISION)])
    assert placement.where == {VISION.key: "a"}
    assert refused["huge"].short_bytes == {"a": 500 - (100 - 60)}


def test_a_task_of_greater_weight_is_served_before_an_older_one_which_yields_to_it() -> None:
    new = module("new", memory_bytes=60, flops=99e9)
    tasks = [chain("old", VISION), chain("a-new", new, weight=2.0)]
    placement, refused = place_most([device("a", 100)], tasks, keep={VISION.key: "a"})
    assert placement.where == {new.key: "a"}
    assert set(refused) == {"old"}
    assert "; yields to a-new; " in str(refused["old"])


def test_of_equal_weight_the_older_task_is_served_whatever_its_name_and_flops() -> None:
    new = module("new", memory_bytes=60, flops=99e9)
    placement, refused = place_most([device("a", 100)], [chain("old", VISION), chain("a-new", new)])
    assert placement.where == {VISION.key: "a"}
    assert refused["a-new"].yields_to == ("old",)


def test_a_task_that_would_never_fit_yields_to_none() -> None:
    big = module("big", memory_bytes=500, flops=99e9)
    _, refused = place_most([device("a", 100)], [chain("t", VISION), chain("huge", big)])
    assert refused["huge"].yields_to == ()
    assert "yields" not in str(refused["huge"])


def test_of_new_tasks_that_do_not_fit_together_the_heavier_weight_is_admitted() -> None:
    tasks = [chain("light", module("one", memory_bytes=60)), chain("weighty", VISION, weight=2.0)]
    _, refused = place_most([device("a", 100)], tasks)
    assert set(refused) == {"light"}


def test_a_small_task_is_admitted_after_a_large_one_was_refused() -> None:
    huge = chain("huge", module("big", memory_bytes=500), weight=9.0)
    _, refused = place_most([device("a", 70)], [huge, chain("small", HEAD), chain("t", VISION)])
    assert set(refused) == {"huge"}


def test_modules_move_when_a_task_would_not_fit_otherwise() -> None:
    small, large = module("small", memory_bytes=20), module("large", memory_bytes=90, flops=5e9)
    devices = [device("a", 100), device("b", 50)]
    tasks = [chain("s", small), chain("t", large)]
    placement, refused = place_most(devices, tasks, keep={small.key: "a"})
    assert refused == {}
    assert placement.where == {large.key: "a", small.key: "b"}


def test_a_refusal_by_a_large_fleet_names_the_nearest_devices_and_keeps_all_of_them() -> None:
    with pytest.raises(
        NoDeviceFits, match=r"d00 lacks 10 bytes, .*d07 lacks 17 bytes, and 32 more lack as much or more"
    ) as refusal:
        place([device(f"d{number:02}", 50 - number) for number in range(40)], [chain("t", VISION)])
    assert len(refusal.value.short_bytes) == 40


def test_copies_that_stay_keep_their_numbers_and_their_tasks() -> None:
    """The second copy is the larger one here, so that it comes first among the modules."""
    larger = VISION.model_copy(update={"memory_bytes": 80})
    tasks = [
        *(chain(f"t{number}", VISION, weight=1.0) for number in range(3)),
        chain("t3", larger, devices=("b",)),
    ]
    devices = [device("a"), device("b").model_copy(update={"tasks": ("t0", "t1", "t3")})]
    first = place(devices, tasks)
    assert first.where == {VISION.key: "a", copy_key(VISION.key, 2): "b"}
    again = place(devices, tasks, keep=first.where)
    assert (again.where, again.further) == (first.where, first.further)


@pytest.mark.parametrize("solve", [place, refined, exact])
def test_a_further_copy_takes_as_long_as_its_device_measured(solve: Callable[..., Any]) -> None:
    tasks = [chain("t0", VISION, devices=("a",)), chain("t1", VISION, devices=("b",))]
    by_key, by_name = (
        solve([device("a"), device("b").model_copy(update={"compute_s": {label: 7.0}})], tasks)
        for label in (VISION.key, "vision")
    )
    assert by_key.where == {VISION.key: "a", copy_key(VISION.key, 2): "b"}
    assert by_key.objective_s == by_name.objective_s > 7.0 * tasks[1].weight


def test_the_number_of_a_copy_that_is_needed_no_more_goes_to_one_that_is() -> None:
    tasks = [
        chain("t0", VISION, devices=("a",)),
        chain("t1", VISION, devices=("b",)),
        chain("t2", VISION, devices=("c",)),
    ]
    devices = [device("a"), device("b"), device("c")]
    first = place(devices, tasks)
    assert first.where == {VISION.key: "a", copy_key(VISION.key, 2): "b", copy_key(VISION.key, 3): "c"}
    fewer = place(devices, tasks[1:], keep=first.where)
    assert fewer.where == {VISION.key: "c", copy_key(VISION.key, 2): "b"}


def test_of_copies_that_are_kept_a_task_takes_the_first_and_numbers_stay() -> None:
    """So no task stays on a device that is drained, if another copy may serve it."""
    tasks = [chain("t0", VISION), chain("t1", VISION, devices=("a",)), chain("t2", VISION, devices=("b",))]
    devices = [device("a"), device("b")]
    keep = {copy_key(VISION.key, 2): "b", VISION.key: "a"}
    placement = place(devices, tasks, keep=keep)
    assert placement.where == keep
    assert placement.further == {"t0": {VISION.key: 2}, "t2": {VISION.key: 2}}
