"""The whole CLIPSeg: transformers' CLIPSegForImageSegmentation, from its own checkpoint, with its frozen CLIP."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer, ViTImageProcessorPil

from broker.protocol.codec import RawInput
from edge_agent.modules import Output
from edge_agent.modules.families.clipseg import answer
from edge_agent.modules.inputs import decoding
from s2m3.reference.whole.pretrained import Pretrained


class Segmentation(Pretrained):
    """Texts found in a picture by CLIPSegForImageSegmentation, one query a text, as the split model answers.

    The texts are embedded as one batch: a row of a batch differs from a batch of one in its last bits.
    """

    part = "clipseg/decoder"
    architecture = CLIPSegForImageSegmentation
    tokenizer, processor = CLIPTokenizer, ViTImageProcessorPil

    def __call__(self, inputs: Mapping[str, RawInput]) -> Output:
        """Picture and texts to logits (n, s, s) and a mask a text."""
        texts = decoding.lines(inputs["text"])
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        pixels = self._pixels(inputs)
        with torch.inference_mode():
            conditions = self._model.clip.get_text_features(**tokens).pooler_output  # (n, e)
            logits = torch.cat(
                [self._model(**pixels, conditional_embeddings=each).logits for each in conditions.split(1)]
            )
        return Output({"logits": logits.numpy()}, answer(texts, logits.sigmoid().numpy()))
