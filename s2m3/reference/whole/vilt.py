"""The whole ViLT: transformers' ViltForQuestionAnswering.

transformers puts a picture's patches into a random order with ``torch.multinomial``, so that two runs of the very same
model differ in rounding. For the comparison that draw, and nothing else, is replaced by the picture's own order.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast
from unittest import mock

import torch
from torch import Tensor
from transformers import BertTokenizer, ViltForQuestionAnswering, ViltImageProcessorPil

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families.vilt import RANKED
from edge_agent.modules.inputs import decoding, outputs
from s2m3.reference.whole import Whole, place, read


class Answering:
    """The likeliest answers by ViltForQuestionAnswering."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "vilt-vqa/answer")
        self._model = read(ViltForQuestionAnswering, where, **how)
        self._tokenizer = BertTokenizer.from_pretrained(where, **how)
        self._processor = ViltImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and question to logits (1, c) and the likeliest answers."""
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        config = self._model.config
        question = " ".join(decoding.lines(given["question"]))
        tokens = self._tokenizer(
            question, truncation=True, max_length=config.max_position_embeddings, return_tensors="pt"
        )
        with torch.inference_mode(), mock.patch.object(torch, "multinomial", in_order):
            logits = self._model(**tokens, **picture).logits  # (1, c)
        names = cast("dict[int, str]", config.id2label)
        labels = [names[index] for index in range(logits.shape[1])]
        return Output({"logits": logits.numpy()}, outputs.ranking("answer", labels, logits.sigmoid()[0], RANKED))


def in_order(weights: Tensor, count: int | Tensor) -> Tensor:
    """What ``torch.multinomial`` might have drawn without replacement: 0, 1, 2 and so on."""
    drawn = int(count)
    if drawn != len(weights):
        msg = f"{drawn} of {len(weights)} patches would be left out"
        raise ValueError(msg)
    return torch.arange(drawn)


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/encoder-vqa-vilt": Answering})
