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

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from broker.specs import ModuleSpec
from edge_agent.modules import Module, Output, Value, answers, cut, generation, inputs, prepare, typical
from edge_agent.modules.checkpoint import Checkpoint, Config

MOST_TOKENS = 16  # as its authors generate


def see(network: ViTModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, s, s) to ``states`` (1, 1 + p, d)."""
    return {"states": network(pixel_values=pixels).last_hidden_state}


class Decoder(GPT2LMHeadModel):  # type: ignore[no-untyped-call]  # transformers is partly typed
    """GPT-2 that attends to ``patches`` states."""

    def __init__(self, config: GPT2Config, patches: int, start: int) -> None:
        super().__init__(config)
        self.patches = patches
        self.start = start

    def describe(self, states: Tensor) -> Tensor:
        """States (1, 1 + p, d) to tokens (1, t)."""
        end, pad = cast("int", self.config.eos_token_id), cast("int", self.config.pad_token_id)
        return generation.greedy(self, states, start=self.start, end=end, pad=pad, most=MOST_TOKENS)


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
    side = cast("int", encoder.image_size) // cast("int", encoder.patch_size)
    return Decoder(decoder, 1 + side * side, _start(config, decoder))


def _encoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = _encoder_config(checkpoint.config)
    wanted = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size"
    fields = {name: getattr(config, name) for name in (*wanted.split(), "hidden_act", "layer_norm_eps", "qkv_bias")}
    return fields | {"pictures": prepare.effective(prepare.image_processor(checkpoint, ViTImageProcessorPil))}


def _decoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = _decoder_config(checkpoint.config)
    wanted = "vocab_size n_positions n_embd n_layer n_head n_inner activation_function layer_norm_epsilon"
    arithmetic = "scale_attn_weights scale_attn_by_inverse_layer_idx reorder_and_upcast_attn"
    fields = {name: getattr(config, name) for name in (*wanted.split(), *arithmetic.split())}
    return fields | {
        "start": _start(checkpoint.config, config),
        "end": cast("int", config.eos_token_id),
        "most": MOST_TOKENS,
        "vocabulary": prepare.vocabulary(checkpoint),
    }


def _start(config: Config, decoder: GPT2Config) -> int:
    start = config.get("decoder_start_token_id")
    return cast("int", decoder.bos_token_id if start is None else start)


def _typical_encoder(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One picture."""
    encoder = cast("ViTModel", network)
    side = cast("int", encoder.config.image_size)
    return see(encoder, torch.empty(1, encoder.config.num_channels, side, side))


def _typical_decoder(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """A caption of 16 tokens, each computed once, as with the cache."""
    decoder = cast("Decoder", network)
    states = torch.empty(1, decoder.patches, decoder.config.n_embd)
    ids = torch.zeros(1, generation.TYPICAL_TOKENS, dtype=torch.int64)
    mask = torch.zeros(1, 1, generation.TYPICAL_TOKENS, generation.TYPICAL_TOKENS)
    logits = decoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states, use_cache=False).logits
    return {"tokens": logits.argmax(dim=-1)}


PARTS: Mapping[str, cut.Part] = MappingProxyType(
    {
        "encoder": cut.Part(
            prefixes={"vision-encoder-decoder": [{"encoder.": ""}]},
            build=lambda config: ViTModel(_encoder_config(config), add_pooling_layer=False),
            identity=_encoder_identity,
            typical=_typical_encoder,
            renames=(
                (r"^encoder\.layer\.", "layers."),
                (r"\.attention\.attention\.query\.", ".attention.q_proj."),
                (r"\.attention\.attention\.key\.", ".attention.k_proj."),
                (r"\.attention\.attention\.value\.", ".attention.v_proj."),
                (r"\.attention\.output\.dense\.", ".attention.o_proj."),
                (r"\.intermediate\.dense\.", ".mlp.fc1."),
                (r"\.output\.dense\.", ".mlp.fc2."),
            ),
            unread=("encoder.pooler.dense.weight", "encoder.pooler.dense.bias"),
        ),
        "decoder": cut.Part(
            prefixes={"vision-encoder-decoder": [{"decoder.": ""}]},
            build=_decoder,
            identity=_decoder_identity,
            typical=_typical_decoder,
            tied={"lm_head.weight": "transformer.wte.weight"},
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
)


class EncoderModule:
    """The encoder with its weights and its image processor."""

    def __init__(self, network: ViTModel, processor: ViTImageProcessorPil) -> None:
        self._network = network
        self._processor = processor

    def typical(self) -> tuple[Value, ...]:
        """A picture."""
        return (typical.picture(),)

    def __call__(self, *values: Value) -> Output:
        """A picture's bytes to ``states`` (1, 1 + p, d)."""
        inputs.count(values, 1)
        pixels = prepare.pixels(self._processor, inputs.picture(values[0])).to(self._network.dtype)
        with torch.inference_mode():
            return Output(answers.arrays(see(self._network, pixels)))


class DecoderModule:
    """The decoder with its weights and its tokenizer."""

    def __init__(self, network: Decoder, tokenizer: PreTrainedTokenizerBase) -> None:
        self._network = network
        self._tokenizer = tokenizer

    def typical(self) -> tuple[Value, ...]:
        """The encoder's array."""
        return (typical.arrays({"states": (1, self._network.patches, self._network.config.n_embd)}),)

    def __call__(self, *values: Value) -> Output:
        """``states`` (1, 1 + p, d) to ``tokens`` (1, t), and the caption."""
        inputs.count(values, 1)
        shape = (1, self._network.patches, self._network.config.n_embd)
        states = inputs.tensor(values[0], "states", shape).to(self._network.dtype)
        with torch.inference_mode():
            tokens = self._network.describe(states)
        return generation.spelled(self._tokenizer, tokens, "caption")


def load(spec: ModuleSpec) -> Module:
    """Load one of the two parts.

    Raises:
        ModuleRefused: the weights aren't there or don't fit.
    """
    name = spec.family.partition(".")[2]
    checkpoint = cut.open_part(spec, name)
    network = cut.load_network(spec, PARTS[name], checkpoint)
    if isinstance(network, ViTModel):
        return EncoderModule(network, prepare.image_processor(checkpoint, ViTImageProcessorPil))
    generation.check_tied(checkpoint, "decoder.lm_head.weight", "decoder.transformer.wte.weight")
    return DecoderModule(cast("Decoder", network), prepare.tokenizer(checkpoint, GPT2Tokenizer))
