"""The limit of memory in an agent's unit, by the agent's file and by whether the machine has a card."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2m3 import units
from s2m3.cli.unit import _of_agent


@pytest.mark.parametrize(
    ("fields", "has_card", "is_limited"),
    [
        ("memory: 1GiB", False, True),
        ("memory: 1GiB", True, False),
        ("memory: 1GiB\naccelerator: cpu", True, True),
        ("memory: 1GiB\nengine: onnx", True, True),
        ("memory: 1GiB\naccelerator: cuda", False, False),
        ("threads: 2", False, False),
    ],
)
def test_memory_that_may_be_a_cards_limits_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: str, *, has_card: bool, is_limited: bool
) -> None:
    monkeypatch.setattr(units, "GPU", tmp_path if has_card else tmp_path / "gone")
    file = tmp_path / "gw-a.yaml"
    file.write_text(f"id: gw-a\n{fields}\n")
    limit_bytes = _of_agent(file, [])
    assert (limit_bytes is not None) == is_limited
    assert limit_bytes is None or limit_bytes > 2**30
