"""CLIPSeg (Lüddecke & Ecker 2022, arXiv:2112.10003): what it adds to a frozen CLIP B/16, cut in two.

Its towers are CLIP's own (``clip.vision`` in the use ``clipseg``, ``clip.text``), bytes and all.

    part      weights                     takes                              gives (and nothing else crosses the wire)
    reduce    ``decoder.reduces.``        ``layer-9``, ``-6``, ``-3``        ``reduced-0``, ``-1``, ``-2``
                                          (1, 485, 768)                      float32 (1, 485, 64)
    decoder   ``decoder.`` but these      the reduced layers,                ``logits`` float32 (n, 352, 352), and the
                                          ``text_embeds`` (n, 512), texts    answer: a mask a text

The decoder needs three hidden layers of the picture: 4.5 MB of float32. What it does with each first is a linear map
from 768 to 64, which needs no text: cut after it, a twelfth of that crosses the wire. That map is a module of its own,
of 0.6 MB, and placement puts it beside the tower when that is faster. Each text is decoded alone, as one query of the
whole model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import CLIPSegConfig, CLIPSegVisionConfig
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

from broker.protocol.errors import ModuleRefused
from edge_agent.modules import SCORES
from edge_agent.modules.families import clip
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.inputs.answers import Masks
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import ordinary

MAX_TEXTS = 16  # a mask takes up to 21 kB of an answer


def _config(config: Config) -> CLIPSegConfig:
    made = CLIPSegConfig.from_dict(dict(config))
    if tuple(made.extract_layers) != clip.CLIPSEG_LAYERS:
        raise ModuleRefused(f"extract_layers are {made.extract_layers}, and clip.vision gives {clip.CLIPSEG_LAYERS}")
    return made


def _tower(config: CLIPSegConfig) -> CLIPSegVisionConfig:
    return cast("CLIPSegVisionConfig", config.vision_config)


class Reduce(nn.Module):
    """The linear maps of the hidden layers, the last layer's first. ``width`` is that of the tower."""

    def __init__(self, width: int, reduced: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.reduces = nn.ModuleList([nn.Linear(width, reduced) for _ in range(depth)])

    def forward(self, **layers: Tensor) -> dict[str, Tensor]:
        """``layer-9``, ``-6`` and ``-3`` (1, 1 + p, d) to ``reduced-0``, ``-1`` and ``-2`` (1, 1 + p, r)."""
        found = zip(self.reduces, clip.CLIPSEG_LAYERS[::-1], strict=True)
        return {f"reduced-{index}": reduce(layers[f"layer-{of}"]) for index, (reduce, of) in enumerate(found)}


def decode(network: CLIPSegDecoder, reduced: Sequence[Tensor], condition: Tensor) -> Tensor:
    """Logits (n, s, s) of n texts' embeddings (n, e), in the arithmetic of transformers' CLIPSegDecoder."""
    output = torch.zeros(())
    for index, (hidden, layer) in enumerate(zip(reduced, network.layers, strict=True)):
        output = (
            hidden if index == 0 else hidden + output
        )  # (1, 1 + p, r), and (n, 1 + p, r) from the conditional layer
        if index == network.conditional_layer:
            by_token = network.film_mul(condition) * output.permute(1, 0, 2) + network.film_add(condition)
            output = by_token.permute(1, 0, 2)
        output = layer(output, attention_mask=None)
    patches = output[:, 1:, :].transpose(1, 2)  # (n, r, p): without the class token
    side = math.isqrt(patches.shape[2])
    logits: Tensor = network.transposed_convolution(patches.reshape(*patches.shape[:2], side, side))  # (n, 1, s, s)
    return logits.squeeze(1)


def segment(network: CLIPSegDecoder, text_embeds: Tensor, **reduced: Tensor) -> dict[str, Tensor]:
    """The reduced layers and n texts' embeddings (n, e) to ``logits`` (n, s, s), one text after the other.

    An exported graph has no such loop: it decodes all at once, which differs by rounding.
    """
    layers = [reduced[f"reduced-{index}"] for index in range(len(network.layers))]
    parts = (text_embeds,) if torch.compiler.is_exporting() else torch.split(text_embeds, 1)
    logits = torch.cat([decode(network, layers, each) for each in parts]).float()
    return {"logits": logits, SCORES: logits.sigmoid()}


def _reduce(config: Config) -> Reduce:
    made = _config(config)
    return Reduce(_tower(made).hidden_size, made.reduce_dim, len(made.extract_layers))


def _decoder(config: Config) -> CLIPSegDecoder:
    network = CLIPSegDecoder(_config(config))
    network.reduces = nn.ModuleList()  # a module of its own
    for layer in network.layers:  # their configuration is a copy, made before the whole model's choice reaches it
        cast("Any", layer).self_attn.config._attn_implementation = network.config._attn_implementation  # noqa: SLF001
    return network


def _decoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = _config(checkpoint.config)
    wanted = "projection_dim reduce_dim conditional_layer decoder_num_attention_heads decoder_intermediate_size"
    more: dict[str, JsonValue] = {
        "use_complex_transposed_convolution": config.use_complex_transposed_convolution,
        "patch_size": model_parts.side(_tower(config).patch_size),
        "layer_norm_eps": _tower(config).layer_norm_eps,
        "depth": len(config.extract_layers),
    }
    return prepare.fields(config, wanted) | more


def _tokens(config: CLIPSegConfig) -> int:
    return 1 + (clip.CLIPSEG_SIZE // model_parts.side(_tower(config).patch_size)) ** 2


def _layer_shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {f"layer-{index}": (1, 1 + (clip.CLIPSEG_SIZE // 16) ** 2, width) for index in clip.CLIPSEG_LAYERS}


def _reduced_shapes(config: CLIPSegConfig) -> dict[str, tuple[int, ...]]:
    return {f"reduced-{index}": (1, _tokens(config), config.reduce_dim) for index in range(len(config.extract_layers))}


def _mask_steps(config: CLIPSegConfig) -> steps.Ranking:
    """The reduced layers, the embeddings of n texts, and the texts, to a mask a text."""
    return steps.Ranking(
        needs=(steps.Arrays(shapes=_reduced_shapes(config)),),
        width=cast("int", config.projection_dim),
        most=MAX_TEXTS,
        sampled=1,
        result=Masks(),
    )


PARTS: model_parts.Parts = {
    "reduce": model_parts.Part(
        prefixes={"clipseg": [{"decoder.reduces.": "reduces."}]},
        build=_reduce,
        identity=lambda _: {"layers": [*clip.CLIPSEG_LAYERS]},
        steps=lambda checkpoint: steps.Steps(
            (steps.Arrays(shapes=_layer_shapes(_tower(_config(checkpoint.config)).hidden_size), free=True),)
        ),
        forwards=ordinary(
            Reduce.forward,
            "One picture of 352 x 352, in patches of 16.",
            lambda network: _layer_shapes(network.width),
            batched=True,
        ),
    ),
    "decoder": model_parts.Part(
        prefixes={
            "clipseg": [
                {f"decoder.{name}.": f"{name}." for name in ("film_mul", "film_add", "layers")}
                | {"decoder.transposed_convolution.": "transposed_convolution."}
            ]
        },
        build=_decoder,
        identity=_decoder_identity,
        steps=lambda checkpoint: _mask_steps(_config(checkpoint.config)),
        forwards=ordinary(
            segment,
            "One picture of 352 x 352, and one text.",
            lambda network: {**_reduced_shapes(network.config), "text_embeds": (1, network.config.projection_dim)},
        ),
    ),
}

load = model_parts.loader(PARTS)
