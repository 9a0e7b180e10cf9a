"""The whole ViT-GPT2: transformers' VisionEncoderDecoderModel with its own ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import GPT2Tokenizer, VisionEncoderDecoderModel, ViTImageProcessorPil

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import generation, vit_gpt2
from edge_agent.modules.inputs import decoding
from s2m3.reference.whole import Whole, place, read


class Captioning:
    """A sentence by VisionEncoderDecoderModel."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "vit-gpt2/encoder")
        self._model = read(VisionEncoderDecoderModel, where, **how)
        self._tokenizer = GPT2Tokenizer.from_pretrained(where, **how)
        self._processor = ViTImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture to tokens (1, t), start included, and the caption."""
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        with torch.inference_mode():
            tokens = generation.whole(self._model, vit_gpt2.MOST_TOKENS, pixel_values=picture["pixel_values"])
        caption = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
        return Output({"tokens": tokens.contiguous().numpy()}, {"caption": caption.strip()})


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/captioning-vit-gpt2": Captioning})
