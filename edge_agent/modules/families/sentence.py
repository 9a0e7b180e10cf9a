"""Sentence encoders of the BERT kind: all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv:1908.10084).

Not cut further: the whole encoder is one module, for its layers are small against its 47 MB of word embeddings.

    part      weights                takes                      gives (this and nothing else crosses the wire)
    encoder   all but ``pooler.``    a text, one a line (n)     ``embeddings`` float32 (n, 384), of length 1

The text is an input, or another node's array ``text`` (``inputs.TEXT``), such as a transcription: the same either way.
The published pooler takes no part in the sentence embedding, so it is neither held nor counted.

The network is BERT's encoder (Devlin et al. 2018, arXiv:1810.04805), with the names of its published weights, in plain
torch. Bit for bit it is that of transformers with its SDPA attention, which a test compares; but importing that takes
four seconds of a core and 150 MB, more than the weights of a small encoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from broker.protocol.preparation import TextPreparation
from broker.protocol.specs import ModuleSpec
from edge_agent.modules import Module, Pass
from edge_agent.modules.inputs import steps, tokens
from edge_agent.modules.weights import check_size, packaged, packaged_tensors, precision

WIDTH = 384
_SETS = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_)
PREPARATION = TextPreparation(longest=256)  # the length the model was published for; more is cut off


def encode_text(model: Bert, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Tokens (n, t) to ``embeddings`` (n, 384)."""
    hidden = model(ids, mask)  # (n, t, 384)
    return {"embeddings": pool(hidden.float(), mask)}


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of hidden states (n, t, d), scaled to length 1: (n, d)."""
    real = mask.unsqueeze(-1).to(hidden.dtype)  # (n, t, 1)
    mean = (hidden * real).sum(1) / real.sum(1)  # (n, d); every text has tokens: its start and end
    return functional.normalize(mean, dim=1)


def load(spec: ModuleSpec) -> Module:
    """Load the encoder.

    Raises:
        ModuleRefused: the weights aren't there or don't fit.
    """
    directory = packaged.directory_of(spec)
    with _Unset():
        model = _network(directory)
    model.train(mode=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    model.to(device="meta")
    model.load_state_dict(
        packaged_tensors.read(spec, "encoder", shapes, others=("pooler.", ".position_ids")), assign=True
    )
    if spec.dtype == precision.INT8:
        precision.quantise(model.requires_grad_(requires_grad=False))
        check_size(spec, precision.memory_bytes(model.state_dict().values()))
    texts = steps.Texts.tokenized(PREPARATION, tokens.read(directory, PREPARATION))
    return Module(model, {None: Pass(steps.Steps((texts,)), encode_text, batched=True)}, dtype=spec.dtype)


def memory_bytes(spec: ModuleSpec) -> int:
    """Bytes of the encoder's weights in the spec's dtype.

    Raises:
        ModuleRefused: its configuration isn't there.
    """
    with torch.device("meta"):
        return precision.network_bytes(_network(packaged.directory_of(spec)), spec.dtype)


def _network(directory: Path) -> Bert:
    return Bert(json.loads((directory / "config.json").read_text(encoding="utf-8")))


class _Unset(TorchFunctionMode):
    """Meanwhile parameters aren't set: random ones would lie in memory beside those that are read.

    Parameters on the meta device have none, but to set them imports 70 MB.
    """

    def __torch_function__(
        self, func: Callable[..., object], _: object, args: Sequence[object] = (), kwargs: Mapping[str, object] = {}
    ) -> object:
        if func in _SETS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})


class Bert(nn.Module):
    """Tokens ``ids`` and ``mask`` int64 (n, t) to hidden states (n, t, d)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self._layers = [_Layer(config) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(self._layers)})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Run all layers; padding (mask 0) is not attended to."""
        hidden: Tensor = self.embeddings(ids)
        real = mask.bool()
        unpadded = not torch.compiler.is_exporting() and bool(real.all())  # an exported graph serves both
        attended = None if unpadded else real[:, None, None, :].expand(-1, 1, ids.shape[1], -1)  # (n, 1, t, t)
        for layer in self._layers:
            hidden = layer(hidden, attended)
        return hidden


class _Embeddings(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
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
    def __init__(self, config: dict[str, Any]) -> None:
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
