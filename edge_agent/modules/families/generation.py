"""Greedy decoding inside one module, with its KV cache, for the captioners and answerers of several families.

Owns the call of transformers' own ``generate`` on a decoder that was cut from its encoder, and what a decoder gives:
``tokens`` int64 (1, t), the start among them, and the text that they spell. Knows no family.

Invariant: the token ids are those of the whole model's ``generate`` with the same limit. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from broker.protocol.tensors import Array
from edge_agent.modules import Output, Prepared

CAPTION_TOKENS = 16  # of the pass that is counted


def greedy(network: PreTrainedModel, states: Tensor, *, start: int, end: int, pad: int, most: int) -> dict[str, Tensor]:
    """The most probable tokens, one after the other: ``tokens`` (1, t), int64, start included.

    ``network`` is a decoder that attends to all ``states`` (1, n, d). At most ``most`` tokens follow the start.
    """
    first = torch.full((1, 1), start, dtype=torch.int64, device=states.device)
    found = cast("Any", network).generate(
        input_ids=first,
        attention_mask=torch.ones_like(first),
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:-1], dtype=torch.int64, device=states.device),
        eos_token_id=end,
        pad_token_id=pad,
        **limits(most),
    )
    return {"tokens": found}


@dataclass(frozen=True)
class Spelled:
    """The answer of ``tokens`` (1, t): the text that they spell, under the name ``what``."""

    tokenizer: PreTrainedTokenizerBase
    what: str

    def __call__(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        """The output."""
        text = str(self.tokenizer.decode(arrays["tokens"][0].tolist(), skip_special_tokens=True))
        return Output({"tokens": arrays["tokens"]}, {self.what: text.strip()})


def limits(most: int) -> dict[str, Any]:
    """How ``generate`` decodes, here and in the whole models: greedily, at most ``most`` new tokens."""
    return {"max_new_tokens": most, "do_sample": False, "num_beams": 1}


def one_pass(network: PreTrainedModel, **tensors: Tensor) -> dict[str, Tensor]:
    """A decoder's pass over all tokens at once, each computed once as with the cache: ``greedy``, unrolled."""
    return {"tokens": cast("Any", network)(**tensors, use_cache=False).logits.argmax(dim=-1)}


def tokens_and_states(tokens: int, states: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes for ``one_pass``: tokens (1, t) with their mask, and the states that they attend to."""
    return {
        "input_ids": (1, tokens),
        "attention_mask": (1, 1, tokens, tokens),
        "encoder_hidden_states": states,
    }
