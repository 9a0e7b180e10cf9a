"""SigLIP (Zhai et al. 2023, arXiv:2303.15343), cut into its two towers and its head.

    part     weights                          takes                     gives (and nothing else crosses the wire)
    vision   ``vision_model.``                a picture's bytes         ``image_embeds`` float32 (1, d)
    text     ``text_model.``                  a text, one a line (n)    ``text_embeds`` float32 (n, d)
    head     ``logit_scale``, ``logit_bias``  ``image_embeds``,         ``logits`` float32 (1, n), and the answer
                                              ``text_embeds``, texts

The vision tower's attention pooling belongs to it: its output is the embedding. Scores are sigmoids: each text is
judged alone, and they don't add up to 1. Texts are always padded to 64 tokens, without a mask, as in training.
"""

from __future__ import annotations

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import (
    SiglipImageProcessorPil,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipTokenizer,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from edge_agent.modules.families import contrast
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import one_picture, ordinary

# Fields of the configurations that change what the towers give.
VISION = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size hidden_act "
    "layer_norm_eps"
)
TEXT = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings hidden_act "
    "layer_norm_eps"
)


def vision_config(config: Config) -> SiglipVisionConfig:
    """The vision tower's configuration; published ones leave out what is as in the class."""
    return SiglipVisionConfig(**config.get("vision_config", {}))


def text_config(config: Config) -> SiglipTextConfig:
    """The text tower's configuration."""
    return SiglipTextConfig(**config.get("text_config", {}))


def encode_image(network: SiglipVisionModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, s, s) to ``image_embeds`` (1, d)."""
    return {"image_embeds": network(pixel_values=pixels).pooler_output}


def encode_text(network: SiglipTextModel, ids: Tensor, **_: Tensor) -> dict[str, Tensor]:
    """Tokens (n, 64) to ``text_embeds`` (n, d); padding counts and has no mask, as in training."""
    return {"text_embeds": network(input_ids=ids).pooler_output}


class Head(contrast.ContrastHead):
    """Cosines of pictures and texts, scaled and shifted."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """In the arithmetic of transformers' SiglipModel."""
        image_embeds = image_embeds / image_embeds.norm(p=2, dim=-1, keepdim=True)
        text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
        logits_per_text = torch.matmul(text_embeds, image_embeds.t())  # (n, 1)
        logits_per_text = logits_per_text * self.logit_scale.exp() + self.logit_bias
        return logits_per_text.t()  # (1, n)


def _vision_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = vision_config(checkpoint.config)
    return prepare.fields(config, VISION) | {"pictures": prepare.pictures(checkpoint, SiglipImageProcessorPil)}


def _text_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = text_config(checkpoint.config)
    return prepare.fields(config, TEXT) | {"vocabulary": prepare.vocabulary(checkpoint)}


def _captions(network: SiglipTextModel) -> dict[str, Tensor]:
    """Four captions, each padded to 64 tokens."""
    return {"ids": torch.zeros(contrast.TEXTS, network.config.max_position_embeddings, dtype=torch.int64)}


def _text_steps(checkpoint: Checkpoint) -> steps.Texts:
    longest = text_config(checkpoint.config).max_position_embeddings
    return steps.Texts(prepare.tokenizer(checkpoint, SiglipTokenizer), longest, padded=True)


PARTS: model_parts.Parts = {
    "vision": model_parts.Part(
        prefixes={"siglip": [{"vision_model.": ""}]},
        build=lambda config: SiglipVisionModel(vision_config(config)),
        identity=_vision_identity,
        steps=lambda checkpoint: steps.Picture(prepare.image_processor(checkpoint, SiglipImageProcessorPil)),
        forwards=ordinary(encode_image, one_picture),
    ),
    "text": model_parts.Part(
        prefixes={"siglip": [{"text_model.": ""}]},
        build=lambda config: SiglipTextModel(text_config(config)),
        identity=_text_identity,
        steps=_text_steps,
        forwards=ordinary(encode_text, _captions),
    ),
    "head": model_parts.Part(
        prefixes={"siglip": [{"logit_scale": "logit_scale", "logit_bias": "logit_bias"}]},
        build=lambda config: Head(vision_config(config).hidden_size),
        identity=lambda _: {},
        steps=lambda checkpoint: steps.Ranking(["image_embeds"], vision_config(checkpoint.config).hidden_size),
        forwards=contrast.scored(torch.sigmoid),
    ),
}


load = model_parts.loader(PARTS)
