"""A browser gets what changed since its version, and after any history it has what the board has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from s2m3.dashboard import board
from s2m3.dashboard.board import Board, Update


def merged(known: dict[str, JsonValue], update: Update) -> dict[str, JsonValue]:
    """The entries of a browser after an update."""
    entries = {} if update.reset else dict(known)
    return {key: value for key, value in (entries | update.entries).items() if value is not None}


def test_an_equal_value_is_no_change() -> None:
    made = Board()
    made.put("a", {"x": 1})
    made.put("a", {"x": 1})
    assert made.version == 1
    made.put("b", None)
    assert made.since(1) == Update(1, reset=False, entries={})


def test_a_removal_is_told() -> None:
    made = Board()
    made.put("a", 1)
    made.put("a", None)
    assert made.since(1) == Update(2, reset=False, entries={"a": None})
    assert made.since(None).entries == {}


def test_a_browser_that_is_far_behind_gets_everything() -> None:
    made = Board()
    made.put("stays", 1)
    for number in range(board.MOST_REMOVED + 2):
        made.put(f"{number}", 1)
        made.put(f"{number}", None)
    assert made.since(1) == Update(made.version, reset=True, entries={"stays": 1})
    assert not made.since(made.version - 1).reset


Changes = st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.integers(0, 2), st.booleans()), max_size=40)


@given(Changes)
def test_updates_lead_to_the_same_entries(changes: list[tuple[str, int | None, bool]]) -> None:
    made, known, version = Board(), dict[str, JsonValue](), 0
    for key, value, looks in changes:
        made.put(key, value)
        if looks:
            update = made.since(version)
            known, version = merged(known, update), update.version
    assert merged(known, made.since(version)) == made.since(None).entries
