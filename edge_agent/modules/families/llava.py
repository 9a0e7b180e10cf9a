"""LLaVA (Liu et al. 2023, arXiv:2304.08485 and 2310.03744): tower, projector and language model, cut in three.

    part           weights                        takes                        gives (and nothing else crosses the wire)
    vision         ``vision_tower.``              a picture's bytes            ``patches`` float32 (1, p, d)
    projector      ``multi_modal_projector.``     ``patches``                  ``image_embeds`` float32 (1, p, h)
    language,      ``language_model.``            ``image_embeds``, the        ``tokens`` int64 (1, t), and the answer
    tied_language                                 question

LLaVA 1.5's vision tower is CLIP L/14@336, frozen: its tasks name ``clip.vision`` (use llava) from CLIP's own
repository, so that both are one module, and ``vision`` is for LLaVAs with a SigLIP tower that they trained.
``tied_language`` is the language model whose output matrix is its embedding: it has no ``lm_head`` of its own.
The prompt is the one of the model's card; ``causal`` has the rest of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from pydantic import JsonValue
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from edge_agent.modules.families import causal
from edge_agent.modules.inputs import prepare, sample_inputs, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import one_picture, ordinary

PROMPTS: Mapping[str, str] = {
    "llama": "USER: {image}\n{question} ASSISTANT:",
    "qwen2": "<|im_start|>user {image}\n{question}<|im_end|><|im_start|>assistant\n",
}
"""Kind of language model -> its prompt, as the published cards have it."""


class Tower(nn.Module):
    """A SigLIP tower, and the layer of it that the projector takes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.network = SiglipVisionModel(_vision_config(config))
        self.layer = _layer(config)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """A picture (1, 3, s, s) to ``patches`` (1, p, d)."""
        hidden = self.network(pixel_values=pixels, output_hidden_states=True).hidden_states
        return {"patches": hidden[self.layer]}


def patches(config: LlavaConfig) -> int:
    """How many patches of a picture the projector takes."""
    vision = cast("Any", config.vision_config)
    without_class = config.vision_feature_select_strategy == "default" or vision.model_type == "siglip_vision_model"
    return int((vision.image_size // vision.patch_size) ** 2) + (0 if without_class else 1)


class Projector(nn.Module):
    """transformers' own projector."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.network = LlavaMultiModalProjector(config)
        self.patches = patches(config)
        self.width = int(cast("Any", config.vision_config).hidden_size)

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        """``patches`` (1, p, d) to ``image_embeds`` (1, p, h)."""
        return {"image_embeds": self.network(patches)}


def _config(config: Config) -> LlavaConfig:
    return LlavaConfig.from_dict(config)


def _layer(config: Config) -> int:
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        msg = f"vision_feature_layer is {layer}, and one layer is known"
        raise TypeError(msg)
    return layer


def _vision_config(config: Config) -> SiglipVisionConfig:
    own = {name: value for name, value in config["vision_config"].items() if name not in {"dtype", "torch_dtype"}}
    return SiglipVisionConfig.from_dict(own)


def _vision_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    own = prepare.identity(_vision_config, prepare.VISION, pictures=SiglipImageProcessorPil)(checkpoint)
    return own | {"layer": _layer(checkpoint.config)}


def _language_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    return causal.identity(checkpoint) | {"prompt": prompt_of(checkpoint.config)}


def prompt_of(config: Config) -> str:
    """The prompt that the language model was trained with."""
    return PROMPTS[causal.text_config(config).model_type]


def _language(config: Config, *, tied: bool) -> causal.Language:
    if causal.tied(config) != tied:
        msg = f"its output matrix is{'' if causal.tied(config) else ' not'} its embedding: take the other part"
        raise ValueError(msg)
    network = causal.build(config)
    network.config.picture_tokens = patches(_config(config))  # of the pass that is counted
    return network


def _language_steps(checkpoint: Checkpoint) -> causal.PromptSteps:
    vectors = (1, patches(_config(checkpoint.config)), causal.text_config(checkpoint.config).hidden_size)
    return causal.PromptSteps(
        checkpoint,
        prompt_of(checkpoint.config),
        lambda _, count: causal.IMAGE * count,
        sample_inputs.arrays({"image_embeds": vectors}),
    )


def _projector_steps(checkpoint: Checkpoint) -> steps.Steps:
    config = _config(checkpoint.config)
    shape = (1, patches(config), int(cast("Any", config.vision_config).hidden_size))
    return steps.Steps((steps.Arrays(shapes={"patches": shape}),))


def _language_part(*, tied: bool) -> model_parts.Part[causal.Language]:
    return model_parts.Part(
        prefixes={
            "llava": (
                {"language_model.": ""},
                {"model.language_model.": "model.", "lm_head.": "lm_head."},
            )
        },
        build=lambda config: _language(config, tied=tied),
        identity=_language_identity,
        steps=_language_steps,
        forwards=causal.answering("One picture, a prompt of 24 tokens besides it, and an answer of 16."),
        settings=causal.settings,
        unread=(".rotary_emb.inv_freq",),
    )


PARTS: model_parts.Parts = {
    "vision": model_parts.Part(
        prefixes={
            "llava": [
                {"vision_tower.vision_model.": "network."},
                {"model.vision_tower.vision_model.": "network."},
                {"vision_tower.": "network."},
                {"model.vision_tower.": "network."},
            ]
        },
        build=Tower,
        identity=_vision_identity,
        steps=prepare.picture_steps(SiglipImageProcessorPil),
        forwards=ordinary(Tower.forward, "One picture.", lambda tower: one_picture(tower.network), batched=True),
    ),
    "projector": model_parts.Part(
        prefixes={
            "llava": [{"multi_modal_projector.": "network."}, {"model.multi_modal_projector.": "network."}],
        },
        build=lambda config: Projector(_config(config)),
        identity=lambda checkpoint: {"act": _config(checkpoint.config).projector_hidden_act},
        steps=_projector_steps,
        forwards=ordinary(
            Projector.forward,
            "One picture.",
            lambda network: {"patches": (1, network.patches, network.width)},
            batched=True,
        ),
    ),
    "language": _language_part(tied=False),
    "tied_language": replace(
        _language_part(tied=True),
        equal={"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"},
        tied={"lm_head.weight": "model.embed_tokens.weight"},
        unread=(".rotary_emb.inv_freq", "lm_head.weight"),
    ),
}

load = model_parts.loader(PARTS)
