"""Whole Whisper models: transformers' WhisperForConditionalGeneration with its own ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families.generation import limits
from edge_agent.modules.families.whisper import MOST_TOKENS
from edge_agent.modules.inputs import audio
from s2m3.reference.whole import Whole, place, read


class Transcription:
    """A sound's words by WhisperForConditionalGeneration."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, next(name for name in task.modules if name.endswith("/encoder")))
        self._model = read(WhisperForConditionalGeneration, where, **how)
        self._tokenizer = WhisperTokenizer.from_pretrained(where, **how)
        self._extractor = WhisperFeatureExtractor.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Sound to tokens (1, t) and the text."""
        rate_hz = self._extractor.sampling_rate
        sound = audio.samples(given["audio"], rate_hz, self._extractor.chunk_length)
        heard = self._extractor(sound, sampling_rate=rate_hz, return_tensors="pt")
        with torch.inference_mode():
            tokens = cast("Any", self._model).generate(
                heard["input_features"], task="transcribe", **limits(MOST_TOKENS)
            )
        text = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
        return Output({"tokens": cast("Tensor", tokens).contiguous().numpy()}, {"text": text.strip()})


WHOLE: Mapping[str, type[Whole]] = MappingProxyType(
    {f"hub/speech-whisper-{size}": Transcription for size in ("tiny", "base")}
)
