"""Whole BLIP models: transformers' own classes with their own ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForQuestionAnswering, BlipImageProcessorPil

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import blip, generation
from edge_agent.modules.inputs import decoding
from s2m3.reference.whole import Whole, place, read


class Answering:
    """A question's answer by BlipForQuestionAnswering."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "blip-vqa/vision")
        self._model = read(BlipForQuestionAnswering, where, **how)
        self._tokenizer = BertTokenizer.from_pretrained(where, **how)
        self._processor = BlipImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and question to tokens (1, t), start included, and the answer."""
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        question = " ".join(decoding.lines(given["question"]))
        longest = self._model.text_encoder.config.max_position_embeddings
        asked = self._tokenizer(question, truncation=True, max_length=longest, return_tensors="pt")
        with torch.inference_mode():
            tokens = generation.whole(
                self._model,
                blip.MOST_TOKENS[None],
                input_ids=asked["input_ids"],
                attention_mask=asked["attention_mask"],
                pixel_values=picture["pixel_values"],
            )
        answer = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
        return Output({"tokens": tokens.contiguous().numpy()}, {"answer": answer.strip()})


class Captioning:
    """A sentence by BlipForConditionalGeneration."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "blip-captioning/vision")
        self._model = read(BlipForConditionalGeneration, where, **how)
        self._tokenizer = BertTokenizer.from_pretrained(where, **how)
        self._processor = BlipImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture to tokens (1, t), start included, and the caption."""
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        with torch.inference_mode():
            tokens = generation.whole(self._model, blip.MOST_TOKENS["caption"], pixel_values=picture["pixel_values"])
        caption = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
        return Output({"tokens": tokens.contiguous().numpy()}, {"caption": caption.strip()})


WHOLE: Mapping[str, type[Whole]] = MappingProxyType(
    {"hub/encoder-vqa-blip": Answering, "hub/captioning-blip": Captioning}
)
