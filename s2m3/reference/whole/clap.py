"""The whole CLAP: transformers' ClapModel with its own feature extractor and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizer

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import clap
from edge_agent.modules.inputs import decoding, outputs
from s2m3.reference.whole import Whole, place, read


class Alignment:
    """Texts ranked by how well they tell what a sound is."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "clap/audio")
        self._model = read(ClapModel, where, **how)
        self._tokenizer = RobertaTokenizer.from_pretrained(where, **how)
        self._extractor = cast("Any", ClapFeatureExtractor).from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Sound and texts to logits (1, n) and the ranked texts."""
        texts = decoding.lines(given["text"])
        sound = clap.beginning(self._extractor, given["audio"])
        features = self._extractor(sound, sampling_rate=self._extractor.sampling_rate, return_tensors="pt")
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(
                **tokens, input_features=features["input_features"].float(), is_longer=features["is_longer"]
            ).logits_per_audio  # (1, n)
        return Output({"logits": logits.numpy()}, outputs.ranking("label", texts, logits.softmax(dim=1)[0]))


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/alignment-clap": Alignment})
