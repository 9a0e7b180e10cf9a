"""ViT-GPT2 (a ViT encoder under a GPT-2 decoder with cross-attention), a captioner, cut between the two.

    part       weights      takes                 gives (and nothing else crosses the wire)
    encoder    ``encoder.`` a picture's bytes     ``states`` float32 (1, 1 + p, d), normed, class token first
    decoder    ``decoder.`` ``states``            ``tokens`` int64 (1, t), start included, and the caption

The whole caption is generated inside the decoder, with its KV cache: one message a picture, not one a token.
ViT: Dosovitskiy et al. 2021, arXiv:2010.11929; GPT-2: Radford et al. 2019; together: Kumar 2022,
nlpconnect/vit-gpt2-image-captioning. Its ViT has a pooler that nothing uses: it is neither held nor counted. GPT-2's
matrix of words is its output layer too, and is held once.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    ViTConfig,
    ViTModel,
)

from edge_agent.modules.families import generation, vit
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import Forward, one_picture, ordinary

MOST_TOKENS = 16  # as its authors generate


def encode_image(network: ViTModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, s, s) to ``states`` (1, 1 + p, d)."""
    return {"states": network(pixel_values=pixels).last_hidden_state}


class Decoder(GPT2LMHeadModel):  # type: ignore[no-untyped-call]  # transformers is partly typed
    """GPT-2 that attends to ``patches`` states."""

    def __init__(self, config: GPT2Config, patches: int, start: int) -> None:
        super().__init__(config)
        self.patches = patches
        self.start = start

    def generate_caption(self, states: Tensor) -> dict[str, Tensor]:
        """States (1, 1 + p, d) to ``tokens`` (1, t)."""
        end, pad = cast("int", self.config.eos_token_id), cast("int", self.config.pad_token_id)
        return {"tokens": generation.greedy(self, states, start=self.start, end=end, pad=pad, most=MOST_TOKENS)}


def _encoder_config(config: Config) -> ViTConfig:
    return ViTConfig.from_dict(dict(config["encoder"]))


def _decoder_config(config: Config) -> GPT2Config:
    """GPT-2's configuration; the whole model's special tokens win over the section's, as in generate."""
    special = {name: config[name] for name in ("eos_token_id", "pad_token_id") if config.get(name) is not None}
    section = dict(config["decoder"]) | special | {"is_decoder": True, "add_cross_attention": True}
    made = GPT2Config.from_dict(section)
    encoder = _encoder_config(config)
    if encoder.hidden_size != made.hidden_size:
        # transformers then puts a projection between them, which the published captioner doesn't have.
        msg = f"states of {encoder.hidden_size} numbers for a decoder of {made.hidden_size}"
        raise ValueError(msg)
    if made.pad_token_id is None:
        made.pad_token_id = cast("int", made.eos_token_id)
    return made


def _decoder(config: Config) -> Decoder:
    encoder, decoder = _encoder_config(config), _decoder_config(config)
    return Decoder(decoder, _states(encoder), _start(config, decoder))


def _states(encoder: ViTConfig) -> int:
    """How many states a picture has, the class token among them."""
    side = cast("int", encoder.image_size) // cast("int", encoder.patch_size)
    return 1 + side * side


def _decoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = _decoder_config(checkpoint.config)
    wanted = (
        "vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon "
        "scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn"
    )
    return prepare.fields(config, wanted) | {
        "start": _start(checkpoint.config, config),
        "end": cast("int", config.eos_token_id),
        "most": MOST_TOKENS,
        "vocabulary": prepare.vocabulary(checkpoint),
    }


def _start(config: Config, decoder: GPT2Config) -> int:
    start = config.get("decoder_start_token_id")
    return cast("int", decoder.bos_token_id if start is None else start)


def _caption(network: Decoder) -> dict[str, Tensor]:
    """A caption of 16 tokens, each computed once, as with the cache."""
    states = torch.empty(1, network.patches, network.config.n_embd)
    return generation.tokens_and_states(generation.CAPTION_TOKENS, states)


def _caption_steps(checkpoint: Checkpoint) -> steps.Spelling:
    encoder = _encoder_config(checkpoint.config)
    shapes = {"states": (1, _states(encoder), encoder.hidden_size)}
    return steps.Spelling(shapes, prepare.tokenizer(checkpoint, GPT2Tokenizer), "caption")


PARTS: model_parts.Parts = {
    "encoder": model_parts.Part(
        prefixes={"vision-encoder-decoder": [{"encoder.": ""}]},
        build=lambda config: ViTModel(_encoder_config(config), add_pooling_layer=False),
        identity=lambda checkpoint: vit.identity_of(_encoder_config(checkpoint.config), checkpoint),
        steps=vit.picture_steps,
        forwards=ordinary(encode_image, one_picture),
        renames=vit.RENAMES,
        unread=("encoder.pooler.dense.weight", "encoder.pooler.dense.bias"),
    ),
    "decoder": model_parts.Part(
        prefixes={"vision-encoder-decoder": [{"decoder.": ""}]},
        build=_decoder,
        identity=_decoder_identity,
        steps=_caption_steps,
        forwards={None: Forward(Decoder.generate_caption, _caption, unrolled=generation.one_pass)},
        tied={"lm_head.weight": "transformer.wte.weight"},
        equal={"decoder.lm_head.weight": "decoder.transformer.wte.weight"},
        # Old checkpoints store the causal masks, and the tied matrix twice.
        unread=(
            ".attn.bias",
            ".attn.masked_bias",
            ".crossattention.bias",
            ".masked_bias",
            "decoder.lm_head.weight",
        ),
    ),
}

load = model_parts.loader(PARTS)
