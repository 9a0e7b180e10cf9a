"""The surroundings of a command: a reader of its output that has gone, and files that other systems left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2m3.catalogue import load_tasks

TASK = Path(__file__).parents[4] / "edge_agent" / "catalog" / "pocket" / "classify.yaml"


@pytest.mark.parametrize("command", [["--version"], ["--help"], ["models", "list"], ["models", "list", "--json"]])
def test_a_closed_pipe_is_no_error(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "s2m3", *command], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_that_other_systems_leave_in_a_directory_of_tasks_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "classify.yaml").write_text(TASK.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "._classify.yaml").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "._a.json").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "__MACOSX").mkdir()
    assert [written.file for written in load_tasks(tmp_path)] == [str(tmp_path / "classify.yaml")]
