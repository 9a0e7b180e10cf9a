"""Whole ALIGN: transformers' AlignModel with its own processor."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import AlignModel, BertTokenizer, EfficientNetImageProcessorPil

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.inputs import decoding, outputs
from s2m3.reference.whole import Whole, place, read

TOKENS = 64  # AlignProcessor's


class Retrieval:
    """Captions ranked by AlignModel."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "align/vision")
        self._model = read(AlignModel, where, **how)
        self._tokenizer = BertTokenizer.from_pretrained(where, **how)
        self._processor = EfficientNetImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and texts to logits (1, n) and the ranked texts."""
        texts = decoding.lines(given["text"])
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        tokens = self._tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**tokens, **picture).logits_per_image  # (1, n)
        ranked = outputs.ranking("label", texts, logits.softmax(dim=1)[0])
        return Output({"logits": logits.contiguous().numpy()}, ranked)


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/retrieval-align": Retrieval})
