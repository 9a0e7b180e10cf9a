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
from types import MappingProxyType
from typing import Any, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from edge_agent.modules import Output, Value
from edge_agent.modules.families import adapters, causal, generation, siglip
from edge_agent.modules.inputs import decoding, prepare, sample_inputs
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config

PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "llama": "USER: {image}\n{question} ASSISTANT:",
        "qwen2": "<|im_start|>user {image}\n{question}<|im_end|><|im_start|>assistant\n",
    }
)
"""Kind of language model -> its prompt, as the published cards have it."""
_LANGUAGE = ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight")


class Tower(nn.Module):
    """A SigLIP tower, and the layer of it that the projector takes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        own = {name: value for name, value in config["vision_config"].items() if name not in {"dtype", "torch_dtype"}}
        self.network = SiglipVisionModel(SiglipVisionConfig.from_dict(own))
        self.layer = _layer(config)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """A picture (1, 3, s, s) to ``patches`` (1, p, d)."""
        hidden = self.network(pixel_values=pixels, output_hidden_states=True).hidden_states
        return {"patches": hidden[self.layer]}


class Projector(nn.Module):
    """transformers' own projector."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.network = LlavaMultiModalProjector(config)
        vision = cast("Any", config.vision_config)
        without_class = config.vision_feature_select_strategy == "default" or vision.model_type == "siglip_vision_model"
        self.patches = int((vision.image_size // vision.patch_size) ** 2) + (0 if without_class else 1)
        self.width = int(vision.hidden_size)

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


def _vision_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = SiglipVisionConfig.from_dict(checkpoint.config["vision_config"])
    pictures = prepare.pictures(checkpoint, SiglipImageProcessorPil)
    return prepare.fields(config, siglip.VISION) | {"layer": _layer(checkpoint.config), "pictures": pictures}


def _projector_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    return {"act": _config(checkpoint.config).projector_hidden_act}


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
    network.config.picture_tokens = Projector(_config(config)).patches  # of the typical pass
    return network


def _typical_vision(network: Tower, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One picture."""
    return network.forward(prepare.blank(network.network.config))


def _typical_projector(network: Projector, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One picture."""
    return network.forward(torch.empty(1, network.patches, network.width))


def _typical_language(network: causal.Language, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One picture, a prompt of 24 tokens besides it, and an answer of 16."""
    return causal.typical(network, network.config.picture_tokens)


class LanguageModule(causal.Answering):
    """The language model with its weights, its tokenizer and its prompt."""

    def __init__(self, network: causal.Language, checkpoint: Checkpoint) -> None:
        super().__init__(network, checkpoint)
        self._prompt = prompt_of(checkpoint.config)

    def typical(self) -> tuple[Value, ...]:
        """A picture's vectors and a question."""
        vectors = {"image_embeds": (1, self._network.config.picture_tokens, self.width)}
        return sample_inputs.arrays(vectors), sample_inputs.question()

    def __call__(self, *values: Value) -> Output:
        """``image_embeds`` (1, p, h) and the question to ``tokens`` (1, t) and the answer."""
        decoding.count(values, 2)
        picture = decoding.tensor(values[0], "image_embeds", (1, None, self.width))
        placeholder = causal.IMAGE * picture.shape[1]
        return self.answer(self._prompt.format(image=placeholder, question=causal.question(values[1])), picture)


def _tied_language(network: causal.Language, checkpoint: Checkpoint) -> LanguageModule:
    generation.check_tied(checkpoint, *_LANGUAGE)
    return LanguageModule(network, checkpoint)


_LANGUAGE_LAYOUTS = (
    {"language_model.": ""},
    {"model.language_model.": "model.", "lm_head.": "lm_head."},
)
PARTS: model_parts.Parts = MappingProxyType(
    {
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
            typical=_typical_vision,
            module=lambda network, checkpoint: adapters.Pictures(
                Tower.forward, network, prepare.image_processor(checkpoint, SiglipImageProcessorPil)
            ),
        ),
        "projector": model_parts.Part(
            prefixes={
                "llava": [{"multi_modal_projector.": "network."}, {"model.multi_modal_projector.": "network."}],
            },
            build=lambda config: Projector(_config(config)),
            identity=_projector_identity,
            typical=_typical_projector,
            module=lambda network, _: adapters.Arrays(
                Projector.forward, network, "patches", (1, network.patches, network.width)
            ),
        ),
        "language": model_parts.Part(
            prefixes={"llava": _LANGUAGE_LAYOUTS},
            build=lambda config: _language(config, tied=False),
            identity=_language_identity,
            typical=_typical_language,
            module=LanguageModule,
            unread=(".rotary_emb.inv_freq",),
        ),
        "tied_language": model_parts.Part(
            prefixes={"llava": _LANGUAGE_LAYOUTS},
            build=lambda config: _language(config, tied=True),
            identity=_language_identity,
            typical=_typical_language,
            module=_tied_language,
            tied={"lm_head.weight": "model.embed_tokens.weight"},
            unread=(".rotary_emb.inv_freq", "lm_head.weight"),
        ),
    }
)

load = model_parts.loader(PARTS)
