"""The whole ViT-GPT2: transformers' VisionEncoderDecoderModel with its own ``generate``."""

from __future__ import annotations

from transformers import GPT2Tokenizer, VisionEncoderDecoderModel, ViTImageProcessorPil

from edge_agent.modules import Output
from edge_agent.modules.families.generation import limits
from edge_agent.modules.families.vit_gpt2 import MOST_TOKENS
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, generated


class Captioning(Pretrained):
    """Picture to tokens (1, t), start included, and the caption."""

    part, architecture = "vit-gpt2/encoder", VisionEncoderDecoderModel
    tokenizer, processor = GPT2Tokenizer, ViTImageProcessorPil

    def _answer(self, inputs: Inputs) -> Output:
        tokens = self._model.generate(**self._pixels(inputs), **limits(MOST_TOKENS))
        return generated("caption", tokens, self._tokenizer)
