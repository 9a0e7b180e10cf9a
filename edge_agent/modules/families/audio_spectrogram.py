"""Sound beside CLIP: the Audio Spectrogram Transformer (Gong et al. 2021, arXiv:2104.01778), and what aligns it.

    part             weights                             takes                     gives, and the answer
    encoder          ``audio_spectrogram_transformer.``  a sound's wav bytes       ``pooled`` float32 (1, d)
    projection       ``audio_projection.``               ``pooled``                ``audio_embeds`` float32 (1, e)
    alignment_head   CLIP's ``logit_scale``              ``audio_embeds``,         ``logits`` float32 (1, n) of the
                                                         ``image_embeds``,         texts for the sound, ``similarity``
                                                         ``text_embeds``, texts    float32 (1, 1) of sound and picture

AST was trained to name AudioSet's sounds: nothing published maps it into CLIP's space. The projection does, and it is
the user's to train on pairs of sounds and captions; it lies in the models directory under ``local``, with a config.json
of ``model_type`` s2m3-audio-projection, ``width`` d and ``projected`` e. Towers and projections of picture and text are
CLIP's own modules, held once. AST's classifier over AudioSet's labels is not held.

AST hears the first 10.24 seconds: longer sounds are cut, shorter ones padded, as its feature extractor does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed, first_line
from edge_agent.modules import Output, Value
from edge_agent.modules.families import adapters, vit
from edge_agent.modules.inputs import audio, decoding, outputs, prepare, sample_inputs
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config, read_object

MOST_S = 60.0  # seconds of the longest sound that is read
TYPICAL_TEXTS = 4
PROJECTION = "s2m3-audio-projection"
_HISTORY = frozenset({"feature_extractor_type", "processor_class"})
_WINDOW = 400  # samples of the shortest sound that has a spectrum, 25 ms


def ast_config(config: Config) -> ASTConfig:
    """The encoder's configuration, from the whole classifier's; its labels don't matter."""
    gone = {"id2label", "label2id", "dtype", "torch_dtype", "architectures"}
    return ASTConfig(**{name: value for name, value in config.items() if name not in gone})


def hear(network: ASTModel, features: Tensor) -> dict[str, Tensor]:
    """The mean of the class and the distillation token (1, d), of a spectrogram (1, frames, mels)."""
    return {"pooled": network(input_values=features).pooler_output}


class Projection(nn.Module):
    """A linear map from AST's space to CLIP's."""

    def __init__(self, width: int, projected: int) -> None:
        super().__init__()
        self.audio_projection = nn.Linear(width, projected)

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        """Pooled sounds (1, d) to ``audio_embeds`` (1, e)."""
        return {"audio_embeds": self.audio_projection(pooled)}


class AlignmentHead(nn.Module):
    """Cosines of a sound with texts and with a picture; ``width`` is that of the embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, audio_embeds: Tensor, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        """A sound (1, e), a picture (1, e) and n texts (n, e) to ``logits`` (1, n) and ``similarity`` (1, 1)."""
        sound, picture, texts = (
            each / each.norm(dim=-1, keepdim=True) for each in (audio_embeds, image_embeds, text_embeds)
        )
        return {"logits": sound @ texts.t() * self.logit_scale.exp(), "similarity": sound @ picture.t()}


def extractor(checkpoint: Checkpoint) -> ASTFeatureExtractor:
    """The repository's feature extractor.

    Raises:
        ModuleRefused: its file isn't there, or makes none.
    """
    path = checkpoint.repository.required(prepare.PREPROCESSOR)
    fields = {name: value for name, value in read_object(path).items() if name not in _HISTORY}
    try:
        made: ASTFeatureExtractor = cast("Any", ASTFeatureExtractor)(**fields)
    except Exception as error:  # its fields may be wrong in any way
        raise ModuleRefused(f"{path} makes no feature extractor ({first_line(error)}): fetch it again") from error
    return made


def samples(made: ASTFeatureExtractor, value: Value) -> NDArray[np.float32]:
    """The samples (n,) of what a sensor sent.

    Raises:
        RequestFailed: it is no sound that can be read, or too short to have a spectrum.
    """
    found = audio.samples(value, made.sampling_rate, MOST_S)
    if len(found) < _WINDOW:
        raise RequestFailed(ErrorCode.BAD_INPUT, f"this sound has {len(found)} samples: send at least {_WINDOW}")
    return found


def _features(made: ASTFeatureExtractor, value: Value) -> Tensor:
    """The encoder's input (1, frames, mels), float32, of what a sensor sent."""
    found = made(samples(made, value), sampling_rate=made.sampling_rate, return_tensors="np")
    return torch.tensor(np.asarray(found["input_values"], dtype=np.float32))


def _encoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = ast_config(checkpoint.config)
    wanted = (
        "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps patch_size "
        "qkv_bias frequency_stride time_stride max_length num_mel_bins"
    )
    made = extractor(checkpoint)
    used = "sampling_rate num_mel_bins max_length do_normalize mean std"
    return prepare.fields(config, wanted) | {"sounds": prepare.fields(made, used)}


def _typical_encoder(network: ASTModel, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One sound of 10.24 seconds, or padded to them."""
    return hear(network, torch.empty(1, network.config.max_length, network.config.num_mel_bins))


def _typical_projection(network: Projection, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One sound."""
    return network.forward(torch.empty(1, network.audio_projection.in_features))


def _typical_head(network: AlignmentHead, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One sound, one picture and four texts."""
    one = torch.empty(1, network.width)
    return network.forward(one, one, torch.empty(TYPICAL_TEXTS, network.width))


class AlignmentModule:
    """The head with its weight."""

    def __init__(self, network: AlignmentHead) -> None:
        self._network = network

    def typical(self) -> tuple[Value, ...]:
        """Embeddings of a sound, a picture and four texts, and these."""
        width, texts = self._network.width, sample_inputs.TEXTS
        embeddings = ({"audio_embeds": (1, width)}, {"image_embeds": (1, width)}, {"text_embeds": (texts, width)})
        return *(sample_inputs.arrays(each) for each in embeddings), sample_inputs.texts()

    def __call__(self, *values: Value) -> Output:
        """Embeddings of a sound, a picture and n texts, and the texts, to ``logits`` (1, n), ``similarity`` (1, 1)."""
        decoding.count(values, 4)
        width, dtype = self._network.width, self._network.logit_scale.dtype
        texts = decoding.lines(values[3])
        sound = decoding.tensor(values[0], "audio_embeds", (1, width)).to(dtype)
        picture = decoding.tensor(values[1], "image_embeds", (1, width)).to(dtype)
        text = decoding.tensor(values[2], "text_embeds", (len(texts), width)).to(dtype)
        with torch.inference_mode():
            return answer(self._network.forward(sound, picture, text), texts)


def answer(found: Mapping[str, Tensor], texts: list[str]) -> Output:
    """The texts, best for the sound first, and how well the picture fits it, from -1 to 1."""
    ranked = outputs.ranking("label", texts, found["logits"].float().softmax(dim=1)[0])
    return Output(outputs.arrays(found), ranked | {"similarity": float(found["similarity"][0, 0])})


PARTS: model_parts.Parts = MappingProxyType(
    {
        "encoder": model_parts.Part(
            prefixes={"audio-spectrogram-transformer": [{"audio_spectrogram_transformer.": ""}]},
            build=lambda config: ASTModel(ast_config(config)),
            identity=_encoder_identity,
            typical=_typical_encoder,
            module=lambda network, checkpoint: adapters.Sounds(
                hear, network, partial(_features, extractor(checkpoint))
            ),
            renames=vit.RENAMES,
        ),
        "projection": model_parts.Part(
            prefixes={PROJECTION: [{"audio_projection.": "audio_projection."}]},
            build=lambda config: Projection(config["width"], config["projected"]),
            identity=lambda _: {},
            typical=_typical_projection,
            module=lambda network, _: adapters.Arrays(
                Projection.forward, network, "pooled", (1, network.audio_projection.in_features)
            ),
        ),
        "alignment_head": model_parts.Part(
            prefixes={"clip": [{"logit_scale": "logit_scale"}]},
            build=lambda config: AlignmentHead(int(config.get("projection_dim", 512))),
            identity=lambda _: {},
            typical=_typical_head,
            module=lambda network, _: AlignmentModule(network),
        ),
    }
)

load = model_parts.loader(PARTS)
