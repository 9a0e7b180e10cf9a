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

from collections.abc import Sequence

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional

from edge_agent.modules import SCORES
from edge_agent.modules.inputs import steps
from edge_agent.modules.inputs.answers import Likeliest
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import ordinary

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
        return _scored(self.classifier(features))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of one picture's features."""
        return {"features": (1, self.width)}


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
        return _scored(self.classify(hidden))


def _scored(logits: Tensor) -> dict[str, Tensor]:
    return {"logits": logits, SCORES: logits.float().softmax(dim=1)}


def labels(config: Config) -> list[str]:
    """The labels of a configuration, by index."""
    names = config.get("id2label") or {str(index): f"label {index}" for index in range(int(config["labels"]))}
    return [str(names[str(index)]) for index in range(len(names))]


def _identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    wanted = ("model_type", "features", "width", "text_width", "hidden")
    fields: dict[str, JsonValue] = {name: checkpoint.config.get(name) for name in wanted}
    return fields | {"labels": [*labels(checkpoint.config)]}


def label_steps(name: str, width: int, names: Sequence[str]) -> steps.Steps:
    """The steps of a linear classifier: the array ``name`` (1, d) to the likeliest of the labels ``names``."""
    return steps.Steps((_features(name, width, "features"),), Likeliest(labels=tuple(names), most=RANKED))


def _features(name: str, width: int, own: str) -> steps.Arrays:
    """The array ``name`` (1, d) of a tower, as the array ``own`` of ``forward``."""
    return steps.Arrays(shapes={name: (1, width)}, names={name: own})


def _label_steps(checkpoint: Checkpoint) -> steps.Steps:
    config = checkpoint.config
    return label_steps(config.get("features", "features"), config["width"], labels(config))


def _answer_steps(checkpoint: Checkpoint) -> steps.Steps:
    config = checkpoint.config
    picture = _features(config.get("features", "features"), config["width"], "image")
    question = steps.Arrays(
        shapes={"text_embeds": (1, config["text_width"])}, names={"text_embeds": "text"}, question=True
    )
    answer = Likeliest(what="answer", labels=tuple(labels(config)), most=RANKED)
    return steps.Steps((picture, question), answer)


PARTS: model_parts.Parts = {
    "linear": model_parts.Part(
        prefixes={LINEAR: [{"classifier.": "classifier."}]},
        build=lambda config: Linear(config["width"], len(labels(config))),
        identity=_identity,
        steps=_label_steps,
        forwards=ordinary(Linear.forward, "One picture.", Linear.shapes, batched=True),
    ),
    "answer": model_parts.Part(
        prefixes={ANSWER: [{"fuse.": "fuse.", "classify.": "classify."}]},
        build=lambda config: Answerer(config["width"], config["text_width"], config["hidden"], len(labels(config))),
        identity=_identity,
        steps=_answer_steps,
        forwards=ordinary(
            Answerer.forward,
            "One picture and one question.",
            lambda network: {"image": (1, network.width), "text": (1, network.text_width)},
            batched=True,
        ),
    ),
}

load = model_parts.loader(PARTS)
