"""``bench accuracy --equivalence``: its weights, the models it leaves out, and its clean-up."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest

from s2m3.bench.accuracy import equivalence
from s2m3.bench.requests import requests
from s2m3.catalogue import load_task
from s2m3.cli import main as command_line
from s2m3.reference import random_weights

TINY = {
    "config.json": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
    },
    "preprocessor_config.json": {"size": 32},
}


def test_split_equals_whole_on_real_and_on_random_weights_and_large_models_are_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(random_weights, "write", functools.partial(random_weights.write, changes=TINY))
    monkeypatch.setattr(equivalence, "_without_timestamps", lambda _: TINY)
    monkeypatch.delenv("S2M3_MODELS", raising=False)
    tasks = ("pocket/classify", "hub/classification-vit-b16", "hub/decoder-vqa-llava-7b")
    arguments = [argument for name in tasks for argument in ("--task", name)]
    assert command_line.main(["bench", "accuracy", "--equivalence", *arguments, "--json"]) == 0
    real, random, skipped = json.loads(capsys.readouterr().out)["rows"]
    assert (real["weights"], real["inputs"], real["distinct"], real["differing"]) == ("real", 3, 3, 0)
    assert (random["weights"], random["inputs"], random["distinct"], random["differing"]) == ("random", 3, 3, 0)
    assert skipped["skipped"] == "500,000,000 parameters or more"
    # torch leaves a folder of its own
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")]
    assert not left, "the weights are removed"
    assert "S2M3_MODELS" not in os.environ


@pytest.mark.parametrize("name", equivalence.names())
def test_every_task_has_requests_with_all_of_its_inputs_that_differ(name: str) -> None:
    task = load_task(name)
    first, *others = requests(task)
    assert first.keys() == task.inputs.keys()
    assert all(request != first for request in others)
    for request in (first, *others):
        kinds = {name: raw.content_type.split("/")[0] for name, raw in request.items()}
        assert kinds == {name: spec.kind for name, spec in task.inputs.items()}
