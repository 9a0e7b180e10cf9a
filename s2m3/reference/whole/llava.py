"""The whole LLaVA models: transformers' LlavaForConditionalGeneration, with its own processor and ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
)

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import causal
from edge_agent.modules.families.llava import PROMPTS
from edge_agent.modules.inputs import decoding
from edge_agent.modules.weights import precision
from s2m3.reference.whole.pretrained import Repository, prompted


class Answering:
    """Questions answered by LlavaForConditionalGeneration, from its own checkpoint with its vision encoder."""

    def __init__(self, task: TaskSpec) -> None:
        repository = Repository(task, "/language")
        dtype = precision.FLOATS[task.module_of(task.output).dtype]
        self._model = repository.model(LlavaForConditionalGeneration, dtype=dtype)
        config: Any = self._model.config
        clip = config.vision_config.model_type == "clip_vision_model"
        self._processor = cast("Any", LlavaProcessor)(
            image_processor=repository.read(CLIPImageProcessorPil if clip else SiglipImageProcessorPil),
            tokenizer=repository.read(AutoTokenizer),
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_token=causal.IMAGE,
            num_additional_image_tokens=1 if clip else 0,
        )
        self._prompt = PROMPTS[config.text_config.model_type]

    def __call__(self, inputs: Mapping[str, RawInput]) -> Output:
        """Picture and question to the new tokens (1, t) and the answer."""
        prompt = self._prompt.format(image=causal.IMAGE, question=decoding.lines(inputs["text"])[0])
        ready = self._processor(images=decoding.picture(inputs["image"]), text=prompt, return_tensors="pt")
        ready["pixel_values"] = ready["pixel_values"].to(self._model.dtype)
        return prompted(self._model, self._processor, ready)
