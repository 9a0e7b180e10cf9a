"""The whole LLaVA models: transformers' LlavaForConditionalGeneration, with its own processor and ``generate``."""

from __future__ import annotations

from typing import Any, cast

from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
)

from edge_agent.modules.families import causal
from edge_agent.modules.families.llava import PROMPTS
from s2m3.reference.whole.pretrained import Prompted, Repository


class Answering(Prompted):
    """Questions answered by LlavaForConditionalGeneration, from its own checkpoint with its vision encoder."""

    architecture = LlavaForConditionalGeneration

    def _processor_of(self, repository: Repository) -> Any:  # noqa: ANN401 - transformers' own
        config = self._model.config
        clip = config.vision_config.model_type == "clip_vision_model"
        return cast("Any", LlavaProcessor)(
            image_processor=repository.read(CLIPImageProcessorPil if clip else SiglipImageProcessorPil),
            tokenizer=repository.read(AutoTokenizer),
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_token=causal.IMAGE,
            num_additional_image_tokens=1 if clip else 0,
        )

    def _prompt(self) -> str:
        return PROMPTS[self._model.config.text_config.model_type]
