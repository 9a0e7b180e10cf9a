"""The whole CLAP: transformers' ClapModel with its own feature extractor and tokenizer."""

from __future__ import annotations

from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizer

from edge_agent.modules import Output
from edge_agent.modules.families import clap
from edge_agent.modules.inputs import audio, decoding
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, ranked


class Alignment(Pretrained):
    """Sound and texts to logits (1, n), and the texts ranked by how well each describes the sound."""

    part, architecture = "clap/audio", ClapModel
    tokenizer, processor = RobertaTokenizer, ClapFeatureExtractor

    def _answer(self, inputs: Inputs) -> Output:
        texts = decoding.lines(inputs["text"])
        rate_hz = self._processor.sampling_rate
        sound = audio.samples(inputs["audio"], rate_hz, clap.MOST_S)[: self._processor.nb_max_samples]
        features = self._processor(sound, sampling_rate=rate_hz, return_tensors="pt")
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        logits = self._model(
            **tokens, input_features=features["input_features"].float(), is_longer=features["is_longer"]
        ).logits_per_audio  # (1, n)
        return ranked("label", texts, logits, logits.softmax(dim=1))
