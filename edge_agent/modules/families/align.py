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

from edge_agent.modules.families import contrast
from edge_agent.modules.inputs import prepare
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import ordinary, tower

TOKENS = 64  # of a text, padded or cut
# Fields of the vision tower's configuration that change what it gives.
VISION = (
    "num_channels image_size width_coefficient depth_coefficient depth_divisor kernel_sizes in_channels "
    "out_channels depthwise_padding strides num_block_repeats expand_ratios squeeze_expansion_ratio "
    "hidden_act hidden_dim pooling_type batch_norm_eps"
)


vision_config = prepare.section("vision_config", AlignVisionConfig)
text_config = prepare.section("text_config", AlignTextConfig)


class TextTower(nn.Module):
    """BERT and the projection of its first token."""

    def __init__(self, config: AlignTextConfig, projected: int) -> None:
        super().__init__()
        self.text_model = AlignTextModel(config, add_pooling_layer=False)
        self.text_projection = nn.Linear(config.hidden_size, projected)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Tokens (n, t) to ``text_embeds`` (n, e)."""
        hidden = self.text_model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, t, d)
        return {"text_embeds": self.text_projection(hidden[:, 0, :])}


def _logits(image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor) -> Tensor:
    """In the arithmetic of transformers' AlignModel."""
    return (contrast.cosines(image_embeds, text_embeds) / temperature).t()


def _text_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    own = prepare.identity(text_config, f"{prepare.TEXT} pad_token_id", texts=True)(checkpoint)
    return own | {"projection_dim": _projected(checkpoint.config)}


def _projected(config: Config) -> int:
    return int(config.get("projection_dim", 640))


PARTS: model_parts.Parts = {
    "vision": model_parts.Part(
        prefixes={"align": [{"vision_model.": ""}]},
        build=lambda config: AlignVisionModel(vision_config(config)),
        identity=prepare.identity(vision_config, VISION, pictures=EfficientNetImageProcessorPil),
        steps=prepare.picture_steps(EfficientNetImageProcessorPil),
        forwards=tower("image_embeds", "pooler_output"),
    ),
    "text": model_parts.Part(
        prefixes={"align": [{"text_model.": "text_model.", "text_projection.": "text_projection."}]},
        build=lambda config: TextTower(text_config(config), _projected(config)),
        identity=_text_identity,
        steps=prepare.text_steps(BertTokenizer, lambda _: TOKENS, padded=True),
        forwards=ordinary(
            TextTower.forward,
            "Four captions, each padded to 64 tokens.",
            lambda _: {"ids": (contrast.TEXTS, TOKENS), "mask": (contrast.TEXTS, 1, TOKENS, TOKENS)},
            batched=True,
        ),
        unread=(
            ".position_ids",
            ".token_type_ids",
            "text_model.pooler.dense.weight",
            "text_model.pooler.dense.bias",
        ),
    ),
    "head": contrast.head({"align": [{"temperature": "temperature"}]}, {"temperature": ()}, _logits, _projected),
}

load = model_parts.loader(PARTS)
