"""The whole ALIGN: transformers' AlignModel with its own processor."""

from __future__ import annotations

from types import MappingProxyType

from transformers import AlignModel, BertTokenizer, EfficientNetImageProcessorPil

from s2m3.reference.whole import pretrained


class Retrieval(pretrained.Retrieval):
    """Texts ranked by AlignModel."""

    architecture = AlignModel
    tokenizer, processor = BertTokenizer, EfficientNetImageProcessorPil
    padding = MappingProxyType({"padding": "max_length", "max_length": 64, "truncation": True})  # AlignProcessor's
