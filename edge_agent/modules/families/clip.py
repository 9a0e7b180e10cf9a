"""CLIP (Radford et al. 2021, arXiv:2103.00020), cut into its two towers, the picture's projection, and the head.

    part              weights                   takes                       gives (and nothing else crosses the wire)
    vision            ``vision_model.``         a picture's bytes           see below
    image_projection  ``visual_projection.``    ``pooled``                  ``image_embeds`` float32 (1, e)
    text              ``text_model.``,          a text, one a line (n)      ``text_embeds`` float32 (n, e)
                      ``text_projection.``
    head              ``logit_scale``           ``image_embeds``,           ``logits`` float32 (1, n), and the answer
                                                ``text_embeds``, the texts

    use of vision     picture                   gives                                         for
    (ordinary)        shorter side s, cut s x s ``pooled`` (1, d), normed class token         retrieval, VQA
    patch-mean        the same                  ``features`` (1, d), mean of the patches      linear classification
    llava             the same                  ``patches`` (1, p, d), last layer but one     LLaVA's projector
    clipseg           squeezed to 352 x 352     ``layer-3``, ``-6``, ``-9`` (1, 485, d)       CLIPSeg's decoder

The projection is a module of its own because others took the tower without it (LLaVA) or take its features before it:
so the tower is the same bytes everywhere, and is held once. It weighs under 1 % of the tower. The text tower's
projection stays with it: everybody who takes that tower takes its projection.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from transformers.image_processing_backends import PilBackend

from broker.protocol.errors import ModuleRefused
from broker.protocol.preparation import PicturePreparation
from edge_agent.modules.families import contrast
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import Forward, one_picture, tower

CLIPSEG_SIZE = 352  # pixels, the side of CLIPSeg's pictures
CLIPSEG_PICTURES = PicturePreparation(
    size=(CLIPSEG_SIZE, CLIPSEG_SIZE), resample="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
CLIPSEG_LAYERS = (3, 6, 9)  # of which CLIPSeg's decoder takes the outputs, counted from 0
CAPTIONS, CAPTION_TOKENS = 4, 7  # of the pass that is counted: "a photo of a dog" with start and end
_OLD_END = 2  # what old configurations say for "the highest id of the vocabulary"


def vision_config(config: Config) -> CLIPVisionConfig:
    """The vision tower's configuration: all of a tower's own config.json, or a section of a whole model's."""
    return CLIPVisionConfig(**config["vision_config"]) if "vision_config" in config else CLIPVisionConfig(**config)


def text_config(config: Config) -> CLIPTextConfig:
    """The text tower's configuration. The whole model's projection_dim wins over the section's, as in CLIPModel."""
    return CLIPTextConfig(**(config["text_config"] | {"projection_dim": config.get("projection_dim", 512)}))


def mean_of_patches(network: CLIPVisionModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, s, s) to ``features`` (1, d)."""
    hidden = network(pixel_values=pixels).last_hidden_state  # (1, 1 + p, d)
    return {"features": torch.mean(hidden[:, 1:, :], dim=1)}


def patches_for_llava(network: CLIPVisionModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, s, s) to ``patches`` (1, p, d); the last layer doesn't run."""
    before_last = len(network.encoder.layers) - 2
    return {"patches": _layers(network, pixels, (before_last,))[before_last][:, 1:]}


def layers_for_clipseg(network: CLIPVisionModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, h, w) to ``layer-3``, ``-6`` and ``-9`` (1, 1 + p, d); no layer above runs."""
    return {f"layer-{index}": hidden for index, hidden in _layers(network, pixels, CLIPSEG_LAYERS).items()}


def _layers(network: CLIPVisionModel, pixels: Tensor, wanted: tuple[int, ...]) -> dict[int, Tensor]:
    """Outputs (1, 1 + p, d) of some layers; positions are interpolated where the picture's size demands it."""
    hidden = network.embeddings(pixels, interpolate_pos_encoding=True)  # (1, 1 + p, d)
    hidden = network.pre_layrnorm(hidden)
    found = {}
    for index, layer in enumerate(network.encoder.layers[: max(wanted) + 1]):
        hidden = layer(hidden, None)
        if index in wanted:
            found[index] = hidden
    return found


def _logits(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """In the arithmetic of transformers' CLIPModel."""
    image_embeds = image_embeds / _norm(image_embeds)
    text_embeds = text_embeds / _norm(text_embeds)
    return (torch.matmul(text_embeds, image_embeds.t()) * logit_scale.exp()).t()


def _norm(rows: Tensor) -> Tensor:
    return torch.pow(torch.sum(torch.pow(rows, 2), dim=-1, keepdim=True), 0.5)


def _text_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = text_config(checkpoint.config)
    end = config.vocab_size - 1 if config.eos_token_id == _OLD_END else config.eos_token_id
    own = prepare.identity(text_config, f"{prepare.TEXT} projection_dim", texts=True)(checkpoint)
    return own | {"end": cast("int", end)}


def _projected(config: Config) -> int:
    return int(config.get("projection_dim", 512))


def _projection(config: Config) -> tuple[int, int]:
    return vision_config(config).hidden_size, _projected(config)


def ordinary_processor(config: CLIPVisionConfig) -> CLIPImageProcessorPil:
    """The preprocessing of every published CLIP: shorter side to the tower's, bicubic, centre cut, normalised."""
    side = model_parts.side(config.image_size)
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _check_preprocessing(checkpoint: Checkpoint, config: CLIPVisionConfig) -> None:
    """Refuse a CLIP whose pictures are prepared in another way: the tower's identity says nothing of that."""
    if checkpoint.model_type != "clip" or checkpoint.repository.path(prepare.PREPROCESSOR) is None:
        return
    own: PilBackend = prepare.processor(checkpoint, CLIPImageProcessorPil)
    ours, theirs = prepare.effective(ordinary_processor(config)), prepare.effective(own)
    if different := sorted(name for name in ours if ours[name] != theirs.get(name)):
        raise ModuleRefused(
            f"{prepare.PREPROCESSOR} of {checkpoint.repository} says {different[0]} = {theirs.get(different[0])}, and "
            f"clip.vision prepares pictures with {ours[different[0]]}: correct the file, or give this model its "
            "own family"
        )


def _vision_steps(checkpoint: Checkpoint) -> dict[str | None, steps.Steps]:
    config = vision_config(checkpoint.config)
    _check_preprocessing(checkpoint, config)
    ordinary = steps.Steps((prepare.picture(ordinary_processor(config)),))
    return dict.fromkeys(_VISION, ordinary) | {"clipseg": steps.Steps((steps.Picture(preparation=CLIPSEG_PICTURES),))}


_VISION: model_parts.Forwards[CLIPVisionModel] = {
    **tower("pooled", "pooler_output"),
    "patch-mean": Forward(mean_of_patches, "One picture.", one_picture, batched=True),
    "llava": Forward(patches_for_llava, "One picture.", one_picture, batched=True),
    "clipseg": Forward(
        layers_for_clipseg,
        "One picture.",
        lambda network: {"pixels": (1, network.config.num_channels, CLIPSEG_SIZE, CLIPSEG_SIZE)},
        batched=True,
    ),
}
PARTS: model_parts.Parts = {
    "vision": model_parts.Part(
        prefixes={
            "clip": [{"vision_model.": ""}],
            "clip_vision_model": [{"vision_model.": ""}],
            "clipseg": [{"clip.vision_model.": ""}],
            "llava": [
                {"vision_tower.vision_model.": ""},
                {"model.vision_tower.vision_model.": ""},
                {"vision_tower.": ""},
                {"model.vision_tower.": ""},
            ],
        },
        build=lambda config: CLIPVisionModel(vision_config(config)),
        identity=prepare.identity(vision_config, prepare.VISION),
        steps=_vision_steps,
        forwards=_VISION,
    ),
    "image_projection": contrast.projection(
        {
            "clip": [{"visual_projection.": "visual_projection."}],
            "clipseg": [{"clip.visual_projection.": "visual_projection."}],
        },
        "visual_projection",
        "image_embeds",
        _projection,
        "One picture.",
        bias=False,
    ),
    "text": model_parts.Part(
        prefixes={
            "clip": [{"text_model.": "text_model.", "text_projection.": "text_projection."}],
            "clipseg": [{"clip.text_model.": "text_model.", "clip.text_projection.": "text_projection."}],
        },
        build=lambda config: CLIPTextModelWithProjection(text_config(config)),
        identity=_text_identity,
        steps=prepare.text_steps(CLIPTokenizer, lambda config: text_config(config).max_position_embeddings),
        forwards=tower(
            "text_embeds",
            "text_embeds",
            "Four captions of seven tokens.",
            lambda _: {"ids": (CAPTIONS, CAPTION_TOKENS)},
            ids="input_ids",
            mask="attention_mask",
        ),
    ),
    "head": contrast.head(
        {"clip": [{"logit_scale": "logit_scale"}], "clipseg": [{"clip.logit_scale": "logit_scale"}]},
        {"logit_scale": ()},
        _logits,
        _projected,
    ),
}

load = model_parts.loader(PARTS)
