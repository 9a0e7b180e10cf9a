"""Whole CLIP models: transformers' CLIPModel with its own processor."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from broker.codec import RawInput
from broker.specs import TaskSpec
from edge_agent.modules import Output, answers, inputs
from s2m3.whole import Whole, place, read


class Retrieval:
    """Captions ranked by CLIPModel."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, next(name for name in task.modules if name.endswith("/vision")))
        self._model = read(CLIPModel, where, **how)
        self._tokenizer = CLIPTokenizer.from_pretrained(where, **how)
        self._processor = CLIPImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and texts to logits (1, n) and the ranked texts."""
        texts = inputs.lines(given["text"])
        picture = self._processor(images=inputs.picture(given["image"]), return_tensors="pt")
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**tokens, **picture).logits_per_image  # (1, n)
        ranked = answers.ranking("label", texts, logits.softmax(dim=1)[0])
        return Output({"logits": logits.contiguous().numpy()}, ranked)


WHOLE: Mapping[str, type[Whole]] = MappingProxyType(
    {f"hub/retrieval-clip-{size}": Retrieval for size in ("b16", "b32", "l14", "l14-336")}
)
