"""The file ``export.json``: what it may say, and that the files beside it are the described ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.errors import ModuleRefused
from edge_agent.modules.weights import exports

SHA = "0" * 64
USE: dict[str, Any] = {
    "file": "model.onnx",
    "sha256": SHA,
    "inputs": {"pixels": [None, 3, 224, 224]},
    "outputs": ["features"],
    "steps": {"kind": "steps"},
    "largest_difference": 1e-5,
}
CONTENT: dict[str, Any] = {
    "module": "clip-b16/vision",
    "key": "hub:openai/clip#vision:float32",
    "family": "clip.vision",
    "memory_bytes": 100,
    "opset": 20,
    "uses": {"": USE},
}


def written(directory: Path, **changes: object) -> Path:
    (directory / exports.MANIFEST).write_text(json.dumps(CONTENT | changes))
    return directory


def test_an_export_reads_as_it_was_written(tmp_path: Path) -> None:
    found = exports.read(written(tmp_path))
    assert found.uses[""].inputs == {"pixels": (None, 3, 224, 224)}
    (tmp_path / exports.MANIFEST).write_text(found.model_dump_json())
    assert exports.read(tmp_path) == found


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"uses": {"": USE | {"file": "../other.onnx"}}}, "uses"),
        ({"uses": {"": USE | {"file": "/etc/passwd"}}}, "uses"),
        ({"files": {"a/b": SHA}}, "files"),
        ({"format": 2}, "format"),
        ({"precision": "float16"}, "precision"),
        ({"uses": {}}, "uses"),
        ({"uses": {"": USE | {"inputs": {"pixels": [0]}}}}, "inputs"),
    ],
)
def test_what_is_no_export_is_refused_with_its_field(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModuleRefused, match=rf"export\.json: \S*{told}.*: export the module again"):
        exports.read(written(tmp_path, **changes))


def test_a_missing_or_huge_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused, match=r"can't be read .*: export the module again"):
        exports.read(tmp_path)
    (tmp_path / exports.MANIFEST).write_bytes(b" " * (exports.MAX_MANIFEST_BYTES + 1))
    with pytest.raises(ModuleRefused, match=r"has more than 16 MiB"):
        exports.read(tmp_path)


def test_a_file_of_another_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    right = exports.sha256_of(tmp_path / "model.onnx")
    assert exports.checked(tmp_path, "model.onnx", right) == tmp_path / "model.onnx"
    with pytest.raises(ModuleRefused, match="has the SHA-256 2d711642b7"):
        exports.checked(tmp_path, "model.onnx", SHA)
    with pytest.raises(ModuleRefused, match=r"other\.onnx can't be read"):
        exports.checked(tmp_path, "other.onnx", right)


def test_exports_are_found_beside_repositories(tmp_path: Path) -> None:
    for name in ("b--text", "a--vision", ".half", "openai/clip"):
        (tmp_path / name).mkdir(parents=True)
        written(tmp_path / name)
    assert [path.name for path in exports.found_in(tmp_path)] == ["a--vision", "b--text"]
    assert exports.directory_name("clip-b16/vision") == "clip-b16--vision"
