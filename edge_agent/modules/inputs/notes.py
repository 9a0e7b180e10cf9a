"""Notes on an input: sentences for the sensor about the part of it that isn't used.

Owns the way of a note from where an input is read, deep in a module's steps, to who runs the steps (``gathered``). A
note changes no output. Outside of ``gathered`` it goes nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from broker.protocol.messages import MAX_NOTE_CHARACTERS, MAX_NOTES

_NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)
_SHOWN = 40  # characters of a text


@contextmanager
def gathered() -> Iterator[list[str]]:
    """The notes that are made inside, of all that this thread reads."""
    found: list[str] = []
    before = _NOTES.set(found)
    try:
        yield found
    finally:
        _NOTES.reset(before)


def note(sentence: str) -> None:
    """Add a note; beyond the limit of a node's notes it is left out."""
    found = _NOTES.get()
    if found is not None and len(found) < MAX_NOTES:
        found.append(sentence[:MAX_NOTE_CHARACTERS])


def note_cut_text(number: int, longest: int, unread: str) -> None:
    """Say what of a text, counted from 1, isn't read: its network takes so many tokens."""
    shown = unread if len(unread) <= _SHOWN else f"{unread[:_SHOWN]}..."
    note(f"text {number} has more than the {longest} tokens that are read: {len(unread)} characters are cut, {shown!r}")
