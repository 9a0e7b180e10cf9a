"""The fair queue: shares between tasks, and the order within one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.requests.fair_queue import FairQueue, fair_wait_s


def taken(queue: FairQueue[str], times: int, *, cost_s: dict[str, float] | None = None) -> list[str]:
    """The tasks of the next ``times`` items, each charged at its task's cost."""
    order = []
    for _ in range(times):
        item = queue.take()
        assert item is not None
        order.append(item[0])
        queue.charge(item[0], (cost_s or {}).get(item[0], 1.0))
    return order


def test_a_task_with_more_requests_gets_no_larger_share() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(10):
        queue.add("greedy", f"g{number}", 1.0)
    for number in range(3):
        queue.add("modest", f"m{number}", 1.0)
    assert sorted(taken(queue, 6)) == ["greedy"] * 3 + ["modest"] * 3
    assert taken(queue, 7) == ["greedy"] * 7
    assert queue.take() is None


def test_shares_are_of_compute_time_and_not_of_passes() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(40):
        queue.add("heavy", f"h{number}", 1.0)
        queue.add("light", f"l{number}", 1.0)
    order = taken(queue, 40, cost_s={"heavy": 3.0, "light": 1.0})
    assert order.count("light") == 3 * order.count("heavy")


def test_a_task_that_returns_after_a_pause_has_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("late", "first", 1.0)
    taken(queue, 1)
    for number in range(100):
        queue.add("steady", f"s{number}", 1.0)
    taken(queue, 50)
    for number in range(10):
        queue.add("late", f"l{number}", 1.0)
    assert taken(queue, 10).count("late") in {5, 6}


def test_the_earliest_deadline_goes_first_within_a_task_and_a_discarded_item_never() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("t", "later", 5.0)
    queue.add("t", "soon", 2.0)
    queue.add("t", "given-up", 1.0)
    for _ in range(2):  # the second time it waits no longer
        queue.discard("t", "given-up")
        assert list(queue.waiting["t"][""]) == ["later", "soon"]
    assert [queue.take(), queue.take(), queue.take()] == [("t", "soon"), ("t", "later"), None]


def test_an_empty_queue_keeps_no_accounts() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(1000):
        queue.add(f"task-{number}", "x", 1.0)
        taken(queue, 1)
    assert not queue.waiting
    assert len(queue._tasks) <= 2
    assert len(queue._clients) <= 2


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 1.0)), min_size=1, max_size=60),
    st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 3.0), min_size=3, max_size=3),
)
def test_every_item_is_taken_once_and_no_waiting_task_falls_behind_by_more_than_one_pass(
    asked: list[tuple[str, float]], cost_s: dict[str, float]
) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (task, deadline_s) in enumerate(asked):
        queue.add(task, number, deadline_s)
    had_s = dict.fromkeys(queue.waiting, 0.0)
    order = []
    while taken_item := queue.take():
        task, item = taken_item
        waiting = [had_s[name] for name in queue.waiting]
        assert had_s[task] <= min([*waiting, had_s[task]]) + max(cost_s.values()), "the least served goes first"
        queue.charge(task, cost_s[task])
        had_s[task] += cost_s[task]
        order.append(item)
    assert sorted(order) == list(range(len(asked)))


def test_the_work_of_others_delays_a_task_by_no_more_than_its_own_time() -> None:
    waiting = {("greedy", ""): 60.0, ("modest", ""): 1.0}
    assert fair_wait_s(waiting, ("new", ""), 2.0) == pytest.approx(2.0 + 1.0)
    assert fair_wait_s(waiting, ("modest", ""), 2.0) == pytest.approx(1.0 + 3.0)
    assert fair_wait_s(waiting, ("greedy", ""), 2.0) == pytest.approx(60.0 + 1.0)
    assert fair_wait_s({}, ("new", ""), 2.0) == 0


def test_clients_of_a_task_take_turns_and_tasks_keep_their_shares() -> None:
    """A task with ten clients gets no more than one with a single client."""
    queue: FairQueue[str] = FairQueue()
    for number in range(30):
        queue.add("crowded", f"greedy-{number}", 1.0, client="greedy")
        queue.add("alone", f"alone-{number}", 9.0, client="one")
    for number in range(5):
        queue.add("crowded", f"modest-{number}", 9.0, client="modest")
    order = []
    for _ in range(20):
        item = queue.take()
        assert item is not None
        order.append(item[1].partition("-")[0])
        queue.charge(item[0], 1.0, client=order[-1] if item[0] == "crowded" else "one")
    assert order.count("alone") == 10
    assert order.count("modest") == 5
    assert "modest" in order[:4]


def test_a_client_that_returns_after_a_pause_has_no_credit() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.add("t", f"steady-{number}", 1.0, client="steady")
    for _ in range(50):
        queue.take()
        queue.charge("t", 1.0, client="steady")
    for number in range(10):
        queue.add("t", f"late-{number}", 1.0, client="late")
    order = []
    for _ in range(10):
        item = queue.take()
        assert item is not None
        order.append(item[1].partition("-")[0])
        queue.charge("t", 1.0, client=order[-1])
    assert order.count("late") in {5, 6}


def test_the_work_of_another_client_delays_one_by_no_more_than_its_own_time() -> None:
    waiting = {("t", "greedy"): 60.0, ("t", "modest"): 1.0, ("other", "greedy"): 60.0, ("other", "x"): 1.0}
    assert fair_wait_s(waiting, ("t", "new"), 2.0) == pytest.approx(3.0 + 5.0)
    assert fair_wait_s(waiting, ("t", "modest"), 2.0) == pytest.approx(4.0 + 6.0)
    assert fair_wait_s(waiting, ("t", "greedy"), 2.0) == pytest.approx(61.0 + 61.0)
