"""The lines of a text."""

from __future__ import annotations

import pytest

from broker.text_lines import lines_of


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\r\nb\rc\nd", ["a", "b", "c", "d"]),
        ("a\u2028b\x85c\x0b\x0cd\x1ce", ["a\u2028b\x85c\x0b\x0cd\x1ce"]),
    ],
)
def test_only_line_feeds_and_carriage_returns_end_a_line(text: str, lines: list[str]) -> None:
    assert lines_of(text) == lines
