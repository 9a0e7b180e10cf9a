"""``s2m3 models task``: a task file for one's own checkpoint. The checkpoints are tiny, and written by the tests."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from edge_agent.modules import load
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from s2m3.catalogue import load_task
from s2m3.reference import random_weights, zoo

CLIP, VIT = "openai/clip-vit-base-patch16", "google/vit-base-patch16-224"
ZOO = Path(__file__).parents[3] / "equivalence" / "zoo"
TINY = {CLIP: ("clip", "hub/retrieval-clip-b16"), VIT: ("vit", "hub/classification-vit-b16")}
Print = Callable[..., str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with tiny checkpoints of both kinds, as `mine/clip` and `mine/vit`."""
    directory = tmp_path_factory.mktemp("own") / "models"
    for repository, (family, task) in TINY.items():
        changes = runpy.run_path(str(ZOO / f"{family}.py"))["ENTRIES"][task]["changes"][repository]
        random_weights.write(zoo.published(repository), directory, changes=changes)
        (directory / "mine").mkdir(exist_ok=True)
        (directory / repository).rename(directory / "mine" / family)
    return directory


@pytest.mark.parametrize(
    "wanted",
    [
        ("clip", (), "hub/retrieval-clip-b16"),
        ("clip", ("--head", "embed-image"), "hub/embed-image-clip-b16"),
        ("clip", ("--head", "embed-text"), "hub/embed-text-clip-b16"),
        ("vit", (), "hub/classification-vit-b16"),
    ],
)
def test_the_file_is_a_task_of_the_catalogue_on_ones_own_weights(
    models: Path, task: Print, tmp_path: Path, wanted: tuple[str, tuple[str, ...], str]
) -> None:
    checkpoint, options, like = wanted
    file = tmp_path / "task.yaml"
    file.write_text(task(models / "mine" / checkpoint, *options))
    assert f"`models: {models}`" in file.read_text()
    own, catalogues = load_task(str(file)), load_task(like)
    assert own.task == f"{like.partition('/')[2].rpartition(f'-{checkpoint}')[0]}-{checkpoint}"
    assert [each.family for each in own.modules.values()] == [each.family for each in catalogues.modules.values()]
    assert {node: (each.needs, each.use) for node, each in own.nodes.items()} == {
        node: (each.needs, each.use) for node, each in catalogues.nodes.items()
    }
    assert own.answer == catalogues.answer
    for module in own.modules.values():
        assert module.source is not None
        assert (module.source.hub, module.source.revision) == (f"mine/{checkpoint}", None)
    if not options:  # then its modules have all tensors of the checkpoint
        stored = load_file(models / "mine" / checkpoint / "model.safetensors").values()
        assert sum(module.memory_bytes for module in own.modules.values()) == sum(each.nbytes for each in stored)


def test_a_folder_of_the_hubs_cache_is_a_source_with_its_commit(models: Path, task: Print, tmp_path: Path) -> None:
    commit = "0123456789" * 4
    folder = tmp_path / "models--my-org--vit" / "snapshots" / commit
    shutil.copytree(models / "mine" / "vit", folder)
    file = tmp_path / "task.yaml"
    file.write_text(task(folder, "--dtype", "float16"))
    sources = [each.source for each in load_task(str(file)).modules.values()]
    assert [(each.hub, each.revision) for each in sources if each] == 2 * [("my-org/vit", commit)]
    assert {each.dtype for each in load_task(str(file)).modules.values()} == {"float16"}


def test_the_digests_that_it_states_are_those_that_an_agent_finds(
    models: Path, task: Print, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(models))
    file = tmp_path / "task.yaml"
    file.write_text(task(models / "mine" / "vit", "--digest", "--dtype", "float16"))
    modules = load_task(str(file)).modules.values()
    assert len({module.digest for module in modules} - {None}) == len(modules) == 2
    for module in modules:
        load(module)  # which refuses weights of another digest


def test_what_no_task_can_be_about_is_refused_in_one_line(models: Path, task: Print, tmp_path: Path) -> None:
    assert "--head: this checkpoint can't be vqa; it can be classification" in task(
        models / "mine" / "vit", "--head", "vqa", expect=2
    )
    assert "is a file; name its folder; for an ONNX file see" in task(models / "mine" / "vit" / "config.json", expect=2)
    assert "is not a folder with a checkpoint" in task(tmp_path / "gone", expect=2)
    empty = tmp_path / "org" / "name"
    empty.mkdir(parents=True)
    task(empty, expect=2)
    other = tmp_path / "org" / "other"
    shutil.copytree(models / "mine" / "vit", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert "no family knows models of type bert" in task(other, expect=2)
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 33}))
    task(other, expect=2)


def test_a_checkpoint_of_ones_own_is_exported_from_the_models_directory_that_is_named(
    models: Path, task: Print, tmp_path: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    file, exports = tmp_path / "task.yaml", tmp_path / "exports"
    file.write_text(task(models / "mine" / "vit"))
    command = ["models", "export", str(file), "--to", str(exports)]
    assert exit_code(command) == 1
    assert capsys.readouterr().err.endswith("for a checkpoint of your own: --models DIR, its models directory\n")
    assert exit_code([*command, "--models", str(models / "gone")]) == 2
    assert "gone is not a folder; name a models directory" in capsys.readouterr().err
    assert exit_code([*command, "--models", str(models)]) == 0
    assert sorted(path.name for path in exports.iterdir()) == ["vit--classifier", "vit--encoder"]
