"""The head of every model with two towers: scores of texts for a picture (or a sound), and the ranked texts.

Owns the head's inputs and its scores; how embeddings become logits is the family's function.

    takes                                              gives
    ``image_embeds`` (1, e), ``text_embeds`` (n, e),   ``logits`` float32 (1, n), and the texts, best first
    the texts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edge_agent.modules import SCORES
from edge_agent.modules.inputs import steps
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import Part, Prefixes, ordinary

TEXTS = 4  # of the pass that is counted


def cosines(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Cosines (n, 1) of n texts (n, e) and a picture (1, e), in the arithmetic of most of transformers' models."""
    image_embeds = image_embeds / image_embeds.norm(p=2, dim=-1, keepdim=True)
    text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
    return torch.matmul(text_embeds, image_embeds.t())


class Head(nn.Module):
    """The parameters of a head; ``width`` is that of the embeddings."""

    def __init__(self, width: int, parameters: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.width = width
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def projection(
    prefixes: Mapping[str, Sequence[Prefixes]],
    name: str,
    gives: str,
    sizes: Callable[[Config], tuple[int, int]],
    typical: str,
    *,
    bias: bool = True,
) -> Part[nn.ModuleDict]:
    """The linear layer ``name`` that maps a tower's ``pooled`` (1, d) to the embeddings ``gives`` (1, e).

    ``sizes`` are the lengths d and e, and the rest is as for ``Part`` and ``Forward``.
    """

    def run(network: nn.ModuleDict, pooled: Tensor) -> dict[str, Tensor]:
        return {gives: network[name](pooled)}

    return Part(
        prefixes=prefixes,
        build=lambda config: nn.ModuleDict({name: nn.Linear(*sizes(config), bias=bias)}),
        identity=lambda _: {},
        steps=lambda checkpoint: steps.Steps((steps.Arrays(shapes={"pooled": (1, sizes(checkpoint.config)[0])}),)),
        forwards=ordinary(
            run,
            typical,
            lambda network: {"pooled": (1, cast("nn.Linear", network[name]).in_features)},
            batched=True,
        ),
    )


def head(
    prefixes: Mapping[str, Sequence[Prefixes]],
    parameters: Mapping[str, tuple[int, ...]],
    logits: Callable[..., Tensor],
    width: Callable[[Config], int],
    *,
    probabilities: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(dim=1),
    other: str = "image_embeds",
    typical: str = "One picture and four captions.",
) -> Part[Head]:
    """The head of a family, whose own are its ``parameters`` (name to shape) and its ``logits``.

    ``logits`` takes the embeddings ``other`` (1, e) and ``text_embeds`` (n, e), and the parameters, and gives logits
    (1, n), of which ``probabilities`` makes scores (1, n) between 0 and 1. ``width`` is the length e.
    """

    def run(network: Head, **embeddings: Tensor) -> dict[str, Tensor]:
        found = logits(**embeddings, **dict(network.named_parameters()))
        return {"logits": found, SCORES: probabilities(found.float())}

    def ranking(checkpoint: Checkpoint) -> steps.Ranking:
        length = width(checkpoint.config)
        return steps.Ranking(needs=(steps.Arrays(shapes={other: (1, length)}),), width=length)

    return Part(
        prefixes=prefixes,
        build=lambda config: Head(width(config), parameters),
        identity=lambda _: {},
        steps=ranking,
        forwards=ordinary(
            run, typical, lambda network: {other: (1, network.width), "text_embeds": (TEXTS, network.width)}
        ),
    )
