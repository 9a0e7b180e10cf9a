"""The whole SigLIP: transformers' SiglipModel with its own processor."""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor
from transformers import SiglipImageProcessorPil, SiglipModel, SiglipTokenizer

from s2m3.reference.whole import pretrained

PADDING = MappingProxyType({"padding": "max_length", "truncation": True, "return_attention_mask": False})


class Retrieval(pretrained.Retrieval):
    """Texts ranked by SiglipModel, which masks no token."""

    architecture = SiglipModel
    tokenizer, processor = SiglipTokenizer, SiglipImageProcessorPil
    padding = PADDING

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class PictureEmbedding(pretrained.PictureEmbedding):
    """SiglipModel's features of a picture."""

    architecture, processor = SiglipModel, SiglipImageProcessorPil


class TextEmbedding(pretrained.TextEmbedding):
    """SiglipModel's features of texts."""

    architecture, tokenizer, padding = SiglipModel, SiglipTokenizer, PADDING
