"""Sound, picture and texts in one process: transformers' CLIPModel and ASTModel, whole, with the trained projection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import ASTFeatureExtractor, ASTForAudioClassification, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import audio_spectrogram
from edge_agent.modules.inputs import decoding
from edge_agent.modules.weights.checkpoint import SINGLE
from s2m3.reference.whole import Whole, place, read


class Alignment:
    """Texts ranked by how well they tell what a sound is, and how well a picture goes with it."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "clip-b16/vision")
        self._clip = read(CLIPModel, where, **how)
        self._tokenizer = CLIPTokenizer.from_pretrained(where, **how)
        self._processor = CLIPImageProcessorPil.from_pretrained(where, **how)
        where, how = place(task, "ast/encoder")
        self._ast = read(ASTForAudioClassification, where, **how).audio_spectrogram_transformer
        self._extractor = cast("Any", ASTFeatureExtractor).from_pretrained(where, **how)
        where, _ = place(task, "ast/clip-b16-projection")
        self._projection = {name: each.clone() for name, each in load_file(Path(where) / SINGLE).items()}

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Sound, picture and texts to logits (1, n), the similarity (1, 1) and the ranked texts."""
        texts = decoding.lines(given["text"])
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        sound = audio_spectrogram.samples(self._extractor, given["audio"])
        features = self._extractor(sound, sampling_rate=self._extractor.sampling_rate, return_tensors="pt")
        weight, bias = (self._projection[f"audio_projection.{name}"] for name in ("weight", "bias"))
        with torch.inference_mode():
            heard = functional.linear(self._ast(features["input_values"].float()).pooler_output, weight, bias)
            seen = self._clip.get_image_features(**picture).pooler_output  # (1, e)
            said = self._clip.get_text_features(**tokens).pooler_output  # (n, e)
            heard, seen, said = (each / each.norm(dim=-1, keepdim=True) for each in (heard, seen, said))
            logits, similarity = heard @ said.t() * self._clip.logit_scale.exp(), heard @ seen.t()
        return audio_spectrogram.answer({"logits": logits, "similarity": similarity}, texts)


WHOLE: Mapping[str, type[Whole]] = MappingProxyType({"hub/alignment-clip-b16-ast": Alignment})
