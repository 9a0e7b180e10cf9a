"""The sentences that errors make of their facts."""

from __future__ import annotations

import pytest

from broker.protocol.errors import ModuleRefused, NoDeviceFits, by_reason, first_line


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


def test_of_many_devices_those_come_first_whose_reasons_are_rare_and_equal_reasons_stand_once() -> None:
    excluded = {f"d{number:02}": "the task may only use d38" for number in range(50)} | {"d38": "it failed there: no"}
    refusal = str(NoDeviceFits(module="see", memory_bytes=1, short_bytes={}, excluded=excluded))
    assert "d38: it failed there: no; d00, d01, d02, d03, d04, d05, d06, d07, and 41 more: the task may" in refusal
    assert by_reason({"b": "it is offline", "a": "it is dead"}) == "a: it is dead, b: it is offline"
