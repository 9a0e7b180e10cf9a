"""Memory that is left goes to standbys, by blast radius, and then to replicas."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.cost_model import compute_s, memory_bytes
from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceSpec, ModuleSpec
from orchestrator.planner.placement import place
from orchestrator.planner.spares import NO_SPARES, UTILISATION, Spares, blast_radius, spares
from tests import builders
from tests.builders import chain

module = partial(builders.module, flops=1e8)
task = partial(chain, image_bytes=1000)
device = partial(builders.device, speed=1e9)
VISION, TEXT, HEAD = module("vision", 60), module("text", 40), module("head", 10)


def test_the_radius_is_tasks_times_seconds_to_load_per_byte() -> None:
    assert blast_radius(3, 1000, 2.0) == pytest.approx(3 * 2.0 / 1000)
    assert blast_radius(3, 1000) == pytest.approx(blast_radius(3, 1)), "without a measurement a load is as long as big"


def test_the_module_that_most_tasks_need_gets_the_standby_when_there_is_room_for_one() -> None:
    tasks = [task("one", VISION), task("two", VISION), task("three", TEXT)]
    where = {VISION.key: "a", TEXT.key: "a"}
    chosen = spares([device("a", 100), device("b", 60)], tasks, where)
    assert chosen == Spares(standby={VISION.key: ("b",)})


def test_measured_seconds_to_load_decide_between_modules_of_as_many_tasks() -> None:
    tasks = [task("one", VISION), task("three", TEXT)]
    where = {VISION.key: "a", TEXT.key: "a"}
    fleet = [device("a", 100), device("b", 60)]
    assert spares(fleet, tasks, where, load_s={TEXT.key: 5.0, VISION.key: 1.0}).standby == {TEXT.key: ("b",)}
    assert spares(fleet, tasks, where, load_s={TEXT.key: 1.0, VISION.key: 5.0}).standby == {VISION.key: ("b",)}


def test_a_standby_is_never_beside_its_active_copy_nor_where_it_failed() -> None:
    fleet = [device("a", 1000), device("b", 1000, speed=2e9), device("c", 1000)]
    chosen = spares(fleet, [task("one", VISION)], {VISION.key: "a"}, barred={VISION.key: {"b": "it failed there"}})
    assert chosen.standby == {VISION.key: ("c",)}
    assert spares(fleet[:1], [task("one", VISION)], {VISION.key: "a"}) == NO_SPARES


def test_a_standby_goes_where_the_tasks_would_be_served_best_or_where_the_weights_are_if_that_is_nearly_as_good() -> (
    None
):
    fleet = [
        device("a", 100),
        device("b", 100, speed=1.0e9),
        device("c", 100, speed=1.05e9),
        device("d", 100, speed=3e9),
    ]
    tasks, where = [task("one", VISION)], {VISION.key: "a"}
    assert spares(fleet, tasks, where).standby == {VISION.key: ("d",)}
    assert spares(fleet[:3], tasks, where).standby == {VISION.key: ("c",)}
    assert spares(fleet[:3], tasks, where, at_hand={VISION.key: {"b"}}).standby == {VISION.key: ("b",)}
    assert spares(fleet, tasks, where, at_hand={VISION.key: {"b"}}).standby == {VISION.key: ("d",)}


def test_what_is_kept_stays_unless_something_much_more_urgent_needs_the_room() -> None:
    fleet = [device("a", 110), device("b", 60)]
    where = {VISION.key: "a", TEXT.key: "a"}
    kept = Spares(standby={TEXT.key: ("b",)})
    little = [task("one", VISION), task("three", TEXT)]
    assert spares(fleet, little, where, kept=kept, load_s={VISION.key: 0.16, TEXT.key: 0.1}).standby == kept.standby
    much = spares(fleet, little, where, kept=kept, load_s={VISION.key: 0.4, TEXT.key: 0.1})
    assert much.standby == {VISION.key: ("b",)}


def test_a_rate_beyond_the_utilisation_makes_the_standby_a_replica_and_asks_for_more() -> None:
    fleet = [device(name, 60) for name in "abcd"]
    where = {VISION.key: "a"}  # 0.1 s a pass: 7 a second are 0.7 of its time
    calm, busy = (task("one", VISION, weight=rate) for rate in (UTILISATION / 0.1, 15.0))
    assert spares(fleet, [calm], where) == Spares(standby={VISION.key: ("b",)})
    assert spares(fleet, [busy], where) == Spares(replicas={VISION.key: ("b", "c")})


def test_a_replica_is_given_up_only_well_below_the_rate_that_called_for_it() -> None:
    fleet = [device("a", 60), device("b", 60)]
    where, kept = {VISION.key: "a"}, Spares(replicas={VISION.key: ("b",)})
    assert spares(fleet, [task("one", VISION, weight=6.0)], where, kept=kept) == kept
    fallen = spares(fleet, [task("one", VISION, weight=5.0)], where, kept=kept)
    assert fallen == Spares(standby={VISION.key: ("b",)})


def test_standbys_come_before_replicas() -> None:
    fleet = [device("a", 100), device("b", 40), device("c", 60)]
    tasks = [task("busy", TEXT, weight=20.0), task("one", VISION)]
    chosen = spares(fleet, tasks, {TEXT.key: "a", VISION.key: "a"})
    assert chosen == Spares(standby={VISION.key: ("c",)}, replicas={TEXT.key: ("b",)}), "not a third copy on c"


def test_a_pinned_copy_is_there_before_all_others_and_keeps_the_standby_that_was() -> None:
    fleet = [device("a", 60), device("b", 60), device("c", 60)]
    kept = Spares(standby={VISION.key: ("b",)})
    chosen = spares(fleet, [task("one", VISION)], {VISION.key: "a"}, kept=kept, pinned={VISION.key: "c"})
    assert chosen.standby == {VISION.key: ("c", "b")}
    assert spares(fleet, [task("one", VISION)], {VISION.key: "a"}, pinned={VISION.key: "c"}).standby == {
        VISION.key: ("c",)
    }


def test_only_named_devices_get_a_copy_when_they_are_named() -> None:
    fleet = [device("a", 60), device("b", 60, speed=2e9), device("c", 60)]
    chosen = spares(fleet, [task("one", VISION)], {VISION.key: "a"}, only={VISION.key: {"c"}})
    assert chosen.standby == {VISION.key: ("c",)}
    assert spares(fleet, [task("one", VISION)], {VISION.key: "a"}, only={}) == NO_SPARES


@pytest.mark.parametrize("weight", [0.1, 1000.0])
def test_where_devices_are_named_no_other_one_is_asked(monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    """A standby that takes over waits for this choice: with 3,000 devices each question to all of them counts."""
    asked: set[str] = set()

    def count(module: ModuleSpec, on: DeviceSpec) -> int:
        asked.add(on.id)
        return memory_bytes(module, on)

    monkeypatch.setattr("orchestrator.planner.spares.memory_bytes", count)
    fleet = [device("a", 100), *(device(f"b-{number}", 100) for number in range(50))]
    one = task("one", VISION).model_copy(update={"weight": weight})
    chosen = spares(fleet, [one], {VISION.key: "a"}, only={VISION.key: {"a", "b-7"}})
    assert chosen.of(VISION.key) == ("b-7",)
    assert asked == {"a", "b-7"}


sizes = st.sampled_from([10, 40, 60, 100])


@given(
    memory=st.lists(st.integers(20, 400), min_size=1, max_size=5),
    needs=st.lists(sizes, min_size=1, max_size=6),
    groups=st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.1, 3.0, 30.0]), min_size=4, max_size=4),
    load_s=st.lists(st.sampled_from([0.1, 1.0, 9.0]), min_size=6, max_size=6),
)
@settings(deadline=None, max_examples=120)
def test_spares_fit_are_apart_settle_and_are_needed(
    memory: list[int], needs: list[int], groups: list[set[int]], weights: list[float], load_s: list[float]
) -> None:
    parts = [module(f"m{index}", size) for index, size in enumerate(needs)]
    tasks = [
        task(f"t{index}", *(parts[i % len(parts)] for i in sorted({i % len(parts) for i in group})), weight=weight)
        for index, (group, weight) in enumerate(zip(groups, weights, strict=False))
    ]
    fleet = [device(f"d{index}", size, speed=1e9 * (index + 1)) for index, size in enumerate(memory)]
    try:
        placed = place(fleet, tasks)
    except NoDeviceFits:
        return
    seconds = {part.key: load_s[index] for index, part in enumerate(parts)}
    chosen = spares(fleet, tasks, placed.where, load_s=seconds)
    used = dict.fromkeys((spec.id for spec in fleet), 0)
    by_key = {part.key: part for part in parts}
    for key, home in placed.where.items():
        copies = [home, *chosen.of(key)]
        assert len(copies) == len(set(copies))
        for name in copies:
            used[name] += by_key[key].memory_bytes
    assert all(used[spec.id] <= spec.memory_bytes for spec in fleet)
    assert spares(list(reversed(fleet)), tasks, placed.where, load_s=seconds, kept=chosen) == chosen
    specs = {spec.id: spec for spec in fleet}
    for key, replicas in chosen.replicas.items():
        rate = sum(spec.weight for spec in tasks for node in spec.nodes if spec.module_of(node).key == key)
        before = [placed.where[key], *replicas[:-1]]
        assert rate > sum(UTILISATION / compute_s(specs[name], "m", by_key[key]) for name in before)
