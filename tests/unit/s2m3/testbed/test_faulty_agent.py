"""The faults from inside an agent that a file beside its configuration causes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from broker.protocol.errors import ModuleRefused
from edge_agent.modules.weights.downloads import check_disk
from s2m3.testbed.faulty_agent import file_of, let_disk_be_full


def test_a_disk_is_full_while_its_file_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", shutil.disk_usage)  # put back afterwards
    full = file_of(tmp_path / "agent.yaml", "fill")
    let_disk_be_full(full)
    check_disk(tmp_path, 1, "the download", "TMPDIR")
    full.touch()
    with pytest.raises(ModuleRefused, match="and 0 bytes are free on the disk"):
        check_disk(tmp_path, 1, "the download", "TMPDIR")
    full.unlink()
    check_disk(tmp_path, 1, "the download", "TMPDIR")
