"""The agent's file: what an operator may write, and what a wrong line is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.files import load_spec
from broker.protocol.errors import BadFile
from edge_agent.config import AgentConfig


def test_a_device_is_always_on_unless_its_file_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "box.yaml"
    file.write_text("id: box\n")
    assert load_spec(file, AgentConfig).availability == "always"
    file.write_text("id: box\navailability: sometimes\n")
    assert load_spec(file, AgentConfig).availability == "sometimes"


def test_a_word_that_is_no_availability_is_refused_with_its_line_and_both_words(tmp_path: Path) -> None:
    file = tmp_path / "box.yaml"
    file.write_text("id: box\navailability: at night\n")
    with pytest.raises(BadFile, match=r"box\.yaml:2: availability: .*'always' or 'sometimes'"):
        load_spec(file, AgentConfig)
