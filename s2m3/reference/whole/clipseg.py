"""The whole CLIPSeg: transformers' CLIPSegForImageSegmentation, from its own checkpoint, with its frozen CLIP."""

from __future__ import annotations

import torch
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer, ViTImageProcessorPil

from edge_agent.modules import Output
from edge_agent.modules.inputs import decoding
from edge_agent.modules.inputs.answers import masks
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained


class Segmentation(Pretrained):
    """Picture and texts to logits (n, s, s) and a mask a text, by CLIPSegForImageSegmentation, one query a text.

    The texts are embedded as one batch: a row of a batch differs from a batch of one in its last bits.
    """

    part = "clipseg/decoder"
    architecture = CLIPSegForImageSegmentation
    tokenizer, processor = CLIPTokenizer, ViTImageProcessorPil

    def _answer(self, inputs: Inputs) -> Output:
        texts = decoding.lines(inputs["text"])
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        pixels = self._pixels(inputs)
        conditions = self._model.clip.get_text_features(**tokens).pooler_output  # (n, e)
        logits = torch.cat([self._model(**pixels, conditional_embeddings=each).logits for each in conditions.split(1)])
        return Output({"logits": logits.numpy()}, masks(texts, logits.sigmoid().numpy()))
