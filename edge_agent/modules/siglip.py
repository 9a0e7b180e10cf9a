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

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipTokenizer,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from broker.specs import ModuleSpec
from edge_agent.modules import Module, Output, Value, answers, cut, inputs, prepare, typical
from edge_agent.modules.checkpoint import Checkpoint, Config
from edge_agent.modules.contrast import ContrastHead, HeadModule

TYPICAL_TEXTS = 4


def vision_config(config: Config) -> SiglipVisionConfig:
    """The vision tower's configuration; published ones leave out what is as in the class."""
    return SiglipVisionConfig(**config.get("vision_config", {}))


def text_config(config: Config) -> SiglipTextConfig:
    """The text tower's configuration."""
    return SiglipTextConfig(**config.get("text_config", {}))


def see(network: SiglipVisionModel, pixels: Tensor) -> dict[str, Tensor]:
    """The embedding (1, d) of a picture (1, 3, s, s)."""
    return {"image_embeds": network(pixel_values=pixels).pooler_output}


def read(network: SiglipTextModel, ids: Tensor) -> dict[str, Tensor]:
    """Embeddings (n, d) of tokens (n, 64)."""
    return {"text_embeds": network(input_ids=ids).pooler_output}


class Head(ContrastHead):
    """Cosines of pictures and texts, scaled and shifted."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        """In the arithmetic of transformers' SiglipModel."""
        image_embeds = image_embeds / image_embeds.norm(p=2, dim=-1, keepdim=True)
        text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
        logits_per_text = torch.matmul(text_embeds, image_embeds.t())  # (n, 1)
        logits_per_text = logits_per_text * self.logit_scale.exp() + self.logit_bias
        return {"logits": logits_per_text.t()}  # (1, n)


def _vision_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = vision_config(checkpoint.config)
    wanted = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size"
    fields = {name: getattr(config, name) for name in (*wanted.split(), "hidden_act", "layer_norm_eps")}
    return fields | {"pictures": prepare.effective(prepare.image_processor(checkpoint, SiglipImageProcessorPil))}


def _text_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = text_config(checkpoint.config)
    wanted = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings"
    fields = {name: getattr(config, name) for name in (*wanted.split(), "hidden_act", "layer_norm_eps")}
    return fields | {"vocabulary": prepare.vocabulary(checkpoint)}


def _typical_vision(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One picture."""
    tower = cast("SiglipVisionModel", network)
    side = prepare.side(tower.config.image_size)
    return see(tower, torch.empty(1, tower.config.num_channels, side, side))


def _typical_text(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """Four captions, each padded to 64 tokens."""
    tower = cast("SiglipTextModel", network)
    return read(tower, torch.zeros(TYPICAL_TEXTS, tower.config.max_position_embeddings, dtype=torch.int64))


def _typical_head(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One picture and four captions."""
    return cast("Head", network).typical(TYPICAL_TEXTS)


PARTS: Mapping[str, cut.Part] = MappingProxyType(
    {
        "vision": cut.Part(
            prefixes={"siglip": [{"vision_model.": ""}]},
            build=lambda config: SiglipVisionModel(vision_config(config)),
            identity=_vision_identity,
            typical=_typical_vision,
        ),
        "text": cut.Part(
            prefixes={"siglip": [{"text_model.": ""}]},
            build=lambda config: SiglipTextModel(text_config(config)),
            identity=_text_identity,
            typical=_typical_text,
        ),
        "head": cut.Part(
            prefixes={"siglip": [{"logit_scale": "logit_scale", "logit_bias": "logit_bias"}]},
            build=lambda config: Head(vision_config(config).hidden_size),
            identity=lambda _: {},
            typical=_typical_head,
        ),
    }
)


class VisionModule:
    """The vision tower with its weights and its image processor."""

    def __init__(self, network: SiglipVisionModel, processor: SiglipImageProcessorPil) -> None:
        self._network = network
        self._processor = processor

    def typical(self) -> tuple[Value, ...]:
        """A picture."""
        return (typical.picture(),)

    def __call__(self, *values: Value) -> Output:
        """A picture's bytes to ``image_embeds`` (1, d)."""
        inputs.count(values, 1)
        pixels = prepare.pixels(self._processor, inputs.picture(values[0])).to(self._network.dtype)
        with torch.inference_mode():
            return Output(answers.arrays(see(self._network, pixels)))


class TextModule:
    """The text tower with its weights and its tokenizer."""

    def __init__(self, network: SiglipTextModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._network = network
        self._tokenizer = tokenizer

    def typical(self) -> tuple[Value, ...]:
        """Four captions."""
        return (typical.texts(),)

    def __call__(self, *values: Value) -> Output:
        """A text, one a line (n), to ``text_embeds`` (n, d)."""
        inputs.count(values, 1)
        length = self._network.config.max_position_embeddings
        lines = inputs.lines(values[0])
        tokens = self._tokenizer(lines, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            return Output(answers.arrays(read(self._network, tokens["input_ids"])))


def load(spec: ModuleSpec) -> Module:
    """Load one of the parts.

    Raises:
        ModuleRefused: the weights aren't there or don't fit.
    """
    name = spec.family.partition(".")[2]
    checkpoint = cut.open_part(spec, name)
    network = cut.load_network(spec, PARTS[name], checkpoint)
    if isinstance(network, SiglipVisionModel):
        return VisionModule(network, prepare.image_processor(checkpoint, SiglipImageProcessorPil))
    if isinstance(network, SiglipTextModel):
        return TextModule(network, prepare.tokenizer(checkpoint, SiglipTokenizer))
    return HeadModule(cast("Head", network), torch.sigmoid)
