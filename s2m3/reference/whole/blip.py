"""The whole BLIP models: transformers' own classes with their own ``generate``."""

from __future__ import annotations

from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForQuestionAnswering, BlipImageProcessorPil

from edge_agent.modules import Output
from edge_agent.modules.families.blip import MOST_TOKENS
from edge_agent.modules.families.generation import limits
from edge_agent.modules.inputs import decoding
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, generated


class Answering(Pretrained):
    """Picture and question to tokens (1, t), start included, and the answer, by BlipForQuestionAnswering."""

    part, architecture = "blip-vqa/vision", BlipForQuestionAnswering
    tokenizer, processor = BertTokenizer, BlipImageProcessorPil

    def _answer(self, inputs: Inputs) -> Output:
        question = " ".join(decoding.lines(inputs["question"]))
        longest = self._model.text_encoder.config.max_position_embeddings
        asked = self._tokenizer(question, truncation=True, max_length=longest, return_tensors="pt")
        tokens = self._model.generate(
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
            **self._pixels(inputs),
            **limits(MOST_TOKENS[None]),
        )
        return generated("answer", tokens, self._tokenizer)


class Captioning(Pretrained):
    """Picture to tokens (1, t), start included, and the caption, by BlipForConditionalGeneration."""

    part, architecture = "blip-captioning/vision", BlipForConditionalGeneration
    tokenizer, processor = BertTokenizer, BlipImageProcessorPil

    def _answer(self, inputs: Inputs) -> Output:
        tokens = self._model.generate(**self._pixels(inputs), **limits(MOST_TOKENS["caption"]))
        return generated("caption", tokens, self._tokenizer)
