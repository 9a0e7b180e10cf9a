"""Whose turn it is: shares between tasks, and order within one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.requests.fair_queue import FairQueue, fair_wait_s


def taken(turns: FairQueue[str], times: int, *, cost_s: dict[str, float] | None = None) -> list[str]:
    """What goes next, so often, each at its task's cost."""
    order = []
    for _ in range(times):
        turn = turns.take()
        assert turn is not None
        order.append(turn[0])
        turns.charge(turn[0], (cost_s or {}).get(turn[0], 1.0))
    return order


def test_a_task_that_asks_more_gets_no_more_turns_than_another() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(10):
        turns.add("greedy", f"g{number}", 1.0)
    for number in range(3):
        turns.add("modest", f"m{number}", 1.0)
    assert sorted(taken(turns, 6)) == ["greedy"] * 3 + ["modest"] * 3
    assert taken(turns, 7) == ["greedy"] * 7
    assert turns.take() is None


def test_shares_are_of_time_and_not_of_turns() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(40):
        turns.add("heavy", f"h{number}", 1.0)
        turns.add("light", f"l{number}", 1.0)
    order = taken(turns, 40, cost_s={"heavy": 3.0, "light": 1.0})
    assert order.count("light") == 3 * order.count("heavy")


def test_who_returns_after_a_pause_starts_level_and_not_with_credit() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.add("late", "first", 1.0)
    taken(turns, 1)
    for number in range(100):
        turns.add("steady", f"s{number}", 1.0)
    taken(turns, 50)
    for number in range(10):
        turns.add("late", f"l{number}", 1.0)
    assert taken(turns, 10).count("late") in {5, 6}


def test_the_nearest_deadline_goes_first_within_a_task_and_what_was_given_up_never() -> None:
    turns: FairQueue[str] = FairQueue()
    turns.add("t", "later", 5.0)
    turns.add("t", "soon", 2.0)
    turns.add("t", "given-up", 1.0)
    assert turns.discard("t", "given-up")
    assert not turns.discard("t", "given-up")
    assert [turns.take(), turns.take(), turns.take()] == [("t", "soon"), ("t", "later"), None]


def test_what_is_over_leaves_nothing_behind() -> None:
    turns: FairQueue[str] = FairQueue()
    for number in range(1000):
        turns.add(f"task-{number}", "x", 1.0)
        taken(turns, 1)
    assert not turns.waiting
    assert len(turns._used_s) <= 2


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 1.0)), min_size=1, max_size=60),
    st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 3.0), min_size=3, max_size=3),
)
def test_everything_has_its_turn_once_and_nobody_who_waits_falls_behind_by_more_than_one_turn(
    asked: list[tuple[str, float]], cost_s: dict[str, float]
) -> None:
    turns: FairQueue[int] = FairQueue()
    for number, (task, deadline_s) in enumerate(asked):
        turns.add(task, number, deadline_s)
    had_s = dict.fromkeys(turns.waiting, 0.0)
    order = []
    while turn := turns.take():
        task, item = turn
        waiting = [had_s[name] for name in turns.waiting]
        assert had_s[task] <= min([*waiting, had_s[task]]) + max(cost_s.values()), "the least served goes first"
        turns.charge(task, cost_s[task])
        had_s[task] += cost_s[task]
        order.append(item)
    assert sorted(order) == list(range(len(asked)))


def test_what_others_have_waiting_delays_a_task_by_no_more_than_it_gets_itself() -> None:
    waiting = {"greedy": 60.0, "modest": 1.0}
    assert fair_wait_s(waiting, "new", 2.0) == pytest.approx(2.0 + 1.0)
    assert fair_wait_s(waiting, "modest", 2.0) == pytest.approx(1.0 + 3.0)
    assert fair_wait_s(waiting, "greedy", 2.0) == pytest.approx(60.0 + 1.0)
    assert fair_wait_s({}, "new", 2.0) == 0
