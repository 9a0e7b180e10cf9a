"""``s2m3 models``: exact counts of the real configurations, without their weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from broker.protocol.errors import BadFile
from edge_agent import catalog, modules
from edge_agent.modules.weights import hub
from s2m3.catalogue import load_task
from s2m3.cli.main import main
from s2m3.reference import random_weights, zoo
from tests.patience import run_python

REPOSITORIES = sorted(
    json.loads(path.read_text())["repository"] for path in (catalog.DIRECTORY / "hub" / "configs").glob("*.json")
)
WHOLE = [name for name in REPOSITORIES if zoo.published(name).architecture]
B16 = "hub/retrieval-clip-b16"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main(["models", *arguments]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_configuration_file_is_named_after_its_repository_and_pinned(name: str) -> None:
    published = zoo.published(name)
    assert published.repository == name
    assert published.revision is None or re.fullmatch("[0-9a-f]{40}", published.revision)
    assert not (published.revision and name.startswith("local/"))
    assert bool(published.architecture) != bool(published.families)


@pytest.mark.parametrize("name", [name for name in WHOLE if zoo.published(name).parameters])
def test_the_configurations_make_models_of_the_published_size(name: str) -> None:
    published = zoo.published(name)
    assert published.architecture
    with torch.device("meta"):
        whole = random_weights.whole_model(published.architecture, published.config)
    assert sum(parameter.numel() for parameter in whole.parameters()) == published.parameters


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("hub/retrieval-clip-b32", 0),
        ("hub/retrieval-clip-b16", 0),
        ("hub/retrieval-clip-l14", 0),
        ("hub/retrieval-clip-l14-336", 0),
        ("hub/retrieval-siglip-b16", 0),
        ("hub/classification-vit-b16", 0),
        ("hub/retrieval-align", 768 * 768 + 768),  # BERT's pooler, which nothing uses
    ],
)
def test_the_parts_together_are_the_whole_model(name: str, left_out: int) -> None:
    task = load_task(name)
    (repository,) = {module.source.hub for module in task.modules.values() if module.source and module.source.hub}
    published = zoo.published(repository)
    assert published.architecture
    with torch.device("meta"):
        whole = random_weights.whole_model(published.architecture, published.config)
    parts = sum(zoo.count(task, module).parameters for module in task.modules)
    assert parts + left_out == sum(parameter.numel() for parameter in whole.parameters())


def test_clipseg_weighs_what_is_published_less_clips_unused_projection_and_scale() -> None:
    task = load_task("hub/segmentation-clipseg")
    parts = sum(zoo.count(task, module).parameters for module in task.modules)
    assert parts + 768 * 512 + 1 == zoo.published("CIDAS/clipseg-rd64-refined").parameters


def test_list_names_every_model_in_the_promised_form(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "list", "--json")
    assert [model["name"] for model in found] == list(catalog.names())
    for model in found:
        assert model.keys() == {"name", "task", "modules", "unsplit_bytes", "largest_module_bytes"}
        sizes = [module["memory_bytes"] for module in model["modules"]]
        assert (model["unsplit_bytes"], model["largest_module_bytes"]) == (sum(sizes), max(sizes))
        for module in model["modules"]:
            assert module.keys() == {"module", "family", "parameters", "memory_bytes", "flops", "output_bytes"}
            assert module["memory_bytes"] > 0
    by_name = {model["name"]: model for model in found}
    assert by_name[B16]["task"] == "retrieval"
    vision = by_name[B16]["modules"][0]
    assert vision == {
        "module": "clip-b16/vision",
        "family": "clip.vision",
        "parameters": 85_799_424,
        "memory_bytes": 343_197_696,
        "flops": 35_126_120_448,
        "output_bytes": 3072,
    }


def test_inspect_says_where_a_pin_holds_only_a_pickle(capsys: pytest.CaptureFixture[str]) -> None:
    for name, wanted in (("retrieval-clip-b16", "safetensors"), ("retrieval-clip-l14-336", "pickle")):
        found = printed(capsys, "inspect", f"hub/{name}", "--json")
        assert {module["weights"] for module in found["modules"]} == {wanted}
    assert main(["models", "inspect", "hub/captioning-vit-gpt2"]) == 0
    assert "only a pickle, which is refused" in " ".join(capsys.readouterr().out.split())


def test_inspect_says_what_each_dtype_takes(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "inspect", B16, "--json")
    text = next(module for module in found["modules"] if module["module"] == "clip-b16/text")
    # int8: 38,010,880 numbers in the 73 matrices of linear layers, of 55,808 rows, each with a scale and a zero point;
    # the rest, tokens above all, stays float32.
    assert text["bytes_by_dtype"] == {
        "float32": 253_712_384,
        "float16": 126_856_192,
        "bfloat16": 126_856_192,
        "int8": 253_712_384 - 3 * 38_010_880 + 5 * 55_808,
    }
    assert text["typical"] == "Four captions of seven tokens."
    assert text["uses"] == ["ordinary"]
    segmentation = printed(capsys, "inspect", "hub/segmentation-clipseg", "--json")["modules"]
    assert next(m for m in segmentation if m["module"] == "clip-b16/vision")["uses"] == ["clipseg"]
    assert main(["models", "inspect", "pocket/classify"]) == 0
    assert "efficientnet-lite0/encoder" in capsys.readouterr().out
    assert main(["models", "list"]) == 0


def test_an_unknown_model_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "inspect", "hub/retrieval-clip-b8"]) == 2
    assert "hub/retrieval-clip-b16" in capsys.readouterr().err


def test_numbers_are_compared_and_corrected_and_nothing_else_is_touched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = catalog.path(B16).read_text()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "configs").symlink_to(catalog.DIRECTORY / "hub" / "configs")
    mine = tmp_path / "hub" / "retrieval-clip-b16.yaml"
    mine.write_text(right.replace("memory_bytes: 343197696", "memory_bytes: 5   # why"))
    monkeypatch.setattr(catalog, "DIRECTORY", tmp_path)
    expected = {"name": B16, "module": "clip-b16/vision", "field": "memory_bytes", "written": 5, "counted": 343_197_696}
    assert printed(capsys, "numbers", "--json", code=1) == [expected]
    assert printed(capsys, "numbers", "--json", "--write") == [expected]
    assert mine.read_text() == right.replace("memory_bytes: 343197696", "memory_bytes: 343197696   # why")
    assert printed(capsys, "numbers", "--json") == []


def test_a_model_that_is_used_in_two_ways_or_unknown_is_refused() -> None:
    task = load_task("hub/segmentation-clipseg")
    node = task.nodes["image-encoder"]
    twice = task.model_copy(update={"nodes": task.nodes | {"again": node.model_copy(update={"use": None})}})
    with pytest.raises(BadFile, match="clip-b16/vision: has several uses in one task; name the module twice"):
        zoo.count(twice, "clip-b16/vision")
    with pytest.raises(BadFile, match=r"nobody--knows.json: can't be read .*; write the repository's fields"):
        zoo.published("nobody/knows")


def test_random_weights_of_a_head_are_written_by_the_command_and_load(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["models", "random", "local/clip-b16-linear", "--into", str(tmp_path)]) == 0
    directory = tmp_path / "local" / "clip-b16-linear"
    assert capsys.readouterr().out.strip() == str(directory)
    first = (directory / "model.safetensors").read_bytes()
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    assert modules.load(load_task("hub/classification-clip-b16").modules["clip-b16/linear"])
    assert main(["models", "random", "local/clip-b16-linear", "--into", str(tmp_path)]) == 0
    assert (directory / "model.safetensors").read_bytes() == first, "the same seed gives the same weights"
    assert main(["models", "random", "local/clip-b16-linear", "--into", str(tmp_path), "--seed", "1"]) == 0
    assert (directory / "model.safetensors").read_bytes() != first


def test_an_unknown_repository_is_refused_with_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models", "random", "nobody/knows", "--into", str(tmp_path)]) == 2
    assert "nobody--knows.json" in capsys.readouterr().err


def test_the_command_line_is_parsed_without_torch() -> None:
    code = "import s2m3.cli.models, sys; print(*sys.modules)"
    found = run_python(code).split()
    assert not {"torch", "transformers"} & set(found)
