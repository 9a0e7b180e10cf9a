"""Greedy decoding inside one module, with its KV cache: what captioners and answerers of several families share.

Owns the call of transformers' own ``generate`` on a decoder that was cut from its encoder, and what a decoder gives:
``tokens`` int64 (1, t), the start among them, and the text that they spell. Knows no family.

Invariant: the token ids are those of the whole model's ``generate`` with the same limit. Nothing is sampled.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from broker.protocol.errors import ModuleRefused
from edge_agent.modules import Output
from edge_agent.modules.inputs import outputs
from edge_agent.modules.weights.checkpoint import Checkpoint

TYPICAL_TOKENS = 16  # of a caption, for planning


def greedy(network: PreTrainedModel, states: Tensor, *, start: int, end: int, pad: int, most: int) -> Tensor:
    """The most probable tokens, one after the other.

    Args:
        network: A decoder with cross-attention.
        states: What it attends to, (1, n, d), all of it.
        start: The first token, which is given.
        end: The token after which nothing follows.
        pad: The token that stands for none.
        most: How many tokens may follow the first.

    Returns:
        Token ids (1, t), int64, start included.
    """
    first = torch.full((1, 1), start, dtype=torch.int64)
    found = cast("Any", network).generate(
        input_ids=first,
        attention_mask=torch.ones_like(first),
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:-1], dtype=torch.int64),
        eos_token_id=end,
        pad_token_id=pad,
        **limits(most),
    )
    return cast("Tensor", found)


def whole(model: PreTrainedModel, most: int, **given: Tensor) -> Tensor:
    """Token ids (1, t) of a whole model's own ``generate``, with the same limit: what ``greedy`` must equal."""
    return cast("Tensor", cast("Any", model).generate(**given, **limits(most)))


def limits(most: int) -> dict[str, Any]:
    """How ``generate`` decodes, here and in the whole models: greedily, at most ``most`` new tokens."""
    return {"max_new_tokens": most, "do_sample": False, "num_beams": 1}


def spelled(tokenizer: PreTrainedTokenizerBase, tokens: Tensor, what: str) -> Output:
    """Tokens (1, t) as an output: the ids, and the text under the name ``what``."""
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    return Output(outputs.arrays({"tokens": tokens}), {what: cast("str", text).strip()})


def check_tied(checkpoint: Checkpoint, name: str, other: str) -> None:
    """Refuse a checkpoint that stores one matrix twice, with different numbers: only ``other`` is read.

    Args:
        checkpoint: The checkpoint.
        name: The published name that isn't read, and may be absent.
        other: That of the same tensor.

    Raises:
        ModuleRefused: they differ.
    """
    if name not in checkpoint.files or other not in checkpoint.files:
        return
    found = checkpoint.read((name, other))
    if not torch.equal(found[name], found[other]):
        raise ModuleRefused(
            f"{checkpoint.repository} has {name} and {other}, which differ, and this model ties them: "
            f"remove {name}, or fetch it again"
        )
