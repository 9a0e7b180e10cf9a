"""``s2m3 models scan``: what checkpoints share, byte for byte. The checkpoints are tiny, and written by the tests."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from broker.protocol.errors import ModuleRefused
from edge_agent import modules
from edge_agent.modules.weights.checkpoint import Checkpoint
from s2m3.catalogue import load_task
from s2m3.cli.main import main
from s2m3.reference import random_weights, zoo

ZOO = Path(__file__).parents[3] / "equivalence" / "zoo"
B16, L14 = "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14-336"
CLIPSEG, LLAVA = "CIDAS/clipseg-rd64-refined", "llava-hf/llava-1.5-7b-hf"
FAMILIES = {"clip.vision", "clip.image_projection", "clip.text", "clip.head"}

Write = Callable[..., Path]
Scan = Callable[..., dict[str, Any]]


def changes(family: str, task: str) -> dict[str, Any]:
    """Repository -> what makes it tiny."""
    return cast("dict[str, Any]", runpy.run_path(str(ZOO / f"{family}.py"))["ENTRIES"][task]["changes"])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes tiny repositories into a models directory, in the order given, each with other weights."""
    tiny = changes("clip", "hub/retrieval-clip-b16")
    tiny |= changes("clipseg", "hub/segmentation-clipseg") | changes("llava", "hub/decoder-vqa-llava-7b")

    def written(*repositories: str, into: str = "models", **options: Any) -> Path:
        for seed, name in enumerate(repositories):
            random_weights.write(zoo.published(name), tmp_path / into, seed=seed, changes=tiny[name], **options)
        return tmp_path / into

    return written


@pytest.fixture
def scan(capsys: pytest.CaptureFixture[str]) -> Scan:
    def scanned(*paths: Path, code: int = 0, dtype: str = "float32") -> dict[str, Any]:
        assert main(["models", "scan", *map(str, paths), "--dtype", dtype, "--json"]) == code
        return cast("dict[str, Any]", json.loads(capsys.readouterr().out))

    return scanned


def change(directory: Path, *beginnings: str) -> None:
    """Train a checkpoint on: its tensors of these beginnings get other numbers."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file({n: tensor + 1 if n.startswith(beginnings) else tensor for n, tensor in tensors.items()}, path)


def shared_by(found: dict[str, Any], count: int) -> set[str]:
    return {module["family"] for module in found["modules"] if len(module["checkpoints"]) == count}


def problems(found: dict[str, Any]) -> list[str]:
    return [problem for checkpoint in found["checkpoints"] for problem in checkpoint["problems"]]


def test_a_fine_tune_that_froze_the_vision_tower_shares_it_and_one_that_did_not_shares_nothing_of_it(
    write: Write, scan: Scan
) -> None:
    models = write(B16)
    frozen, unfrozen = models / "me" / "frozen", models / "me" / "unfrozen"
    shutil.copytree(models / B16, frozen)
    shutil.copytree(models / B16, unfrozen)
    change(frozen, "text_model.", "text_projection.")
    change(unfrozen, "vision_model.encoder.layers.2.mlp.fc2.bias")  # one tensor is enough
    found = scan(models)
    assert [Path(each["path"]).name for each in found["checkpoints"]] == ["frozen", "unfrozen", B16.partition("/")[2]]
    by_name = {Path(each["path"]).name: each["modules"] for each in found["checkpoints"]}
    original = by_name[B16.partition("/")[2]]
    assert original.keys() == FAMILIES
    assert {family for family in FAMILIES if by_name["frozen"][family] != original[family]} == {"clip.text"}
    assert {family for family in FAMILIES if by_name["unfrozen"][family] != original[family]} == {"clip.vision"}

    tensors = load_file(models / B16 / "model.safetensors")
    size = {
        part: sum(t.nbytes for n, t in tensors.items() if n.startswith(part) and not n.endswith(".position_ids"))
        for part in ("vision_", "text_", "visual_", "logit_")
    }
    assert found["unshared_bytes"] == 3 * sum(size.values())
    assert found["shared_bytes"] == 2 * size["vision_"] + 2 * size["text_"] + size["visual_"] + size["logit_"]
    assert found["saved_bytes"] == found["unshared_bytes"] - found["shared_bytes"]
    assert found["saved_percent"] == round(100 * found["saved_bytes"] / found["unshared_bytes"], 2)
    assert found["ok"]


def test_one_file_or_several_is_the_same_content(write: Write, scan: Scan) -> None:
    whole, sharded = write(B16), write(B16, into="sharded", max_shard_size="100KB")
    assert len(list((sharded / B16).glob("*.safetensors"))) > 2
    assert shared_by(scan(whole, sharded), 2) == FAMILIES


def test_clips_towers_are_found_under_clipsegs_prefix(write: Write, scan: Scan) -> None:
    found = scan(write(B16, CLIPSEG))
    assert shared_by(found, 2) == FAMILIES
    assert shared_by(found, 1) == {"clipseg.reduce", "clipseg.decoder"}
    assert not any(each["unclaimed"] for each in found["checkpoints"])


def test_clips_vision_tower_is_found_in_llava_if_and_only_if_it_was_frozen(write: Write, scan: Scan) -> None:
    found = scan(write(L14, LLAVA))
    assert shared_by(found, 2) == {"clip.vision"}
    assert shared_by(found, 1) >= {"llava.projector", "llava.language", "clip.text"}
    assert shared_by(scan(write(LLAVA, L14, into="unfrozen")), 2) == set()


def test_the_digest_is_the_one_that_an_agent_holds_a_spec_against(
    write: Write, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = write(B16)
    monkeypatch.setenv("S2M3_MODELS", str(models))
    spec = load_task("hub/retrieval-clip-b16").modules["clip-b16/text"]
    for dtype in ("float32", "float16"):
        (checkpoint,) = scan(models, dtype=dtype)["checkpoints"]
        known = {"dtype": dtype, "digest": checkpoint["modules"]["clip.text"]}
        assert modules.load(spec.model_copy(update=known))
        with pytest.raises(ModuleRefused, match="digest"):
            modules.load(spec.model_copy(update=known | {"digest": checkpoint["modules"]["clip.vision"]}))


def test_half_of_a_checkpoint_is_another_module_unless_both_are_held_in_half(write: Write, scan: Scan) -> None:
    models = write(B16)
    shutil.copytree(models / B16, models / "me" / "half")
    path = models / "me" / "half" / "model.safetensors"
    save_file({n: t.half() if t.is_floating_point() else t for n, t in load_file(path).items()}, path)
    assert "clip.vision" not in shared_by(scan(models), 2)
    assert shared_by(scan(models, dtype="float16"), 2) == FAMILIES


def test_never_more_than_one_tensor_is_read_at_a_time(
    write: Write, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = Checkpoint.read

    def read(self: Any, names: Any) -> Any:
        asked.append(len(list(names)))
        return real(self, names)

    monkeypatch.setattr(Checkpoint, "read", read)
    scan(write(B16))
    assert set(asked) == {1}


def test_what_no_family_reads_is_named_and_not_counted(write: Write, scan: Scan) -> None:
    models = write(B16)
    path = models / B16 / "model.safetensors"
    before = scan(models)
    save_file(load_file(path) | {"classifier.weight": torch.zeros(2, 2), "classifier.bias": torch.zeros(2)}, path)
    after = scan(models)
    assert after["checkpoints"][0]["unclaimed"] == ["classifier.bias", "classifier.weight"]
    assert after["modules"] == before["modules"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda d: _without(d, "vision_model.pre_layrnorm.bias"),
            "lacks pre_layrnorm.bias of clip.vision: its weights",
        ),
        (lambda d: _with(d, "vision_model.odd"), "has vision_model.odd besides what clip.vision takes: config.json"),
        (
            lambda d: _config(d, {"vision_config": {"image_size": 128}}),
            "correct config.json, or fetch the weights again",
        ),
        (lambda d: _config(d, {"text_config": {"num_attention_heads": 7}}), "makes no such network"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer.json is not JSON"),
    ],
)
def test_a_part_that_is_spoilt_is_one_sentence_and_the_others_are_reported(
    write: Write, scan: Scan, spoil: Callable[[Path], None], sentence: str
) -> None:
    models = write(B16)
    shutil.copytree(models / B16, models / "me" / "spoilt")
    spoil(models / "me" / "spoilt")
    found = scan(models, code=1)
    (problem,) = problems(found)
    assert sentence in problem
    assert "me/spoilt" in problem
    assert "\n" not in problem
    assert found["modules"]
    spoilt, whole = found["checkpoints"]
    assert len(spoilt["modules"]) == 3
    assert whole["modules"].keys() == FAMILIES
    assert not found["ok"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: _config(d, {"model_type": "diffusion"}), "diffusion by its config.json, which no family knows"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
        (
            lambda d: (d / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense"),
            "not a complete safetensors file",
        ),
        (lambda d: _config(d, {"model_type": "siglip"}), "or of another model than config.json says"),
        (lambda d: save_file({"x": torch.zeros(1)}, d / "model.safetensors"), "has no tensors of"),
    ],
)
def test_a_checkpoint_that_can_not_be_read_is_one_sentence_and_the_others_are_reported(
    write: Write, scan: Scan, spoil: Callable[[Path], None], sentence: str
) -> None:
    models = write(B16)
    shutil.copytree(models / B16, models / "me" / "spoilt")
    spoil(models / "me" / "spoilt")
    found = scan(models, code=1)
    assert sentence in problems(found)[0]
    assert "me/spoilt" in problems(found)[0]
    assert not found["checkpoints"][0]["modules"]
    assert found["checkpoints"][1]["modules"].keys() == FAMILIES


def test_when_nothing_can_be_read_the_exit_code_is_2(
    tmp_path: Path, scan: Scan, capsys: pytest.CaptureFixture[str]
) -> None:
    pickle = tmp_path / "weights.pt"
    pickle.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    found = scan(pickle, tmp_path / "empty", tmp_path / "absent", Path(__file__), code=2)
    assert len(problems(found)) == 4
    for sentence, problem in zip(
        ("is a pickle", "no checkpoint", "not there", "is a file"), problems(found), strict=True
    ):
        assert sentence in problem
    assert main(["models", "scan", str(pickle)]) == 2
    assert "is a pickle" in " ".join(capsys.readouterr().out.split())


def test_a_shard_that_is_missing_is_named_and_the_parts_without_it_are_reported(write: Write, scan: Scan) -> None:
    models = write(B16, max_shard_size="100KB")
    shards = sorted((models / B16).glob("*.safetensors"))
    shards[-1].unlink()
    found = scan(models, code=1)
    assert all(f"has no {shards[-1].name}" in problem for problem in problems(found))
    assert len(problems(found)) == 1, "it is said once, however many parts need it"
    assert found["modules"]


def test_a_directory_that_may_not_be_read_is_named(scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert problems(scan(tmp_path, code=2)) == [
        f"{tmp_path} can't be read (Permission denied): correct its permissions, or name another"
    ]


def test_a_person_reads_a_table_and_what_is_saved(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "scan", str(write(B16, CLIPSEG))]) == 0
    printed = capsys.readouterr().out
    assert "clipseg.decoder" in printed
    assert "sharing saves" in printed


def _without(directory: Path, name: str) -> None:
    path = directory / "model.safetensors"
    save_file({each: tensor for each, tensor in load_file(path).items() if each != name}, path)


def _with(directory: Path, name: str) -> None:
    path = directory / "model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(1)}, path)


def _config(directory: Path, changed: dict[str, Any]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(random_weights.merged(json.loads(path.read_text()), changed)))
