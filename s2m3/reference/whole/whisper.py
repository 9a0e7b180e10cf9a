"""The whole Whisper models: transformers' WhisperForConditionalGeneration with its own ``generate``."""

from __future__ import annotations

from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from edge_agent.modules import Output
from edge_agent.modules.families.generation import limits
from edge_agent.modules.families.whisper import MOST_TOKENS
from edge_agent.modules.inputs import audio
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, generated


class Transcription(Pretrained):
    """Sound to tokens (1, t) and the text."""

    part, architecture = "/encoder", WhisperForConditionalGeneration
    tokenizer, processor = WhisperTokenizer, WhisperFeatureExtractor

    def _answer(self, inputs: Inputs) -> Output:
        rate_hz = self._processor.sampling_rate
        sound = audio.samples(inputs["audio"], rate_hz, self._processor.chunk_length)
        features = self._processor(sound, sampling_rate=rate_hz, return_tensors="pt")
        tokens = self._model.generate(features["input_features"], task="transcribe", **limits(MOST_TOKENS))
        return generated("text", tokens, self._tokenizer)
