"""EfficientNet-Lite0 with a linear head that was fitted on its features."""

from __future__ import annotations

from torch.nn import functional

from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families.heads import RANKED
from s2m3.reference.whole.efficientnet import Network
from s2m3.reference.whole.model import Inputs, Model
from s2m3.reference.whole.pretrained import ranked, read_head


class LinearHead(Model):
    """Picture to logits (1, c) and the likeliest labels, by a repository's linear layer on the features."""

    def __init__(self, task: TaskSpec) -> None:
        self._head, self._labels = read_head(task)
        ((self._input, _),) = task.inputs.items()
        self._network = Network()

    def _answer(self, inputs: Inputs) -> Output:
        features = self._network.features(inputs[self._input])
        logits = functional.linear(features, self._head["classifier.weight"], self._head["classifier.bias"])
        return ranked("label", self._labels, logits, logits.softmax(dim=1), RANKED)
