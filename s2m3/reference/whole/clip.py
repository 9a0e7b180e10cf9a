"""The whole models around CLIP: CLIPModel with its processor, CLIPForImageClassification, CLIPModel with answers."""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPForImageClassification, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families.heads import RANKED
from edge_agent.modules.inputs import decoding
from s2m3.reference.whole import pretrained
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, Repository, ranked, read_head


class Retrieval(pretrained.Retrieval):
    """Texts ranked by CLIPModel."""

    architecture = CLIPModel
    tokenizer, processor = CLIPTokenizer, CLIPImageProcessorPil


class PictureEmbedding(pretrained.PictureEmbedding):
    """CLIPModel's features of a picture."""

    architecture, processor = CLIPModel, CLIPImageProcessorPil


class TextEmbedding(pretrained.TextEmbedding):
    """CLIPModel's features of texts."""

    architecture, tokenizer = CLIPModel, CLIPTokenizer


class Classification(Pretrained):
    """Picture to logits (1, c) and the likeliest labels, by CLIPForImageClassification with the linear classifier."""

    part, architecture, processor = "/vision", CLIPModel, CLIPImageProcessorPil

    def __init__(self, task: TaskSpec) -> None:
        super().__init__(task)
        head, self._names = read_head(task)
        config = Repository(task, self.part).read(CLIPConfig)
        config.num_labels = len(self._names)
        classifier = CLIPForImageClassification(config)
        classifier.vision_model.load_state_dict(self._model.vision_model.state_dict())
        classifier.classifier.load_state_dict({"weight": head["classifier.weight"], "bias": head["classifier.bias"]})
        self._model = classifier.train(mode=False)

    def _answer(self, inputs: Inputs) -> Output:
        logits = self._model(**self._pixels(inputs)).logits  # (1, c)
        return ranked("label", self._names, logits, logits.softmax(dim=1), RANKED)


class QuestionAnswering(Pretrained):
    """Picture and question to logits (1, c) and the likeliest answers, by CLIPModel and the answer head."""

    part, architecture = "/vision", CLIPModel
    tokenizer, processor = CLIPTokenizer, CLIPImageProcessorPil

    def __init__(self, task: TaskSpec) -> None:
        super().__init__(task)
        self._head, self._names = read_head(task)

    def _answer(self, inputs: Inputs) -> Output:
        tokens = self._tokenizer(decoding.lines(inputs["question"]), padding=True, truncation=True, return_tensors="pt")
        seen = self._model.vision_model(**self._pixels(inputs)).pooler_output  # (1, d)
        asked = self._model.get_text_features(**tokens).pooler_output  # (1, e)
        joined = torch.cat([seen, asked], dim=1)
        hidden = functional.gelu(functional.linear(joined, self._head["fuse.weight"], self._head["fuse.bias"]))
        logits = functional.linear(hidden, self._head["classify.weight"], self._head["classify.bias"])
        return ranked("answer", self._names, logits, logits.softmax(dim=1), RANKED)
