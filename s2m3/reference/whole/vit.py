"""The whole ViT: transformers' ViTForImageClassification with its own processor."""

from __future__ import annotations

from transformers import ViTForImageClassification, ViTImageProcessorPil

from edge_agent.modules import Output
from edge_agent.modules.families.heads import RANKED
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, ranked


class Classification(Pretrained):
    """Picture to logits (1, c) and the likeliest labels."""

    part, architecture, processor = "vit-b16/encoder", ViTForImageClassification, ViTImageProcessorPil

    def _answer(self, inputs: Inputs) -> Output:
        logits = self._model(**self._pixels(inputs)).logits  # (1, c)
        names = list((self._model.config.id2label or {}).values())
        return ranked("label", names, logits, logits.softmax(dim=1), RANKED)
