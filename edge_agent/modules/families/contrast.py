"""The head of every model with two towers: scores of texts for a picture (or a sound), and the ranked texts.

Owns the head's inputs and its scores; how embeddings become logits is the family's network.

    takes                                              gives
    ``image_embeds`` (1, e), ``text_embeds`` (n, e),   ``logits`` float32 (1, n), and the texts, best first
    the texts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from edge_agent.modules import SCORES
from edge_agent.modules.weights.model_parts import Forward

TEXTS = 4  # of the pass that is counted


def softmax(logits: Tensor) -> Tensor:
    """The texts compete: probabilities (1, n) that add up to 1."""
    return logits.softmax(dim=1)


class ContrastHead(nn.Module):
    """Base of the families' heads. ``width`` is that of the embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Logits (1, n) of a picture (1, e) and n texts (n, e)."""
        raise NotImplementedError


def picture_and_captions(network: ContrastHead) -> dict[str, Tensor]:
    """One picture and four captions."""
    return {"image_embeds": torch.empty(1, network.width), "text_embeds": torch.empty(TEXTS, network.width)}


def scored(probabilities: Callable[[Tensor], Tensor] = softmax) -> Mapping[str | None, Forward[ContrastHead]]:
    """The forward of a head whose logits (1, n) become scores (1, n) between 0 and 1 in this way."""

    def run(network: ContrastHead, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        logits = network(image_embeds, text_embeds)
        return {"logits": logits, SCORES: probabilities(logits.float())}

    return {None: Forward(run, picture_and_captions)}
