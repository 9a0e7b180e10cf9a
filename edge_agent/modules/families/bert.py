"""The BERT encoder (Devlin et al. 2018, arXiv:1810.04805), with the names of its published weights, in plain torch.

Bit for bit the encoder of transformers with its SDPA attention, which a test compares; but importing that takes four
seconds of a core and 150 MB, more than the weights of a small encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Config = dict[str, Any]
"""The fields of a published config.json."""


class Bert(nn.Module):
    """Tokens ``ids`` and ``mask`` int64 (n, t) to hidden states (n, t, d)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self._layers = [_Layer(config) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(self._layers)})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Run all layers; padding (mask 0) is not attended to."""
        hidden: Tensor = self.embeddings(ids)
        real = mask.bool()
        attended = None if bool(real.all()) else real[:, None, None, :].expand(-1, 1, ids.shape[1], -1)  # (n, 1, t, t)
        for layer in self._layers:
            hidden = layer(hidden, attended)
        return hidden


class _Embeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], width)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])

    def forward(self, ids: Tensor) -> Tensor:
        found = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        normalised: Tensor = self.LayerNorm(found + self.position_embeddings(places))
        return normalised


class _Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        own = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(own), "output": _residual(width, width, eps)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _residual(inner, width, eps)
        self._heads: int = config["num_attention_heads"]

    def forward(self, hidden: Tensor, attended: Tensor | None) -> Tensor:
        shape = (*hidden.shape[:-1], self._heads, -1)
        own: Any = self.attention["self"]
        q, k, v = (
            own[name](hidden).view(shape).transpose(1, 2) for name in ("query", "key", "value")
        )  # (n, h, t, d/h)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attended, scale=q.shape[-1] ** -0.5)
        hidden = _add(self.attention["output"], mixed.transpose(1, 2).reshape(hidden.shape), hidden)
        return _add(self.output, functional.gelu(self.intermediate["dense"](hidden)), hidden)


def _residual(inner: int, width: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps=eps)})


def _add(part: Any, new: Tensor, hidden: Tensor) -> Tensor:  # noqa: ANN401 - a ModuleDict's entries are untyped
    normalised: Tensor = part["LayerNorm"](part["dense"](new) + hidden)
    return normalised
