"""ALIGN (Jia et al. 2021, arXiv:2102.05918) as Kakao Brain published it: EfficientNet-B7 and BERT, cut into three.

    part     weights                             takes                     gives (and nothing else crosses the wire)
    vision   ``vision_model.``                   a picture's bytes         ``image_embeds`` float32 (1, 640)
    text     ``text_model.`` but its pooler,     a text, one a line (n)    ``text_embeds`` float32 (n, 640)
             ``text_projection.``
    head     ``temperature``                     ``image_embeds``,         ``logits`` float32 (1, n), and the answer
                                                 ``text_embeds``, texts

BERT's pooler takes no part in the embedding, so it is neither held nor counted. The vision tower keeps the running
statistics of its normalisations, and one counter each, as published. Texts are padded to 64 tokens, as trained.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import (
    AlignTextConfig,
    AlignTextModel,
    AlignVisionConfig,
    AlignVisionModel,
    BertTokenizer,
    EfficientNetImageProcessorPil,
)

from edge_agent.modules.families import adapters
from edge_agent.modules.families.contrast import ContrastHead, HeadModule
from edge_agent.modules.inputs import prepare
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config

TYPICAL_TEXTS = 4
TOKENS = 64  # of a text, padded or cut


def vision_config(config: Config) -> AlignVisionConfig:
    """The vision tower's configuration."""
    return AlignVisionConfig(**config.get("vision_config", {}))


def text_config(config: Config) -> AlignTextConfig:
    """The text tower's configuration."""
    return AlignTextConfig(**config.get("text_config", {}))


def see(network: AlignVisionModel, pixels: Tensor) -> dict[str, Tensor]:
    """The embedding (1, e) of a picture (1, 3, s, s)."""
    return {"image_embeds": network(pixel_values=pixels).pooler_output}


class TextTower(nn.Module):
    """BERT and the projection of its first token."""

    def __init__(self, config: AlignTextConfig, projected: int) -> None:
        super().__init__()
        self.text_model = AlignTextModel(config, add_pooling_layer=False)
        self.text_projection = nn.Linear(config.hidden_size, projected)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Embeddings (n, e) of tokens (n, t)."""
        hidden = self.text_model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, t, d)
        return {"text_embeds": self.text_projection(hidden[:, 0, :])}


class Head(ContrastHead):
    """Cosines of pictures and texts over a temperature."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        """In the arithmetic of transformers' AlignModel."""
        image_embeds = image_embeds / image_embeds.norm(p=2, dim=-1, keepdim=True)
        text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
        logits_per_text = torch.matmul(text_embeds, image_embeds.t()) / self.temperature  # (n, 1)
        return {"logits": logits_per_text.t()}  # (1, n)


def _vision_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = vision_config(checkpoint.config)
    wanted = (
        "num_channels image_size width_coefficient depth_coefficient depth_divisor kernel_sizes in_channels "
        "out_channels depthwise_padding strides num_block_repeats expand_ratios squeeze_expansion_ratio "
        "hidden_act hidden_dim pooling_type batch_norm_eps"
    )
    pictures = prepare.pictures(checkpoint, EfficientNetImageProcessorPil)
    return prepare.fields(config, wanted) | {"pictures": pictures}


def _text_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = text_config(checkpoint.config)
    wanted = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings "
        "hidden_act layer_norm_eps pad_token_id"
    )
    rest = {"projection_dim": _projected(checkpoint.config), "vocabulary": prepare.vocabulary(checkpoint)}
    return prepare.fields(config, wanted) | rest


def _typical_vision(network: AlignVisionModel, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One picture."""
    return see(network, prepare.blank(network.config))


def _typical_text(network: TextTower, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """Four captions, each padded to 64 tokens."""
    ids = torch.zeros(TYPICAL_TEXTS, TOKENS, dtype=torch.int64)
    return network.forward(ids, torch.zeros(TYPICAL_TEXTS, 1, TOKENS, TOKENS))


def _typical_head(network: Head, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One picture and four captions."""
    return network.typical(TYPICAL_TEXTS)


def _projected(config: Config) -> int:
    return int(config.get("projection_dim", 640))


PARTS: model_parts.Parts = MappingProxyType(
    {
        "vision": model_parts.Part(
            prefixes={"align": [{"vision_model.": ""}]},
            build=lambda config: AlignVisionModel(vision_config(config)),
            identity=_vision_identity,
            typical=_typical_vision,
            module=lambda network, checkpoint: adapters.Pictures(
                see, network, prepare.image_processor(checkpoint, EfficientNetImageProcessorPil)
            ),
        ),
        "text": model_parts.Part(
            prefixes={"align": [{"text_model.": "text_model.", "text_projection.": "text_projection."}]},
            build=lambda config: TextTower(text_config(config), _projected(config)),
            identity=_text_identity,
            typical=_typical_text,
            module=lambda network, checkpoint: adapters.Texts(
                TextTower.forward, network, prepare.tokenizer(checkpoint, BertTokenizer), TOKENS, padded=True
            ),
            unread=(
                ".position_ids",
                ".token_type_ids",
                "text_model.pooler.dense.weight",
                "text_model.pooler.dense.bias",
            ),
        ),
        "head": model_parts.Part(
            prefixes={"align": [{"temperature": "temperature"}]},
            build=lambda config: Head(_projected(config)),
            identity=lambda _: {},
            typical=_typical_head,
            module=lambda network, _: HeadModule(network),
        ),
    }
)


load = model_parts.loader(PARTS)
