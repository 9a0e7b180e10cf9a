"""The exports that a site of ONNX agents needs are written where they are missing or damaged."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from s2m3.catalogue import load_task
from s2m3.testbed import engines
from tests.onnx_models import write_export


def test_a_damaged_export_is_written_again_and_whole_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def write(command: list[str], **_: object) -> object:
        commands.append(command)
        for name, module in load_task("pocket/classify").modules.items():
            write_export(tmp_path, module=name, key=module.key)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", write)
    for count in (1, 1):
        engines.exported(["pocket/classify"], lambda _: None, tmp_path)
        assert len(commands) == count
    other = write_export(tmp_path, module="another")
    (other / "export.json").write_text("{")
    engines.exported(["pocket/classify"], lambda _: None, tmp_path)
    assert len(commands) == 1, "what no task needs may be damaged"
    (tmp_path / "efficientnet-lite0--encoder" / "main.onnx").write_bytes(b"")
    engines.exported(["pocket/classify"], lambda _: None, tmp_path)
    assert len(commands) == 2
