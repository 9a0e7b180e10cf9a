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

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

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
    PreTrainedTokenizerBase,
)

from broker.specs import ModuleSpec
from edge_agent.modules import Module, Output, Value, answers, cut, inputs, prepare, typical
from edge_agent.modules.checkpoint import Checkpoint, Config
from edge_agent.modules.contrast import ContrastHead, HeadModule

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
    fields = {name: getattr(config, name) for name in wanted.split()}
    return fields | {"pictures": prepare.effective(prepare.image_processor(checkpoint, EfficientNetImageProcessorPil))}


def _text_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = text_config(checkpoint.config)
    wanted = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings"
    fields = {name: getattr(config, name) for name in (*wanted.split(), "hidden_act", "layer_norm_eps", "pad_token_id")}
    return fields | {"projection_dim": _projected(checkpoint.config), "vocabulary": prepare.vocabulary(checkpoint)}


def _typical_vision(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One picture."""
    tower = cast("AlignVisionModel", network)
    side = prepare.side(tower.config.image_size)
    return see(tower, torch.empty(1, tower.config.num_channels, side, side))


def _typical_text(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """Four captions, each padded to 64 tokens."""
    ids = torch.zeros(TYPICAL_TEXTS, TOKENS, dtype=torch.int64)
    return cast("TextTower", network).forward(ids, torch.zeros(TYPICAL_TEXTS, 1, TOKENS, TOKENS))


def _typical_head(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One picture and four captions."""
    return cast("Head", network).typical(TYPICAL_TEXTS)


def _projected(config: Config) -> int:
    return int(config.get("projection_dim", 640))


PARTS: Mapping[str, cut.Part] = MappingProxyType(
    {
        "vision": cut.Part(
            prefixes={"align": [{"vision_model.": ""}]},
            build=lambda config: AlignVisionModel(vision_config(config)),
            identity=_vision_identity,
            typical=_typical_vision,
        ),
        "text": cut.Part(
            prefixes={"align": [{"text_model.": "text_model.", "text_projection.": "text_projection."}]},
            build=lambda config: TextTower(text_config(config), _projected(config)),
            identity=_text_identity,
            typical=_typical_text,
            unread=(
                ".position_ids",
                ".token_type_ids",
                "text_model.pooler.dense.weight",
                "text_model.pooler.dense.bias",
            ),
        ),
        "head": cut.Part(
            prefixes={"align": [{"temperature": "temperature"}]},
            build=lambda config: Head(_projected(config)),
            identity=lambda _: {},
            typical=_typical_head,
        ),
    }
)


class VisionModule:
    """The vision tower with its weights and its image processor."""

    def __init__(self, network: AlignVisionModel, processor: EfficientNetImageProcessorPil) -> None:
        self._network = network
        self._processor = processor

    def typical(self) -> tuple[Value, ...]:
        """A picture."""
        return (typical.picture(),)

    def __call__(self, *values: Value) -> Output:
        """A picture's bytes to ``image_embeds`` (1, e)."""
        inputs.count(values, 1)
        pixels = prepare.pixels(self._processor, inputs.picture(values[0])).to(self._network.dtype)
        with torch.inference_mode():
            return Output(answers.arrays(see(self._network, pixels)))


class TextModule:
    """The text tower with its weights and its tokenizer."""

    def __init__(self, network: TextTower, tokenizer: PreTrainedTokenizerBase) -> None:
        self._network = network
        self._tokenizer = tokenizer

    def typical(self) -> tuple[Value, ...]:
        """Four captions."""
        return (typical.texts(),)

    def __call__(self, *values: Value) -> Output:
        """A text, one a line (n), to ``text_embeds`` (n, e)."""
        inputs.count(values, 1)
        lines = inputs.lines(values[0])
        tokens = self._tokenizer(lines, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        with torch.inference_mode():
            return Output(answers.arrays(self._network.forward(tokens["input_ids"], tokens["attention_mask"])))


def load(spec: ModuleSpec) -> Module:
    """Load one of the parts.

    Raises:
        ModuleRefused: the weights aren't there or don't fit.
    """
    name = spec.family.partition(".")[2]
    checkpoint = cut.open_part(spec, name)
    network = cut.load_network(spec, PARTS[name], checkpoint)
    if isinstance(network, AlignVisionModel):
        return VisionModule(network, prepare.image_processor(checkpoint, EfficientNetImageProcessorPil))
    if isinstance(network, TextTower):
        return TextModule(network, prepare.tokenizer(checkpoint, BertTokenizer))
    return HeadModule(cast("Head", network))
