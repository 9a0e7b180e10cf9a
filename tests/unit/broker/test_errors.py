"""The sentences that errors make of their facts."""

from __future__ import annotations

import pytest

from broker.protocol.errors import first_line


@pytest.mark.parametrize(
    ("error", "default", "line"),
    [
        (ValueError("no such file\n at line 3"), "", "no such file"),
        (ValueError("\n  no such file"), "", "no such file"),
        (ValueError(), "", "ValueError"),
        (ValueError(" \n"), "no reason given", "no reason given"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, default: str, line: str) -> None:
    assert first_line(error, default) == line
