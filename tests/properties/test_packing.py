"""Packing is complete: it finds a way whenever there is one, and the smallest change when no way exists."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planner.packing import SearchLimitReached, least_extra, packed

CALMLY = settings(deadline=None, max_examples=150)  # the machine may be busy
Question = tuple[list[list[int]], list[int], list[set[int]]]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Up to six modules and three rooms that are about as large together; some need less in some rooms."""
    rooms = draw(st.lists(st.integers(0, 20), min_size=1, max_size=3))
    each = st.integers(1, 12).flatmap(
        lambda most: (
            st.just([most] * len(rooms)) | st.lists(st.integers(1, most), min_size=len(rooms), max_size=len(rooms))
        )
    )
    sizes = draw(st.lists(each, min_size=1, max_size=6))
    bars = st.sets(st.integers(0, len(rooms) - 1), max_size=2)
    return sizes, rooms, [draw(bars) if draw(st.booleans()) else set() for _ in sizes]


def fits(sizes: list[list[int]], rooms: list[int], barred: list[set[int]], found: tuple[int, ...] | list[int]) -> bool:
    used = [
        sum(size[room] for size, room in zip(sizes, found, strict=True) if room == there) for there in range(len(rooms))
    ]
    allowed = all(room not in bars for room, bars in zip(found, barred, strict=True))
    return allowed and all(use <= room for use, room in zip(used, rooms, strict=True))


def there_is_a_way(sizes: list[list[int]], rooms: list[int], barred: list[set[int]]) -> bool:
    return any(fits(sizes, rooms, barred, found) for found in product(range(len(rooms)), repeat=len(sizes)))


@CALMLY
@given(questions())
def test_what_is_packed_fits_and_what_is_not_can_not_be(question: Question) -> None:
    sizes, rooms, barred = question
    found = packed(sizes, rooms, barred)
    if found is None:
        assert not there_is_a_way(sizes, rooms, barred)
    else:
        assert fits(sizes, rooms, barred, found)


@CALMLY
@given(questions())
def test_the_least_change_is_enough_and_none_smaller_is(question: Question) -> None:
    sizes, rooms, barred = question
    if there_is_a_way(sizes, rooms, barred):
        return

    def enough(room: int, extra: int) -> bool:
        return there_is_a_way(sizes, [*rooms[:room], rooms[room] + extra, *rooms[room + 1 :]], barred)

    change = least_extra(sizes, rooms, barred)
    if change is None:
        assert not any(enough(room, sum(size[room] for size in sizes)) for room in range(len(rooms)))
    else:
        assert enough(*change)
        assert not any(enough(room, change[1] - 1) for room in range(len(rooms)))


def test_a_search_that_is_too_long_says_so() -> None:
    sizes = [[size] * 3 for size in (7, 7, 7, 5, 5, 5, 3, 3)]
    with pytest.raises(SearchLimitReached):
        packed(sizes, [14, 14, 14], [set() for _ in sizes], steps=3)
