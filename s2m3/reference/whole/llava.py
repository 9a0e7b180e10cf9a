"""Whole LLaVA models: transformers' LlavaForConditionalGeneration, with its own processor and ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
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
from edge_agent.modules.families.generation import limits
from edge_agent.modules.families.llava import PROMPTS
from edge_agent.modules.inputs import decoding
from edge_agent.modules.weights import precision
from s2m3.reference.whole import Whole, place, read


class Answering:
    """Questions answered by LlavaForConditionalGeneration, from its own checkpoint, vision tower and all."""

    def __init__(self, task: TaskSpec) -> None:
        module = next(name for name in task.modules if name.endswith("/language"))
        where, how = place(task, module)
        dtype = precision.FLOATS[task.modules[module].dtype]
        self._model = read(LlavaForConditionalGeneration, where, dtype=dtype, **how)
        config: Any = self._model.config
        clip = config.vision_config.model_type == "clip_vision_model"
        pictures = CLIPImageProcessorPil if clip else SiglipImageProcessorPil
        self._processor = cast("Any", LlavaProcessor)(
            image_processor=pictures.from_pretrained(where, **how),
            tokenizer=AutoTokenizer.from_pretrained(where, **how),
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_token=causal.IMAGE,
            num_additional_image_tokens=1 if clip else 0,
        )
        self._prompt = PROMPTS[config.text_config.model_type]

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and question to the new tokens (1, t) and the answer."""
        prompt = self._prompt.format(image=causal.IMAGE, question=decoding.lines(given["text"])[0])
        ready = self._processor(images=decoding.picture(given["image"]), text=prompt, return_tensors="pt")
        ready["pixel_values"] = ready["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            tokens = cast("Any", self._model).generate(**ready, **limits(causal.MOST_TOKENS))
        new = tokens[:, ready["input_ids"].shape[1] :]
        answer = self._processor.tokenizer.decode(new[0], skip_special_tokens=True)
        return Output({"tokens": new.contiguous().numpy()}, {"answer": answer.strip()})


WHOLE: Mapping[str, type[Whole]] = MappingProxyType(
    {f"hub/decoder-vqa-llava-{size}": Answering for size in ("7b", "interleave")}
)
