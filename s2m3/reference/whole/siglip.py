"""The whole SigLIP: transformers' SiglipModel with its own processor."""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor
from transformers import SiglipImageProcessorPil, SiglipModel, SiglipTokenizer

from s2m3.reference.whole import pretrained


class Retrieval(pretrained.Retrieval):
    """Texts ranked by SiglipModel, which masks no token."""

    architecture = SiglipModel
    tokenizer, processor = SiglipTokenizer, SiglipImageProcessorPil
    padding = MappingProxyType({"padding": "max_length", "truncation": True, "return_attention_mask": False})

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()
