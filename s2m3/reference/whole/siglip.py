"""Whole SigLIP: transformers' SiglipModel with its own processor."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import SiglipImageProcessorPil, SiglipModel, SiglipTokenizer

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.inputs import decoding, outputs
from s2m3.reference.whole import Whole, place, read


class Retrieval:
    """Captions ranked by SiglipModel."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "siglip-b16/vision")
        self._model = read(SiglipModel, where, **how)
        self._tokenizer = SiglipTokenizer.from_pretrained(where, **how)
        self._processor = SiglipImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and texts to logits (1, n) and the ranked texts."""
        texts = decoding.lines(given["text"])
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        tokens = self._tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(input_ids=tokens["input_ids"], **picture).logits_per_image  # (1, n)
        ranked = outputs.ranking("label", texts, logits.sigmoid()[0])
        return Output({"logits": logits.contiguous().numpy()}, ranked)


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/retrieval-siglip-b16": Retrieval})
