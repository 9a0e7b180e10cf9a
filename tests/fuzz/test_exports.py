"""Mutated ONNX files and export.json files: each is read, or refused in one line; nothing else is raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.protocol.errors import ModuleRefused
from edge_agent.modules import exported
from edge_agent.modules.weights import exports, onnx_file
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from tests.onnx_models import hidden_in_a_branch, hidden_in_a_function, spec, write_export

FILES, DESCRIPTIONS = 600, 150  # mutants; a load of an export takes some milliseconds


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models directory of the agent."""
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    return tmp_path


def mutated(whole: bytes, numbers: np.random.Generator, lowest: int = 0, beyond: int = 256) -> bytes:
    """The bytes with one of them changed, and each third time without their end."""
    at = int(numbers.integers(len(whole)))
    changed = whole[:at] + bytes([int(numbers.integers(lowest, beyond))]) + whole[at + 1 :]
    return changed[: int(numbers.integers(1, len(changed) + 1))] if numbers.integers(3) == 0 else changed


def test_a_mutated_onnx_file_is_read_or_refused_in_one_line(models: Path) -> None:
    numbers, path, refused = np.random.default_rng(0), models / "mutated.onnx", 0
    files = [each().SerializeToString() for each in (hidden_in_a_branch, hidden_in_a_function)]
    for number in range(FILES):
        path.write_bytes(mutated(files[number % 2], numbers))
        try:
            onnx_file.check(path)
        except ModuleRefused as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017 - not all are refused
    assert refused > FILES / 2, "the files take data from elsewhere, wherever that still stands there"


def test_a_mutated_export_json_makes_a_module_or_one_line(models: Path) -> None:
    directory, numbers = write_export(models), np.random.default_rng(1)
    whole = (directory / exports.MANIFEST).read_bytes()
    loaded = 0
    for _ in range(DESCRIPTIONS):
        (directory / exports.MANIFEST).write_bytes(mutated(whole, numbers, 32, 127))
        try:
            exported.load(spec())
            loaded += 1
        except ModuleRefused as error:
            assert "\n" not in str(error)  # noqa: PT017 - the same
    assert loaded, "some mutants change nothing that counts"
