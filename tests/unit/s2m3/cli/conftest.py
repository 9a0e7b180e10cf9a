"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def task(exit_code: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``s2m3 models task`` with some arguments; returns what it prints, or its one line where it is refused."""

    def run(*arguments: object, expect: int = 0) -> str:
        capsys.readouterr()
        assert exit_code(["models", "task", *map(str, arguments)]) == expect
        printed = capsys.readouterr()
        assert printed.err.count("\n") == (expect != 0), printed.err
        return printed.err if expect else printed.out

    return run
