"""The whole ViT-GPT2: transformers' VisionEncoderDecoderModel with its own ``generate``."""

from __future__ import annotations

from transformers import GPT2Tokenizer, VisionEncoderDecoderModel, ViTImageProcessorPil

from edge_agent.modules import Output
from edge_agent.modules.families import generation, vit_gpt2
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, generated


class Captioning(Pretrained):
    """Picture to tokens (1, t), start included, and the caption."""

    part, architecture = "vit-gpt2/encoder", VisionEncoderDecoderModel
    tokenizer, processor = GPT2Tokenizer, ViTImageProcessorPil

    def _answer(self, inputs: Inputs) -> Output:
        tokens = generation.whole(self._model, vit_gpt2.MOST_TOKENS, **self._pixels(inputs))
        return generated("caption", tokens, self._tokenizer)
