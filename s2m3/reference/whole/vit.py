"""Whole ViT: transformers' ViTForImageClassification with its own processor."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import ViTForImageClassification, ViTImageProcessorPil

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families.heads import RANKED
from edge_agent.modules.inputs import decoding, outputs
from s2m3.reference.whole import Whole, place, read


class Classification:
    """Pictures classified by ViTForImageClassification."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "vit-b16/encoder")
        self._model = read(ViTForImageClassification, where, **how)
        self._processor = ViTImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture to logits (1, c) and the likeliest labels."""
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**picture).logits  # (1, c)
        names = list((self._model.config.id2label or {}).values())
        ranked = outputs.ranking("label", names, logits.softmax(dim=1)[0], RANKED)
        return Output({"logits": logits.numpy()}, ranked)


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/classification-vit-b16": Classification})
