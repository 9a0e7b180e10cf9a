"""The whole SmolVLM: transformers' Idefics3ForConditionalGeneration, with its own processor and ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from transformers import AutoTokenizer, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import causal
from edge_agent.modules.families.generation import limits
from edge_agent.modules.families.smolvlm import PROMPT
from edge_agent.modules.inputs import decoding
from edge_agent.modules.weights import precision
from s2m3.reference.whole import Whole, place, read


class Answering:
    """Questions answered by Idefics3ForConditionalGeneration."""

    def __init__(self, task: TaskSpec) -> None:
        module = "smolvlm-256m/language"
        where, how = place(task, module)
        dtype = precision.FLOATS[task.modules[module].dtype]
        self._model: Any = read(Idefics3ForConditionalGeneration, where, dtype=dtype, **how)
        self._processor = cast("Any", Idefics3Processor)(
            image_processor=Idefics3ImageProcessorPil.from_pretrained(where, **how),
            tokenizer=AutoTokenizer.from_pretrained(where, **how),
            image_seq_len=self._model.model.image_seq_len,
        )

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and question to the new tokens (1, t) and the answer."""
        prompt = PROMPT.format(image=causal.IMAGE, question=decoding.lines(given["text"])[0])
        ready = self._processor(images=[[decoding.picture(given["image"])]], text=[prompt], return_tensors="pt")
        with torch.inference_mode():
            tokens = self._model.generate(**ready, **limits(causal.MOST_TOKENS))
        new = tokens[:, ready["input_ids"].shape[1] :]
        answer = self._processor.tokenizer.decode(new[0], skip_special_tokens=True)
        return Output({"tokens": new.contiguous().numpy()}, {"answer": answer.strip()})


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/decoder-vqa-smolvlm-256m": Answering})
