"""The whole ViT: transformers' ViTForImageClassification with its own processor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import ViTForImageClassification, ViTImageProcessorPil

from broker.protocol.codec import RawInput
from edge_agent.modules import Output
from edge_agent.modules.families.heads import RANKED
from s2m3.reference.whole.pretrained import Pretrained, ranked


class Classification(Pretrained):
    """Pictures classified by ViTForImageClassification."""

    part, architecture, processor = "vit-b16/encoder", ViTForImageClassification, ViTImageProcessorPil

    def __call__(self, inputs: Mapping[str, RawInput]) -> Output:
        """Picture to logits (1, c) and the likeliest labels."""
        with torch.inference_mode():
            logits = self._model(**self._pixels(inputs)).logits  # (1, c)
        names = list((self._model.config.id2label or {}).values())
        return ranked("label", names, logits, logits.softmax(dim=1), RANKED)
