"""The exact solver where its answer is known, and where its time is over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import orchestrator.planner.exact
from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceSpec, TaskSpec
from orchestrator.planner.exact import Optimum, Undecided, exact
from orchestrator.planner.packing import packed
from orchestrator.planner.placement import place, refined
from orchestrator.planner.problem import Placement
from tests import builders
from tests.builders import chain
from tests.oracles import exhaustive

device = partial(builders.device, speed=1e9, bandwidth_bits_per_s=8e6, latency_s=0.0)
module = partial(builders.module, memory_bytes=10, output_bytes=1)
task = partial(builders.graph, image_bytes=1_000_000, source="a")


def two_encoders(name: str = "retrieval") -> TaskSpec:
    return task(
        name,
        {
            "see": (module("see", flops=4e9), ("image",)),
            "read": (module("read", flops=3e9), ("text",)),
            "join": (module("join", memory_bytes=1, flops=1e3), ("see", "read")),
        },
        output="join",
    )


@pytest.fixture
def pair() -> list[DeviceSpec]:
    return [device("a"), device("b")]


def test_two_encoders_of_similar_cost_go_to_two_devices(pair: list[DeviceSpec]) -> None:
    found = exact(pair, [two_encoders()])
    at = {key.split("#")[1].split(":")[0]: where for key, where in found.where.items()}
    assert (at["see"], at["read"]) == ("a", "b")
    assert found.proven
    assert found.objective_s == found.bound_s
    assert found.objective_s == pytest.approx(4.0, abs=1e-3)


def test_what_fits_on_one_device_and_is_faster_there_is_not_split() -> None:
    devices = [device("a", speed=1e9), device("b", speed=1e11)]
    assert set(exact(devices, [two_encoders()]).where.values()) == {"b"}


def test_when_nothing_fits_the_refusal_names_the_module() -> None:
    with pytest.raises(NoDeviceFits, match="see"):
        exact([device("a", memory_bytes=9)], [two_encoders()])


def test_a_tight_packing_that_the_greedy_order_misses_is_found() -> None:
    big = task("big", {"one": (module("one", memory_bytes=60, flops=1e9), ("image",))}, output="one")
    small = task("small", {"two": (module("two", memory_bytes=40, flops=9e9), ("image",))}, output="two")
    devices = [device("a", memory_bytes=60), device("b", memory_bytes=40, speed=1e8)]
    found = exact(devices, [big, small])
    assert sorted(found.where.values()) == ["a", "b"]
    assert found.proven


def test_without_time_the_heuristic_placement_is_returned_with_a_bound_and_no_proof(pair: list[DeviceSpec]) -> None:
    wanted = [two_encoders()]
    hurried, sure = exact(pair, wanted, time_limit_s=0), exact(pair, wanted)
    assert not hurried.proven
    assert hurried.bound_s <= sure.objective_s <= hurried.objective_s


def test_too_many_assignments_to_list_end_without_proof(
    pair: list[DeviceSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator.planner.exact, "MOST_CANDIDATES", 0)
    found = exact(pair, [two_encoders()])
    assert not found.proven
    assert 0 < found.bound_s <= found.objective_s


@pytest.fixture
def no_heuristic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refined search finds nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise NoDeviceFits(module="any", memory_bytes=1, short_bytes={})

    monkeypatch.setattr(orchestrator.planner.exact, "refined", refuse)


@pytest.mark.usefixtures("no_heuristic")
def test_without_time_and_without_a_heuristic_placement_nothing_is_claimed(pair: list[DeviceSpec]) -> None:
    with pytest.raises(Undecided, match="give it more time") as refusal:
        exact(pair, [two_encoders()], time_limit_s=0)
    assert refusal.value.bound_s <= exact(pair, [two_encoders()]).objective_s


@pytest.mark.usefixtures("no_heuristic")
def test_the_optimum_is_found_without_a_heuristic_placement(pair: list[DeviceSpec]) -> None:
    wanted = [two_encoders(), two_encoders("again")]
    best = exhaustive(pair, wanted)
    assert best is not None
    found = exact(pair, wanted)
    assert found.proven
    assert found.objective_s == pytest.approx(best[1], rel=1e-12)


def test_a_faster_device_can_make_even_the_best_plan_slower() -> None:
    """List scheduling has anomalies (Graham 1969), so that speed alone promises nothing; here memory leaves one plan.

    On b, ``late`` waits for ``first`` on a, and ``answer`` for its picture until 1.0 s. While a needs 1.1 s for
    ``first``, ``answer`` begins first; when a is faster, ``late`` is there before, and ``answer`` waits for it.
    """
    wanted = task(
        "anomaly",
        {
            "first": (module("first", memory_bytes=80, flops=1.1e9), ("text",)),
            "late": (module("late", memory_bytes=90, flops=2e9), ("first",)),
            "answer": (module("answer", memory_bytes=10, flops=1e9), ("image",)),
        },
        output="answer",
    )
    link: dict[str, Any] = {"bandwidth_bits_per_s": 16e6}  # the picture crosses two of them: 1.0 s
    slow, fast = (device("a", memory_bytes=85, speed=speed, **link) for speed in (1e9, 1.4e9))
    b = device("b", memory_bytes=100, **link)
    barred = {key: {"a": "kept away"} for key in [wanted.module_of("answer").key]}
    before, after = exact([slow, b], [wanted], barred=barred), exact([fast, b], [wanted], barred=barred)
    assert before.proven
    assert after.proven
    assert before.where == after.where
    assert before.objective_s == pytest.approx(2.0, abs=0.01)
    assert after.objective_s == pytest.approx(3.8, abs=0.02)


def test_packing_finds_what_first_fit_does_not() -> None:
    assert packed([[size, size] for size in (5, 5, 4, 3, 3)], [10, 10], [()] * 5)
    assert not packed([[6, 6]] * 3, [10, 10], [()] * 3)
    assert not packed([[11, 11]], [10, 10], [()])


def test_the_greedy_plan_is_never_better(pair: list[DeviceSpec]) -> None:
    wanted = [two_encoders(), two_encoders("again")]
    assert exact(pair, wanted).objective_s <= place(pair, wanted).objective_s


@pytest.mark.parametrize(
    ("wire", "bandwidth_bits_per_s", "expected_s"),
    [("float32", 10e6, 2.6), ("float16", 10e6, 2.6), ("float32", 20e6, 2.6), ("float16", 20e6, 1.8)],
)
@pytest.mark.parametrize("solver", [refined, place, exact])
def test_half_the_bytes_of_a_float16_wire_count_in_every_solver(
    solver: Callable[..., Placement | Optimum], wire: str, bandwidth_bits_per_s: float, expected_s: float
) -> None:
    """4 MB between two nodes, and 2.6 s if both stay on one device.

    Apart they compute for 0.2 s, and the output crosses two links: 3.2 s each at 10 Mbit/s, 1.6 s at 20, with a
    float16 wire half of that. Counted in full size, the float16 plan at 20 Mbit/s would be missed.
    """
    link: dict[str, Any] = {"latency_s": 0.0, "bandwidth_bits_per_s": bandwidth_bits_per_s}
    devices = [
        device("a", compute_s={"see": 0.1, "say": 2.5}, **link),
        device("b", compute_s={"see": 99.0, "say": 0.1}, **link),
    ]
    see, say = module("see", output_bytes=4_000_000), module("say", output_bytes=1)
    wanted = chain("t", see, say, image_bytes=1, source="a", wire=wire)
    assert solver(devices, [wanted]).objective_s == pytest.approx(expected_s, abs=1e-5)
