"""Sound, picture and texts in one process: transformers' CLIPModel and ASTModel, whole, with the trained projection."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch.nn import functional
from transformers import ASTFeatureExtractor, ASTForAudioClassification, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import audio_spectrogram
from edge_agent.modules.inputs import answers, audio, decoding
from edge_agent.modules.weights.layout import SINGLE
from s2m3.reference.whole.model import Inputs
from s2m3.reference.whole.pretrained import Pretrained, Repository


class Alignment(Pretrained):
    """Sound, picture and texts to logits (1, n), ranked texts, and the similarity (1, 1) of sound and picture."""

    part, architecture = "clip-b16/vision", CLIPModel
    tokenizer, processor = CLIPTokenizer, CLIPImageProcessorPil

    def __init__(self, task: TaskSpec) -> None:
        super().__init__(task)
        sound = Repository(task, "ast/encoder")
        self._ast = sound.model(ASTForAudioClassification).audio_spectrogram_transformer
        self._extractor = sound.read(ASTFeatureExtractor)
        projection = load_file(Path(Repository(task, "ast/clip-b16-projection").where) / SINGLE)
        self._projection = {name: each.clone() for name, each in projection.items()}

    def _answer(self, inputs: Inputs) -> Output:
        texts = decoding.lines(inputs["text"])
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        sound = audio.samples(inputs["audio"], self._extractor.sampling_rate, audio_spectrogram.MOST_S)
        features = self._extractor(sound, sampling_rate=self._extractor.sampling_rate, return_tensors="pt")
        weight, bias = (self._projection[f"audio_projection.{name}"] for name in ("weight", "bias"))
        heard = functional.linear(self._ast(features["input_values"].float()).pooler_output, weight, bias)
        seen = self._model.get_image_features(**self._pixels(inputs)).pooler_output  # (1, e)
        said = self._model.get_text_features(**tokens).pooler_output  # (n, e)
        heard, seen, said = (each / each.norm(dim=-1, keepdim=True) for each in (heard, seen, said))
        logits, similarity = heard @ said.t() * self._model.logit_scale.exp(), heard @ seen.t()
        ranked = answers.ranking("label", texts, logits.softmax(dim=1)[0])
        tensors = {"logits": logits.numpy(), "similarity": similarity.numpy()}
        return Output(tensors, ranked | {"similarity": float(similarity[0, 0])})
