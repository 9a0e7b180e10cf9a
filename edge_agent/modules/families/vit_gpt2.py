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

from functools import partial
from typing import cast

from pydantic import JsonValue
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from edge_agent.modules.families import generation, vit
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import ordinary, tower

MOST_TOKENS = 16  # as its authors generate


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


def _decoder(config: Config) -> GPT2LMHeadModel:
    network = GPT2LMHeadModel(_decoder_config(config))
    network.config.states = _states(_encoder_config(config))  # of the pass that is counted
    return network


def _states(encoder: ViTConfig) -> int:
    """How many states a picture has, the class token among them."""
    side = cast("int", encoder.image_size) // cast("int", encoder.patch_size)
    return 1 + side * side


def _decoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    wanted = (
        "vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon "
        "scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn"
    )
    special = _special(checkpoint)
    own = prepare.identity(_decoder_config, wanted, texts=True)(checkpoint)
    return own | {"start": special["start"], "end": special["end"], "most": MOST_TOKENS}


def _special(checkpoint: Checkpoint) -> dict[str, int]:
    """The special tokens of ``generation.greedy``."""
    config, start = _decoder_config(checkpoint.config), checkpoint.config.get("decoder_start_token_id")
    found = {
        "start": config.bos_token_id if start is None else start,
        "end": config.eos_token_id,
        "pad": config.pad_token_id,
    }
    return cast("dict[str, int]", found)


def _caption_steps(checkpoint: Checkpoint) -> steps.Steps:
    encoder = _encoder_config(checkpoint.config)
    shapes = {"states": (1, _states(encoder), encoder.hidden_size)}
    answer = generation.Spelled(prepare.tokenizer(checkpoint, GPT2Tokenizer), "caption")
    return steps.Steps((steps.Arrays(shapes=shapes),), answer)


PARTS: model_parts.Parts = {
    "encoder": model_parts.Part(
        prefixes={"vision-encoder-decoder": [{"encoder.": ""}]},
        build=lambda config: ViTModel(_encoder_config(config), add_pooling_layer=False),
        identity=prepare.identity(_encoder_config, vit.VISION, pictures=ViTImageProcessorPil),
        steps=prepare.picture_steps(ViTImageProcessorPil),
        forwards=tower("states", "last_hidden_state"),
        renames=vit.RENAMES,
        unread=("encoder.pooler.dense.weight", "encoder.pooler.dense.bias"),
    ),
    "decoder": model_parts.Part(
        prefixes={"vision-encoder-decoder": [{"decoder.": ""}]},
        build=_decoder,
        identity=_decoder_identity,
        steps=_caption_steps,
        forwards=ordinary(
            partial(generation.greedy, most=MOST_TOKENS),
            "A caption of 16 tokens, each computed once, as with the cache.",
            lambda network: generation.tokens_and_states(
                generation.CAPTION_TOKENS, (1, network.config.states, network.config.n_embd)
            ),
            generation.one_pass,
        ),
        settings=_special,
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
