"""Whole CLIPSeg: transformers' CLIPSegForImageSegmentation, from its own checkpoint, frozen CLIP and all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer, ViTImageProcessorPil

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families.clipseg import answer
from edge_agent.modules.inputs import decoding
from s2m3.reference.whole import Whole, place, read


class Segmentation:
    """Texts found in a picture by CLIPSegForImageSegmentation, one query a text, as the split model answers.

    The texts are embedded as one batch, for a row of a batch differs from a batch of one in its last bits.
    """

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "clipseg/decoder")
        self._model = read(CLIPSegForImageSegmentation, where, **how)
        self._tokenizer = CLIPTokenizer.from_pretrained(where, **how)
        self._processor = ViTImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and texts to logits (n, s, s) and a mask a text."""
        texts = decoding.lines(given["text"])
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            conditions = self._model.clip.get_text_features(**tokens).pooler_output  # (n, e)
            logits = torch.cat(
                [self._model(**picture, conditional_embeddings=each).logits for each in conditions.split(1)]
            )
        return Output({"logits": logits.numpy()}, answer(texts, logits))


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/segmentation-clipseg": Segmentation})
