"""The sentences that errors make of their facts."""

from __future__ import annotations

import pytest

from broker.protocol.errors import ModuleRefused, first_line


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


def test_a_refusal_is_one_line_whatever_a_file_calls_its_parts() -> None:
    assert str(ModuleRefused("its input a\r\nb\u2028c\x1b[31m is int64")) == "its input a  b c [31m is int64"
    assert len(str(ModuleRefused("x" * 3_000_000))) < 10_000
