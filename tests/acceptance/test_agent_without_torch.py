"""A real agent process with the engine ``onnx`` and real weights: it serves pictures and sounds without torch."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from broker.protocol.codec import RawInput
from edge_agent import catalog, modules
from edge_agent.config import AgentConfig
from edge_agent.modules.inputs import steps
from edge_agent.runtime.runner import Runner
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.site import Site
from tests.onnx_models import write_export

TOLERANCE = 1e-4  # between the engines
FORBIDDEN = {"torch", "transformers", "scipy", "sklearn", "huggingface_hub"}
# An agent that writes the names of its modules when it ends.
TELLING = """
import atexit, pathlib, sys
atexit.register(lambda: pathlib.Path({path!r}).write_text(" ".join(sys.modules)))
from edge_agent.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""


class Positional(nn.Module):
    """The forward pass of a module, for torch's exporter."""

    def __init__(self, module: modules.Module, name: str) -> None:
        super().__init__()
        self._forward, self._network, self._name = module.passes[None].forward, module.network, name

    def forward(self, array: Tensor) -> Any:
        return next(iter(self._forward(self._network, **{self._name: array}).values()))


def export(models: Path, part: str, module: modules.Module, takes: tuple[str, tuple[int, ...]], gives: str) -> None:
    """Write a module of the task ``classify`` into the models directory."""
    name, (taken, shape), path = f"efficientnet-lite0/{part}", takes, models / "exported.onnx"
    spec = load_task("pocket/classify").modules[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated, and ten times as fast
        torch.onnx.export(
            Positional(module, taken), (torch.zeros(shape),), str(path), dynamo=False, opset_version=17,
            input_names=[taken], output_names=[gives],
        )  # fmt: skip
    content = path.read_bytes()
    path.unlink()
    write_export(
        models, content, module=name, key=spec.key, family=spec.family, memory_bytes=spec.memory_bytes,
        inputs={taken: shape}, outputs=[gives], steps=steps.described(module.passes[None].steps),
    )  # fmt: skip


class TellingSite(Site):
    """A site whose agents write the names of their modules when they end."""

    def _start(self, name: str, arguments: list[str]) -> None:
        super()._start(name, ["telling_agent" if each == "edge_agent" else each for each in arguments])


def test_an_agent_with_onnx_serves_real_weights_and_imports_neither_torch_nor_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classify, speech = load_task("pocket/classify"), load_task("pocket/speech")
    encoder, classifier = (
        modules.load(classify.modules[f"efficientnet-lite0/{each}"]) for each in ("encoder", "classifier")
    )
    models, told = tmp_path / "models", tmp_path / "modules.txt"
    models.mkdir()
    export(models, "encoder", encoder, ("pixels", (1, 3, 224, 224)), "features")
    export(models, "classifier", classifier, ("features", (1, 1280)), "probs")
    (tmp_path / "telling_agent.py").write_text(TELLING.format(path=str(told)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    config = AgentConfig(id="gw-a", memory=400 * 2**20, engine="onnx", models=str(models))
    photo = picture("rocket.jpg").raw
    sound = RawInput((catalog.DIRECTORY / "pocket" / "sounds" / "what-is-taking-off.wav").read_bytes(), "audio/wav")
    with TellingSite("mosquitto", [config]) as running:
        running.serve([classify, speech])
        named = running.client.request("classify", {"image": photo})
        said = running.client.request("speech", {"audio": sound})
    assert (named.ok, said.ok) == (True, True), (named, said)
    runner = Runner(threads=1)
    expected = runner.run(classifier, (runner.run(encoder, (photo,)).tensors,)).answer
    assert expected is not None
    assert named.result.answer is not None
    assert named.result.answer["label"] == expected["label"] == "missile"
    assert named.result.answer["score"] == pytest.approx(expected["score"], abs=TOLERANCE)
    assert said.result.answer == {"text": "What is taking off?"}
    imported = set(told.read_text(encoding="utf-8").split())
    assert not FORBIDDEN & imported
    assert {"onnxruntime", "ctranslate2", "tokenizers"} <= imported
