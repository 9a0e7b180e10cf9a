"""The whole ViLT: transformers' ViltForQuestionAnswering.

transformers shuffles a picture's patches with ``torch.multinomial``, so that two runs of the same model differ in
rounding. For the comparison that draw, and nothing else, is replaced by the picture's own order.
"""

from __future__ import annotations

from typing import cast
from unittest import mock

import torch
from torch import Tensor
from transformers import BertTokenizer, ViltForQuestionAnswering, ViltImageProcessorPil

from edge_agent.modules import Output
from edge_agent.modules.families.vilt import RANKED
from edge_agent.modules.inputs import decoding
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, ranked


class Answering(Pretrained):
    """Picture and question to logits (1, c) and the likeliest answers."""

    part, architecture = "vilt-vqa/answer", ViltForQuestionAnswering
    tokenizer, processor = BertTokenizer, ViltImageProcessorPil

    def _answer(self, inputs: Inputs) -> Output:
        config = self._model.config
        question = " ".join(decoding.lines(inputs["question"]))
        tokens = self._tokenizer(
            question, truncation=True, max_length=config.max_position_embeddings, return_tensors="pt"
        )
        with mock.patch.object(torch, "multinomial", in_order):
            logits = self._model(**tokens, **self._pixels(inputs)).logits  # (1, c)
        names = cast("dict[int, str]", config.id2label)
        labels = [names[index] for index in range(logits.shape[1])]
        return ranked("answer", labels, logits, logits.sigmoid(), RANKED)


def in_order(weights: Tensor, count: int | Tensor) -> Tensor:
    """The numbers 0, 1, 2 and so on: one of the orders that ``torch.multinomial`` draws without replacement."""
    drawn = int(count)
    if drawn != len(weights):
        msg = f"{drawn} of {len(weights)} patches would be left out"
        raise ValueError(msg)
    return torch.arange(drawn)
