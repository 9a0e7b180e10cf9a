"""The whole ViT-GPT2: transformers' VisionEncoderDecoderModel with its own ``generate``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import GPT2Tokenizer, VisionEncoderDecoderModel, ViTImageProcessorPil

from broker.protocol.codec import RawInput
from edge_agent.modules import Output
from edge_agent.modules.families import generation, vit_gpt2
from s2m3.reference.whole.pretrained import Pretrained, generated


class Captioning(Pretrained):
    """A sentence by VisionEncoderDecoderModel."""

    part, architecture = "vit-gpt2/encoder", VisionEncoderDecoderModel
    tokenizer, processor = GPT2Tokenizer, ViTImageProcessorPil

    def __call__(self, inputs: Mapping[str, RawInput]) -> Output:
        """Picture to tokens (1, t), start included, and the caption."""
        with torch.inference_mode():
            tokens = generation.whole(self._model, vit_gpt2.MOST_TOKENS, **self._pixels(inputs))
        return generated("caption", tokens, self._tokenizer)
