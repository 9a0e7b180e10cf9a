"""The counters of a coordinator and the sampler of its traces."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.errors import ErrorCode
from broker.protocol.reports import TaskCounters
from edge_agent.requests import counters
from edge_agent.requests.counters import LATENCY_BOUNDS_S, MAX_TASKS, Counters, Sampler


@pytest.mark.parametrize(
    ("latency_s", "bound_s"), [(0.0, 0.005), (0.005, 0.005), (0.0051, 0.01), (0.3, 0.5), (30.1, math.inf)]
)
def test_an_answer_is_counted_in_the_bucket_of_the_next_bound(latency_s: float, bound_s: float) -> None:
    counted = Counters()
    counted.count_answer("t", latency_s)
    assert counted.total() == {"t": TaskCounters(requests=0, answered=1, latency_s={bound_s: 1})}


def test_errors_are_counted_by_task_and_code() -> None:
    counted = Counters()
    for task in ("a", "b", "a"):
        counted.count_request(task)
        counted.count_error(task, ErrorCode.NO_ROUTE)
    counted.count_error("a", ErrorCode.OVERLOADED)
    assert counted.total()["a"].errors == {"no_route": 2, "overloaded": 1}
    assert counted.total()["b"].errors == {"no_route": 1}


def test_requests_that_were_not_read_are_counted_once() -> None:
    counted = Counters()
    for refused in ({"a": 3}, {"a": 3}, {"a": 5, "b": 1}):
        counted.count_refused(refused)
    assert counted.total()["a"] == TaskCounters(requests=5, answered=0, errors={"overloaded": 5})
    assert counted.total()["b"].errors == {"overloaded": 1}


def test_the_last_minute_is_what_came_since_the_snapshot_before_the_last_one() -> None:
    counted, seen = Counters(), []
    for number in range(4):
        for _ in range(10**number):
            counted.count_request("t")
        seen.append(counted.since_two_snapshots()["t"].requests)
        counted.take_snapshot(deployed={"t"})
    assert seen == [1, 11, 110, 1100]
    counted.take_snapshot(deployed={"t"})
    assert counted.since_two_snapshots() == {}
    assert counted.total()["t"].requests == 1111


def test_of_too_many_tasks_only_undeployed_ones_lose_their_counters() -> None:
    counted = Counters()
    for number in range(MAX_TASKS + 1):
        counted.count_request(f"t-{number}")
    counted.take_snapshot(deployed={"t-0", "t-7"})
    assert counted.total().keys() == {"t-0", "t-7"}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, *ErrorCode]), st.floats(0, 100))))
def test_counters_only_grow_and_each_counts_each_end_once(ends: list[tuple[str, ErrorCode | None, float]]) -> None:
    counted = Counters()
    before: dict[str, TaskCounters] = {}
    for task, code, latency_s in ends:
        counted.count_request(task)
        if code is None:
            counted.count_answer(task, latency_s)
        else:
            counted.count_error(task, code)
        after = counted.total()
        for name, old in before.items():
            assert after[name].requests >= old.requests
            assert after[name].answered >= old.answered
            assert all(after[name].errors[key] >= number for key, number in old.errors.items())
            assert all(after[name].latency_s[key] >= number for key, number in old.latency_s.items())
        before = after
    for of_task in before.values():
        assert of_task.requests == of_task.answered + sum(of_task.errors.values())
        assert sum(of_task.latency_s.values()) == of_task.answered


@given(st.lists(st.floats(0, 0.3), max_size=200), st.integers(1, 5))
def test_a_sampler_never_lets_more_than_its_limit_through_in_a_second(pauses_s: list[float], limit: int) -> None:
    sampler, now_s, through_s = Sampler(limit), 0.0, list[float]()
    for pause_s in pauses_s:
        now_s += pause_s
        taken = sampler.take(now_s)
        in_the_last_second = [at_s for at_s in through_s if now_s - at_s < 1.0]
        assert taken == (len(in_the_last_second) < limit)
        through_s += [now_s] if taken else []


def test_a_summary_with_every_task_and_code_fits_a_control_message() -> None:
    counted = Counters()
    for number in range(counters.MAX_TASKS):
        for bound_s in LATENCY_BOUNDS_S:
            counted.count_answer(f"{number:063d}", bound_s)
        for code in ErrorCode:
            counted.count_error(f"{number:063d}", code)
    size_bytes = sum(len(each.model_dump_json()) + 70 for each in counted.total().values())
    assert 2 * size_bytes < 256 * 1024  # the totals, and the last minute
