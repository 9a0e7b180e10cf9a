"""Heartbeats are due at their times, and a run in which the simulator was late doesn't count."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s2m3.bench.fleet.schedule import LATE_INTERVALS, Agenda, Punctuality


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 20)))), st.integers(0, 25))
def test_what_is_due_comes_once_in_the_order_of_its_newest_times(
    orders: list[tuple[str, int | None]], now_s: int
) -> None:
    agenda, wanted = Agenda[str](), dict[str, int]()
    for item, at_s in orders:
        if at_s is None:
            agenda.discard(item)
            wanted.pop(item, None)
        else:
            agenda.set(item, at_s)
            wanted[item] = at_s
    assert agenda.next_s == min(wanted.values(), default=None)
    due = []
    while (found := agenda.pop_due(now_s)) is not None:
        due.append(found)
    assert sorted(due) == sorted((item, at_s) for item, at_s in wanted.items() if at_s <= now_s)
    assert [at_s for _, at_s in due] == sorted(at_s for _, at_s in due)


def test_a_run_is_valid_if_no_heartbeat_left_later_than_the_bound() -> None:
    punctuality = Punctuality(2.0)
    assert not punctuality.valid, "nothing was sent"
    bound_s = 2.0 * LATE_INTERVALS
    for late_s in (0.0, 0.01, bound_s, -0.001):
        punctuality.note(late_s)
    assert punctuality.valid
    punctuality.note(bound_s + 0.001)
    assert not punctuality.valid
    document = punctuality.document()
    assert (document["sent"], document["late"], document["late_above_s"]) == (5, 1, bound_s)
    assert document["worst_s"] == bound_s + 0.001
