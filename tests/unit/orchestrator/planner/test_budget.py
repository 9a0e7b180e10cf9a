"""One budget covers a whole plan, and a plan that spends it still places and refuses all that was asked."""

from __future__ import annotations

import random

import pytest

from broker.protocol.specs import DeviceSpec, TaskSpec
from orchestrator.planner.budget import ASK_EVERY, Budget
from orchestrator.planner.packing import STEPS, SearchLimitReached, packed
from orchestrator.planner.plans import PlacementPlan, PlacementProblem
from orchestrator.planner.solve import solve
from tests.builders import chain, device, module, placement_problem


def problem(devices: int, tasks: int, memory_bytes: int) -> PlacementProblem:
    """Tasks of six to ten modules, a fifth of them shared, that don't all fit."""
    chance = random.Random(7)  # noqa: S311 - the same each time
    shared = [module(f"s{number}", chance.randint(40, 120), chance.uniform(1e9, 5e10)) for number in range(10)]

    def task(name: str) -> TaskSpec:
        own = [
            module(f"{name}-{n}", chance.randint(30, 200), chance.uniform(1e9, 5e10))
            for n in range(chance.randint(5, 8))
        ]
        return chain(name, *own, *chance.sample(shared, chance.randint(1, 2)))

    def box(name: str) -> DeviceSpec:
        return device(name, chance.randint(memory_bytes // 2, memory_bytes), speed=chance.uniform(5e9, 5e10))

    return placement_problem(
        devices=tuple(box(f"d{number:02}") for number in range(devices)),
        tasks=tuple(task(f"t{number:02}") for number in range(tasks)),
    )


def solved(problem: PlacementProblem, *, at_once: bool = False) -> PlacementPlan:
    plan = solve(problem, lambda: at_once)
    assert isinstance(plan, PlacementPlan)
    return plan


def test_a_part_of_a_budget_is_spent_from_the_whole() -> None:
    whole = Budget(100)
    part = whole.part(30)
    part.spend(20)
    assert (part.left, whole.left, part.over) == (10, 80, False)
    part.spend(10)
    assert (part.over, whole.over) == (True, False)
    assert whole.part(1000).left == 70
    whole.spend(71)
    assert whole.part(5).over


def test_a_clock_ends_a_budget_and_its_parts_and_is_looked_at_now_and_then() -> None:
    looks = 0

    def enough() -> bool:
        nonlocal looks
        looks += 1
        return looks > 2

    part = Budget(10_000, enough).part(5_000)
    while not part.over:
        part.spend()
    assert part.left == 0
    assert looks == 3
    assert Budget(10_000, lambda: True).part(5_000).over
    assert ASK_EVERY * 2 < 5_000


@pytest.mark.parametrize(("devices", "tasks", "memory_bytes"), [(3, 30, 400), (50, 20, 300), (50, 40, 300)])
def test_tasks_that_do_not_fit_cost_no_more_than_the_budget_and_each_has_its_reason(
    monkeypatch: pytest.MonkeyPatch, devices: int, tasks: int, memory_bytes: int
) -> None:
    made: list[Budget] = []

    class Watched(Budget):
        """The budget of the plan, for a look at what is left."""

        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr("orchestrator.planner.solve.Budget", Watched)
    asked = problem(devices, tasks, memory_bytes)
    plan = solved(asked)
    assert made[0].left > -5_000  # what is under way when it is spent is finished
    assert plan.refused
    assert all("no device fits" in why for why in plan.refused.values())
    keys = {spec.key for task in asked.tasks if task.task not in plan.refused for spec in task.modules.values()}
    assert plan.where.keys() == plan.why.keys() == keys


def test_a_plan_that_must_end_at_once_still_places_and_refuses_everything() -> None:
    asked = problem(50, 20, 300)
    plan = solved(asked, at_once=True)
    assert plan.refused
    sizes = {spec.key: spec.memory_bytes for task in asked.tasks for spec in task.modules.values()}
    for box in asked.devices:
        assert sum(sizes[key] for key, home in plan.where.items() if home == box.id) <= box.memory_bytes


def test_equal_problems_have_equal_plans() -> None:
    assert solved(problem(10, 14, 600)) == solved(problem(10, 14, 600))


def test_a_packing_goes_on_for_a_few_steps_when_the_budget_is_spent() -> None:
    spent = Budget(0)
    assert packed([[size] * 2 for size in (5, 5, 4, 3, 3)], [10, 10], [()] * 5, budget=spent)
    assert packed([[6, 6]] * 3, [10, 10], [()] * 3, budget=spent) is None
    each = [2 * number + 101 for number in range(40)]
    rooms, sizes = [sum(each) // 8] * 8, [[size] * 8 for size in each]
    before = Budget(10**9)
    with pytest.raises(SearchLimitReached):
        packed(sizes, rooms, [()] * len(sizes), budget=spent)
    with pytest.raises(SearchLimitReached):
        packed(sizes, rooms, [()] * len(sizes), budget=before)
    assert 10**9 - before.left > STEPS // 20
