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
from torch import Tensor
from transformers import (
    SiglipImageProcessorPil,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipTokenizer,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from edge_agent.modules.families import contrast
from edge_agent.modules.inputs import prepare
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.model_parts import tower

vision_config = prepare.section("vision_config", SiglipVisionConfig)
text_config = prepare.section("text_config", SiglipTextConfig)


def _logits(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """In the arithmetic of transformers' SiglipModel."""
    return (contrast.cosines(image_embeds, text_embeds) * logit_scale.exp() + logit_bias).t()


PARTS: model_parts.Parts = {
    "vision": model_parts.Part(
        prefixes={"siglip": [{"vision_model.": ""}]},
        build=lambda config: SiglipVisionModel(vision_config(config)),
        identity=prepare.identity(vision_config, prepare.VISION, pictures=SiglipImageProcessorPil),
        steps=prepare.picture_steps(SiglipImageProcessorPil),
        forwards=tower("image_embeds", "pooler_output"),
    ),
    "text": model_parts.Part(
        prefixes={"siglip": [{"text_model.": ""}]},
        build=lambda config: SiglipTextModel(text_config(config)),
        identity=prepare.identity(text_config, prepare.TEXT, texts=True),
        steps=prepare.text_steps(
            SiglipTokenizer, lambda config: text_config(config).max_position_embeddings, padded=True
        ),
        forwards=tower(
            "text_embeds",
            "pooler_output",
            "Four captions, each padded to 64 tokens.",
            lambda network: {"ids": (contrast.TEXTS, network.config.max_position_embeddings)},
            ids="input_ids",
        ),  # padding counts, as in training
    ),
    "head": contrast.head(
        {"siglip": [{"logit_scale": "logit_scale", "logit_bias": "logit_bias"}]},
        {"logit_scale": (1,), "logit_bias": (1,)},
        _logits,
        lambda config: vision_config(config).hidden_size,
        probabilities=torch.sigmoid,
    ),
}

load = model_parts.loader(PARTS)
