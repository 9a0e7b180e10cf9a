"""Exports of the catalogue's modules, held to torch: pocket's with real weights, tiny encoders of pictures and sounds.

torch's exporter takes seconds of a core for each module. So the long form has a task of each other family, and all
tasks of the hub zoo, tiny; and the steps of each family are held to their descriptions in ``test_zoo``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_agent.device.calibration import Calibration
from edge_agent.device.measurements import Measurements
from edge_agent.modules.inputs import steps
from edge_agent.modules.loader import Loader
from edge_agent.modules.weights import exports, hub
from edge_agent.runtime.runner import Runner
from s2m3.catalogue import load_task
from s2m3.cli.main import main
from s2m3.export import graph, observed, write
from s2m3.export.compare import TOLERANCE
from tests.equivalence.test_zoo import ENTRIES, write_models

FEW = 3  # requests of each task
QUICK = "vit"  # of SMALL
SMALL = {
    "clip": "hub/retrieval-clip-b32",
    "siglip": "hub/retrieval-siglip-b16",
    "vit": "hub/classification-vit-b16",
    "clipseg": "hub/segmentation-clipseg",
    "clap": "hub/alignment-clap",
    "ast": "hub/alignment-clip-b16-ast",
}
LOOPS = {
    "blip.decoder",
    "llava.language",
    "llava.tied_language",
    "smolvlm.language",
    "vit_gpt2.decoder",
    "whisper.decoder",
}
"""The families that generate token by token."""
OTHERS = {"align.vision", "blip.question", "smolvlm.vision", "vilt.answer", "whisper.encoder"}
"""Those whose steps are their own, or which take and give an array of one name."""


def silent(_: str) -> None:
    pass


def holds(report: dict[str, Any]) -> None:
    """Each exported module is near torch, and says so in its file; each answer is torch's."""
    assert report["ok"], report
    for module in report["modules"]:
        if module["state"] != "exported":
            continue
        directory = Path(module["directory"])
        made = exports.read(directory)
        assert (made.module, made.key) == (module["module"], module["key"])
        assert module["digest"] == f"sha256:{exports.sha256_of(directory / exports.MANIFEST)}"
        for name, sha256 in made.files.items():
            assert exports.checked(directory, name, sha256)
        graphs = {each.file for each in made.uses.values()}
        assert {path.name for path in directory.iterdir()} == {exports.MANIFEST, *graphs, *made.files}
        weights = {graph.weights_file(name) for name in graphs} & made.files.keys()
        assert made.memory_bytes == sum((directory / name).stat().st_size for name in graphs | weights)
        for each in made.uses.values():
            assert exports.checked(directory, each.file, each.sha256)
            assert steps.described(steps.from_description(each.steps, directory)) == each.steps
        for use, found in module["uses"].items():
            assert made.uses[use].largest_difference == found["largest_difference"]
            assert found["relative_difference"] <= TOLERANCE


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("pocket")
    return directory, write.export("pocket/vqa", directory, "float32", silent, most=FEW)


def test_the_pocket_modules_answer_as_torch(pocket: tuple[Path, dict[str, Any]]) -> None:
    directory, report = pocket
    holds(report)
    assert {path.name for path in exports.found_in(directory)} == {
        "conse--head",
        "efficientnet-lite0--classifier",
        "efficientnet-lite0--encoder",
        "minilm--text",
    }
    shapes = {each["module"]: exports.read(Path(each["directory"])).uses[""].inputs for each in report["modules"]}
    assert shapes["efficientnet-lite0/encoder"] == {"pixels": (None, 3, 224, 224)}
    assert shapes["efficientnet-lite0/classifier"] == {"features": (None, 1280)}
    assert shapes["minilm/text"] == {"ids": (None, None), "mask": (None, None)}
    assert shapes["conse/head"] == {"probs": (1, 1000), "candidates": (None, 384), "question": (None, 384)}


def test_weights_lie_beside_the_graph_in_a_file_that_export_json_names(pocket: tuple[Path, dict[str, Any]]) -> None:
    _, report = pocket
    for each in report["modules"]:
        if each["state"] == "exported":
            directory = Path(each["directory"])
            assert "model.onnx.data" in exports.read(directory).files
            assert (directory / "model.onnx").stat().st_size < 500_000
            assert each["uses"][""]["bytes"] == each["memory_bytes"] > 1_000_000


def test_agents_with_the_engine_onnx_find_and_run_them(
    pocket: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = pocket
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(directory))
    for spec in load_task("pocket/vqa").modules.values():
        module = Loader("onnx").load(spec)
        values = module.passes[None].steps.sample()
        assert values is not None
        assert module.engine == "onnx"
        assert Runner().run(module, values).tensors


@pytest.mark.parametrize("name", ["pocket/classify", "pocket/zero-shot"])
def test_the_same_exports_serve_the_other_pocket_tasks(pocket: tuple[Path, dict[str, Any]], name: str) -> None:
    directory, _ = pocket
    task = load_task(name)
    asked = observed.requests(task)[:4]
    assert write.compare_task(task, asked, observed.Loaded(), directory) == {"requests": 4, "same_answers": 4}


@pytest.mark.parametrize(
    "family", [family if family == QUICK else pytest.param(family, marks=pytest.mark.long) for family in SMALL]
)
def test_a_tiny_model_of_each_family_answers_as_torch(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(SMALL[family], tmp_path / "models")
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path / "models"))
    report = write.export(SMALL[family], tmp_path / "exports", "float32", silent, most=FEW)
    holds(report)
    assert {each["state"] for each in report["modules"]} == {"exported"}
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path / "exports"))
    for spec in load_task(SMALL[family]).modules.values():
        assert Loader("onnx").load(spec).engine == "onnx"


def test_a_tiny_audio_encoder_alone_answers_as_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(SMALL["ast"], tmp_path / "models")
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path / "models"))
    report = write.export("ast/encoder", tmp_path / "exports", "float32", silent, most=FEW)
    holds(report)
    assert [each["state"] for each in report["modules"]] == ["exported"]


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - set(SMALL.values())))
def test_a_tiny_model_of_each_task_is_exported_but_for_what_cant_be(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(name, tmp_path / "models")
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path / "models"))
    report = write.export(name, tmp_path / "exports", "float32", silent, most=FEW)
    families = {module: spec.family for module, spec in load_task(name).modules.items()}
    refused = {families[each["module"]] for each in report["modules"] if each["state"] == "refused"}
    assert refused == (LOOPS | OTHERS) & set(families.values()), report
    holds(report | {"ok": True})


@pytest.mark.long
def test_all_pocket_requests_are_answered_as_by_torch(tmp_path: Path) -> None:
    holds(write.export("pocket/vqa", tmp_path, "float32", silent))
    for name in ("pocket/classify", "pocket/zero-shot", "pocket/ask"):
        task = load_task(name)
        found = write.compare_task(task, observed.requests(task), observed.Loaded(), tmp_path)
        assert found["requests"] == found["same_answers"] > FEW


@pytest.mark.long
def test_an_export_keeps_the_uses_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(SMALL["clip"], tmp_path / "models")
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path / "models"))
    task = load_task(SMALL["clip"])
    nodes = {"image-encoder": task.nodes["image-encoder"]}
    alone = task.model_copy(
        update={"nodes": nodes, "output": "image-encoder", "inputs": {"image": task.inputs["image"]}}
    )
    for use in ("patch-mean", "llava"):
        node = nodes["image-encoder"].model_copy(update={"use": use})
        file = tmp_path / f"{use}.json"
        changed = alone.model_copy(
            update={
                "nodes": {"image-encoder": node},
                "modules": {node.module: task.modules[node.module]},
            }
        )
        file.write_text(changed.model_dump_json(exclude_none=True))
        holds(write.export(str(file), tmp_path / "exports", "float32", silent, most=FEW))
    made = exports.read(tmp_path / "exports" / "clip-b32--vision")
    assert set(made.uses) == {"patch-mean", "llava"}
    assert set(made.files) == {"patch-mean.onnx.data", "llava.onnx.data"}
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path / "exports"))
    spec = task.modules[nodes["image-encoder"].module]
    loaded = Calibration(Measurements()).load(spec, Loader("onnx").load)
    assert loaded.compute_s, "of the first use, where there is no ordinary one"
    assert set(loaded.module.passes) == set(made.uses)


def test_modules_that_need_no_export_or_can_have_none_are_told_with_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["models", "export", "whisper-tiny.en/decoder", "--to", str(tmp_path), "--json"]) == 0
    (whisper,) = json.loads(capsys.readouterr().out)["modules"]
    assert whisper["state"] == "not needed"
    assert "CTranslate2" in whisper["why"]
    for module in ("vit-gpt2/decoder", "whisper-tiny/decoder", "smolvlm-256m/language"):
        assert main(["models", "export", module, "--to", str(tmp_path)]) == 1
        assert f"{module}: can't be exported: it generates in a loop" in capsys.readouterr().out
    assert main(["models", "export", "nobody/knows", "--to", str(tmp_path)]) == 2
    assert "nobody/knows: is neither a task nor a module of the catalogue" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert main(["models", "export", "pocket/vqa", "--to", str(tmp_path / "file" / "x")]) == 2
    assert "file/x: Not a directory; name another --to" in capsys.readouterr().err


def test_int8_is_smaller_and_says_how_far_it_is(
    pocket: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = pocket
    report = write.export("efficientnet-lite0/classifier", tmp_path, "int8", silent, most=FEW)
    (small,) = report["modules"]
    (large,) = (each for each in whole["modules"] if each["module"] == small["module"])
    assert report["ok"]
    assert exports.read(Path(small["directory"])).precision == "int8"
    assert small["key"] == large["key"], "an identity is the same in all variants"
    assert small["memory_bytes"] < 0.3 * large["memory_bytes"]
    assert "model.onnx.data" in exports.read(Path(small["directory"])).files
    assert (Path(small["directory"]) / "model.onnx").stat().st_size < 100_000
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    spec = next(each for name, each in load_task("pocket/vqa").modules.items() if name == small["module"])
    module = Loader("onnx").load(spec)
    assert Runner().run(module, module.passes[None].steps.sample() or ()).tensors
    assert 1e-5 < small["uses"][""]["largest_difference"] < 0.1
