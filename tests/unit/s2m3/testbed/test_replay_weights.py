"""A task whose weights this machine lacks is refused before anything starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.protocol.errors import BadFile
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.allowed import allowed
from s2m3.testbed.replay.library import load_scenario
from s2m3.testbed.replay.weights import require_weights, weights_of

URL = {"url": "https://store/sha256/a.safetensors", "digest": "sha256:" + "a" * 64, "part": "p"}


def scenario_of(folder: Path, source: Any, family: str = "vit.encoder", **fields: Any) -> Any:
    task = {
        "task": "look",
        "inputs": {"image": {"kind": "image", "bytes": 100}},
        "nodes": {"n": {"module": "see", "needs": ["image"]}},
        "output": "n",
        "modules": {"see": {"family": family, "source": source, "memory_bytes": 1, "flops": 1, "output_bytes": 1}},
    }
    (folder / "look.yaml").write_text(yaml.safe_dump(task))
    (folder / "requests").mkdir(exist_ok=True)
    (folder / "requests" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    scenario = {
        "name": "own",
        "fleet": [{"id": "gw-a"}],
        "tasks": ["look.yaml"],
        "requests": {"look": "requests"},
        "load": {"rate_per_s": 1, "duration_s": 1, "deadline_s": 1},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(scenario | fields))
    return load_scenario(str(folder / "own.yaml"))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(hub.DIRECTORY_VARIABLE, raising=False)
    (tmp_path / "models" / "mine" / "look").mkdir(parents=True)
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ({"hub": "mine/look", "part": "p"}, "this machine lacks the weights hub:mine/look#p"),
        ({"pip": "some-package", "part": "p"}, "no weights from the package some-package"),
        (URL, "https://store/sha256/a.safetensors is not allowed on this device"),
    ],
)
def test_weights_that_are_missing_are_told_with_file_line_and_fix(
    tmp_path: Path, models: Path, source: Any, why: str
) -> None:
    for fields in ({}, {"models": "models"}):
        with pytest.raises(BadFile) as refused:
            require_weights(scenario_of(tmp_path, source, **fields))
        assert refused.value.file == str(tmp_path / "look.yaml")
        assert (refused.value.field, refused.value.line is None) == ("modules.see.source", False)
        assert why in refused.value.problem
        assert "models: DIR" in refused.value.fix
    assert models.is_dir()


@pytest.mark.parametrize(
    ("family", "files"),
    [("vit.encoder", ("config.json", "model.safetensors")), ("onnx.encoder", ("model.onnx",))],
)
def test_weights_in_the_models_directory_beside_the_scenario_are_here(
    tmp_path: Path, models: Path, family: str, files: tuple[str, ...]
) -> None:
    scenario = scenario_of(tmp_path, {"hub": "mine/look", "part": "p"}, family, models="models")
    for file in files:
        with pytest.raises(BadFile):
            require_weights(scenario)
        (models / "mine" / "look" / file).write_bytes(b"{}")
    require_weights(scenario)


def test_weights_by_a_url_that_the_scenario_allows_are_fetched_by_the_agents(tmp_path: Path) -> None:
    require_weights(scenario_of(tmp_path, URL, weights={"url": ["https://store/"]}))


def test_this_process_loads_as_the_agents_do_only_for_that_time(tmp_path: Path, models: Path) -> None:
    scenario = scenario_of(tmp_path, URL, weights={"url": ["https://store/"]}, models="models")
    with weights_of(scenario):
        assert os.environ[hub.DIRECTORY_VARIABLE] == str(models)
        assert allowed().url == ("https://store/",)
    assert hub.DIRECTORY_VARIABLE not in os.environ
    assert allowed().url == ()


@pytest.mark.parametrize(
    ("fields", "field", "sentence"),
    [
        ({"models": "nowhere"}, "models", "nowhere is not a folder; name the models directory"),
        ({"requests": {"look": "requests", "nix": "x"}}, "requests.nix", "is not the name of a task of this scenario"),
        ({"requests": {"look": "nowhere"}}, "", "nowhere: No such file or directory; name a folder with requests"),
        ({"requests": {}}, "", "has no requests for; name a folder of them, requests: {look: FOLDER}"),
        ({"tasks": ["look.yaml", "look.yaml"]}, "tasks.1", "is the name of an earlier one, too"),
        ({"faults": [{"at_s": 0, "kill": "front-door:nix"}]}, "faults.0.kill", "names the task nix"),
        ({"fleet": [{"id": "gw-a", "speed": 1, "compute_flops_per_s": 1e9}]}, "fleet.0.speed", "remove one of them"),
        ({"faults": [{"at_s": 0, "join": "gw-a"}]}, "faults.0.join", "leaves no device to begin with"),
    ],
)
def test_a_scenario_and_its_files_that_dont_fit_each_other_are_refused(
    tmp_path: Path, fields: Any, field: str, sentence: str
) -> None:
    with pytest.raises(BadFile) as refused:
        scenario_of(tmp_path, {"hub": "mine/look", "part": "p"}, **fields)
    assert refused.value.field == field
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
