"""Small heads on features of towers that are there already: a linear classifier, and an answerer of questions.

    part     weights                            takes                              gives, and the answer
    linear   ``classifier.`` (c, d)             one array of features (1, d)       ``logits`` float32 (1, c)
    answer   ``fuse.`` (h, d + e),              features (1, d) of a picture and   ``logits`` float32 (1, c)
             ``classify.`` (c, h)               ``text_embeds`` (1, e)

Nobody publishes these: they are trained on the towers' features (``s2m3 head train``), and lie in the models directory
under the organisation ``local``, safetensors and a config.json with
- ``model_type``: ``s2m3-linear`` or ``s2m3-answer``;
- ``features``: the name of the tower's array (``pooled``, ``features``, ``image_embeds``), ``width``: its length d;
- ``text_width`` e and ``hidden`` h, of the answerer only;
- ``id2label``: the c labels or answers, by index; or ``labels``: their number, when they have no names.

The answerer is CLIP's two embeddings, joined, and a perceptron over the usual answers: what "encoder-only" visual
question answering comes to. It knows the answers that it was trained on, and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from broker.protocol.errors import ErrorCode, RequestFailed
from edge_agent.modules import Output, Value
from edge_agent.modules.inputs import decoding, outputs, sample_inputs
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config

RANKED = 5  # labels named in an answer
LINEAR, ANSWER = "s2m3-linear", "s2m3-answer"


class Linear(nn.Module):
    """A linear classifier. ``width`` is that of its features."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.width = width
        self.classifier = nn.Linear(width, labels)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features (1, d) to ``logits`` (1, c)."""
        return {"logits": self.classifier(features)}


class Answerer(nn.Module):
    """A perceptron with one hidden layer over a picture's and a question's embedding."""

    def __init__(self, width: int, text_width: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.width, self.text_width = width, text_width
        self.fuse = nn.Linear(width + text_width, hidden)
        self.classify = nn.Linear(hidden, labels)

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """A picture (1, d) and a question (1, e) to ``logits`` (1, c)."""
        hidden = functional.gelu(self.fuse(torch.cat([image, text], dim=1)))  # (1, h)
        return {"logits": self.classify(hidden)}


def labels(config: Config) -> list[str]:
    """The labels of a configuration, by index."""
    names = config.get("id2label") or {str(index): f"label {index}" for index in range(int(config["labels"]))}
    return [str(names[str(index)]) for index in range(len(names))]


def _features(config: Config) -> str:
    """The name of the array that a head takes."""
    return str(config.get("features", "features"))


def _identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    wanted = ("model_type", "features", "width", "text_width", "hidden")
    fields: dict[str, JsonValue] = {name: checkpoint.config.get(name) for name in wanted}
    return fields | {"labels": [*labels(checkpoint.config)]}


def _typical_linear(network: Linear, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One picture."""
    return network.forward(torch.empty(1, network.width))


def _typical_answer(network: Answerer, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One picture and one question."""
    return network.forward(torch.empty(1, network.width), torch.empty(1, network.text_width))


class LinearModule:
    """A linear classifier with its weights.

    Args:
        network: The classifier.
        features: The name of the array that it takes.
        names: Its labels, by index.
    """

    def __init__(self, network: Linear, features: str, names: list[str]) -> None:
        self._network = network
        self._features = features
        self._names = names

    def typical(self) -> tuple[Value, ...]:
        """A tower's array."""
        return (sample_inputs.arrays({self._features: (1, self._network.width)}),)

    def __call__(self, *values: Value) -> Output:
        """Features (1, d) to ``logits`` (1, c) and the likeliest labels."""
        decoding.count(values, 1)
        features = decoding.tensor(values[0], self._features, (1, self._network.width))
        with torch.inference_mode():
            output = self._network.forward(features.to(self._network.classifier.weight.dtype))
        return _ranked(output, "label", self._names)


class AnswerModule:
    """An answerer with its weights; arguments as for ``LinearModule``."""

    def __init__(self, network: Answerer, features: str, names: list[str]) -> None:
        self._network = network
        self._features = features
        self._names = names

    def typical(self) -> tuple[Value, ...]:
        """Embeddings of a picture and a question."""
        picture = sample_inputs.arrays({self._features: (1, self._network.width)})
        return picture, sample_inputs.arrays({"text_embeds": (1, self._network.text_width)})

    def __call__(self, *values: Value) -> Output:
        """A picture's features (1, d) and a question's ``text_embeds`` (1, e) to ``logits`` (1, c) and the answers."""
        decoding.count(values, 2)
        dtype = self._network.fuse.weight.dtype
        image = decoding.tensor(values[0], self._features, (1, self._network.width)).to(dtype)
        text = decoding.tensor(values[1], "text_embeds", (None, self._network.text_width)).to(dtype)
        if len(text) != 1:
            raise RequestFailed(
                ErrorCode.BAD_INPUT, f"the question has {len(text)} lines: send one question on one line"
            )
        with torch.inference_mode():
            output = self._network.forward(image, text)
        return _ranked(output, "answer", self._names)


def _ranked(output: Mapping[str, Tensor], what: str, names: list[str]) -> Output:
    scores = output["logits"].float().softmax(dim=1)[0]  # (c,)
    return Output(outputs.arrays(output), outputs.ranking(what, names, scores, RANKED))


PARTS: model_parts.Parts = MappingProxyType(
    {
        "linear": model_parts.Part(
            prefixes={LINEAR: [{"classifier.": "classifier."}]},
            build=lambda config: Linear(config["width"], len(labels(config))),
            identity=_identity,
            typical=_typical_linear,
            module=lambda network, checkpoint: LinearModule(
                network, _features(checkpoint.config), labels(checkpoint.config)
            ),
        ),
        "answer": model_parts.Part(
            prefixes={ANSWER: [{"fuse.": "fuse.", "classify.": "classify."}]},
            build=lambda config: Answerer(config["width"], config["text_width"], config["hidden"], len(labels(config))),
            identity=_identity,
            typical=_typical_answer,
            module=lambda network, checkpoint: AnswerModule(
                network, _features(checkpoint.config), labels(checkpoint.config)
            ),
        ),
    }
)

load = model_parts.loader(PARTS)
