"""The ConSE rule on EfficientNet-Lite0 and MiniLM: texts, or answers to a question, that fit a picture."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent import catalog
from edge_agent.modules import Output
from edge_agent.modules.families import conse
from edge_agent.modules.inputs import decoding
from edge_agent.modules.inputs.answers import ranking
from s2m3.reference.whole.efficientnet import Network
from s2m3.reference.whole.model import Inputs, Model
from s2m3.reference.whole.sentence import Sentences


class _Rule(Model):
    """The networks, and the embeddings of ImageNet's class names."""

    def __init__(self, task: TaskSpec) -> None:
        del task  # the catalogue has one of each
        self.network, self.sentences = Network(), Sentences()
        self.names = load_file(catalog.DIRECTORY / "pocket" / "imagenet-names.safetensors")["embeddings"]

    def _likeliest(self, image: RawInput) -> tuple[Tensor, Tensor]:
        """The likeliest classes' probabilities (1, 10) and name embeddings (10, 384)."""
        best = self.network.probabilities(image).sort(descending=True, stable=True)
        return best.values[:, : conse.LIKELIEST], self.names[best.indices[0, : conse.LIKELIEST]]


class ZeroShot(_Rule):
    """Picture and texts to the texts ranked by how well each fits; no arrays."""

    def _answer(self, inputs: Inputs) -> Output:
        texts = decoding.lines(inputs["text"])
        likeliest, names = self._likeliest(inputs["image"])
        seen = functional.normalize(likeliest @ names)  # (1, 384)
        scores = (seen @ self.sentences.embed(texts).T)[0]
        return Output({}, ranking("label", texts, scores))


class QuestionAnswering(_Rule):
    """Picture, question and answers to the answers ranked by how well each fits; no arrays."""

    def _answer(self, inputs: Inputs) -> Output:
        answers = decoding.lines(inputs["answers"])
        embedded, question = self.sentences.embed(answers), self.sentences.embed(decoding.lines(inputs["question"]))
        likeliest, names = self._likeliest(inputs["image"])
        attended = likeliest * torch.exp((question @ names.T) / conse.ATTENTION_TEMPERATURE)  # (1, 10)
        seen = functional.normalize(attended @ names)  # (1, 384)
        weight = conse.QUESTION_WEIGHT
        scores = (seen @ embedded.T + weight * (question @ embedded.T)) / (1 + weight)  # (1, n)
        return Output({}, ranking("answer", answers, scores[0]))
