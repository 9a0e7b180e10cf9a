"""CLAP (Wu et al. 2023, arXiv:2211.06687) as LAION published it without fusion: two towers and the head.

    part    weights                                   takes                    gives (and nothing else crosses the wire)
    audio   ``audio_model.``, ``audio_projection.``   a sound's wav bytes      ``audio_embeds`` float32 (1, e)
    text    ``text_model.``, ``text_projection.``     a text, one a line (n)   ``text_embeds`` float32 (n, e)
    head    ``logit_scale_a``                         ``audio_embeds``,        ``logits`` float32 (1, n), and the answer
                                                      ``text_embeds``, texts

Each tower keeps its projection: nobody takes it without. Of a sound longer than the ten seconds that CLAP hears, the
first ten are taken: the published processor takes ten at random, and nothing here may be random. Shorter ones are
repeated, as published. ``logit_scale_t`` only scales the texts' side of the training loss, and is not held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from pydantic import JsonValue, ValidationError
from torch import Tensor
from transformers import (
    ClapAudioConfig,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    ClapTextConfig,
    ClapTextModelWithProjection,
    RobertaTokenizer,
)

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.preparation import SoundPreparation
from edge_agent.modules.families import contrast
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import tower

TEXT = f"{prepare.TEXT} pad_token_id projection_dim projection_hidden_act"
MOST_S = 60.0  # seconds of the longest sound that is read
_FILLS: Mapping[str, Literal["zeros", "whole repeats", "repeats"]] = {
    "pad": "zeros",
    "repeatpad": "whole repeats",
    "repeat": "repeats",
}
FRAMES = 1001  # of ten seconds, in steps of ten milliseconds, both ends included
CAPTION_TOKENS = 9  # of the pass that is counted: "this is a sound of a dog" with start and end


def audio_config(config: Config) -> ClapAudioConfig:
    """The audio tower's configuration. The whole model's projection wins over the section's, as in ClapModel."""
    return ClapAudioConfig(**_section(config, "audio_config"))


def text_config(config: Config) -> ClapTextConfig:
    """The text tower's configuration; likewise."""
    return ClapTextConfig(**_section(config, "text_config"))


def _section(config: Config, name: str) -> dict[str, Any]:
    projection = {
        "projection_dim": config.get("projection_dim", 512),
        "projection_hidden_act": config.get("projection_hidden_act", "relu"),
    }
    own = {key: value for key, value in config.get(name, {}).items() if key not in {"dtype", "torch_dtype"}}
    return own | projection


def _logits(audio_embeds: Tensor, text_embeds: Tensor, logit_scale_a: Tensor) -> Tensor:
    """In the arithmetic of transformers' ClapModel."""
    audio_embeds = audio_embeds / audio_embeds.norm(p=2, dim=-1, keepdim=True)
    text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
    return torch.matmul(audio_embeds, text_embeds.t()) * logit_scale_a.exp()


def _text(config: Config) -> ClapTextModelWithProjection:
    network = ClapTextModelWithProjection(text_config(config))
    embeddings = network.text_model.embeddings
    for name in ("position_ids", "token_type_ids"):  # counters that old checkpoints store, no weights
        embeddings.register_buffer(name, getattr(embeddings, name), persistent=False)
    return network


def extractor(checkpoint: Checkpoint) -> ClapFeatureExtractor:
    """The repository's feature extractor.

    Raises:
        ModuleRefused: its file isn't there, makes none, or is of a CLAP with fusion.
    """
    made = prepare.processor(checkpoint, ClapFeatureExtractor)
    if made.truncation != "rand_trunc" or audio_config(checkpoint.config).enable_fusion:
        raise ModuleRefused(
            f"{checkpoint.repository.required(prepare.PREPROCESSOR)} is of a CLAP with fusion, which takes random "
            "parts of long sounds: name one without, such as laion/clap-htsat-unfused"
        )
    return made


def preparation(made: ClapFeatureExtractor) -> SoundPreparation:
    """The rules of a feature extractor without fusion: of a longer sound, the beginning is taken."""
    return SoundPreparation(
        rate_hz=made.sampling_rate,
        most_s=MOST_S,
        samples=made.nb_max_samples,
        fill=_FILLS[made.padding],
        window=made.fft_window_size,
        hop=made.hop_length,
        bands=made.feature_size,
        lowest_hz=made.frequency_min,
        highest_hz=made.frequency_max,
        log="decibel",
        layout="1 x frames x bands",
    )


def _audio_steps(checkpoint: Checkpoint) -> steps.Steps:
    made = extractor(checkpoint)
    try:
        return steps.Steps((steps.Sound(preparation=preparation(made)),))
    except (ValidationError, KeyError) as error:
        path = checkpoint.repository.required(prepare.PREPROCESSOR)
        raise ModuleRefused(f"{path} makes no feature extractor ({first_line(error)}): fetch it again") from error


def _audio_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = audio_config(checkpoint.config)
    wanted = (
        "window_size num_mel_bins spec_size hidden_act patch_size patch_stride hidden_size projection_dim depths "
        "num_attention_heads enable_fusion patch_embed_input_channels flatten_patch_embeds patch_embeds_hidden_size "
        "enable_patch_layer_norm qkv_bias mlp_ratio projection_hidden_act layer_norm_eps"
    )
    features = extractor(checkpoint).to_dict()
    used = "sampling_rate hop_length max_length_s fft_window_size frequency_min frequency_max feature_size padding"
    return prepare.fields(config, wanted) | {"sounds": {name: features[name] for name in used.split()}}


def _longest(config: Config) -> int:
    """Tokens of the longest text: RoBERTa's positions start after the padding token's id."""
    own = text_config(config)
    return own.max_position_embeddings - cast("int", own.pad_token_id) - 1


PARTS: model_parts.Parts = {
    "audio": model_parts.Part(
        prefixes={"clap": [{"audio_model.": "audio_model.", "audio_projection.": "audio_projection."}]},
        build=lambda config: ClapAudioModelWithProjection(audio_config(config)),
        identity=_audio_identity,
        steps=_audio_steps,
        forwards=tower(
            "audio_embeds",
            "audio_embeds",
            "Ten seconds of sound.",
            lambda network: {"features": (1, 1, FRAMES, network.config.num_mel_bins)},
            features="input_features",
        ),
    ),
    "text": model_parts.Part(
        prefixes={"clap": [{"text_model.": "text_model.", "text_projection.": "text_projection."}]},
        build=_text,
        identity=prepare.identity(text_config, TEXT, texts=True),
        steps=prepare.text_steps(RobertaTokenizer, _longest),
        forwards=tower(
            "text_embeds",
            "text_embeds",
            "Four captions of nine tokens.",
            lambda _: {
                "ids": (contrast.TEXTS, CAPTION_TOKENS),
                "mask": (contrast.TEXTS, 1, CAPTION_TOKENS, CAPTION_TOKENS),
            },
            ids="input_ids",
            mask="attention_mask",
        ),
        unread=(".position_ids", ".token_type_ids"),
    ),
    "head": contrast.head(
        {"clap": [{"logit_scale_a": "logit_scale_a"}]},
        {"logit_scale_a": ()},
        _logits,
        lambda config: text_config(config).projection_dim,
        other="audio_embeds",
        typical="One sound and four captions.",
    ),
}

load = model_parts.loader(PARTS)
