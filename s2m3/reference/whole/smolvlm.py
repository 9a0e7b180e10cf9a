"""The whole SmolVLM: transformers' Idefics3ForConditionalGeneration, with its own processor and ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from transformers import AutoTokenizer, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import causal
from edge_agent.modules.families.smolvlm import PROMPT
from edge_agent.modules.inputs import decoding
from edge_agent.modules.weights import precision
from s2m3.reference.whole.pretrained import Repository, prompted


class Answering:
    """Questions answered by Idefics3ForConditionalGeneration."""

    def __init__(self, task: TaskSpec) -> None:
        repository = Repository(task, "/language")
        dtype = precision.FLOATS[task.module_of(task.output).dtype]
        self._model: Any = repository.model(Idefics3ForConditionalGeneration, dtype=dtype)
        self._processor = cast("Any", Idefics3Processor)(
            image_processor=repository.read(Idefics3ImageProcessorPil),
            tokenizer=repository.read(AutoTokenizer),
            image_seq_len=self._model.model.image_seq_len,
        )

    def __call__(self, inputs: Mapping[str, RawInput]) -> Output:
        """Picture and question to the new tokens (1, t) and the answer."""
        prompt = PROMPT.format(image=causal.IMAGE, question=decoding.lines(inputs["text"])[0])
        picture = decoding.picture(inputs["image"])
        return prompted(
            self._model, self._processor, self._processor(images=[[picture]], text=[prompt], return_tensors="pt")
        )
