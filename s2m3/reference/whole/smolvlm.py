"""The whole SmolVLM: transformers' Idefics3ForConditionalGeneration, with its own processor and ``generate``."""

from __future__ import annotations

from typing import Any, cast

from transformers import AutoTokenizer, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor

from edge_agent.modules.families.smolvlm import PROMPT
from s2m3.reference.whole.pretrained import Prompted, Repository


class Answering(Prompted):
    """Questions answered by Idefics3ForConditionalGeneration."""

    architecture = Idefics3ForConditionalGeneration

    def _processor_of(self, repository: Repository) -> Any:  # noqa: ANN401 - transformers' own
        return cast("Any", Idefics3Processor)(
            image_processor=repository.read(Idefics3ImageProcessorPil),
            tokenizer=repository.read(AutoTokenizer),
            image_seq_len=self._model.model.image_seq_len,
        )

    def _prompt(self) -> str:
        return PROMPT
