"""BLIP (Li et al. 2022, arXiv:2201.12086), cut into its picture encoder, its reader of questions, and its decoder.

    part       weights            takes                                gives (and nothing else crosses the wire)
    vision     ``vision_model.``  a picture's bytes                    ``states`` float32 (1, 1 + p, d), normed
    question   ``text_encoder.``  ``states`` of a picture, a question  ``states`` float32 (1, t, d)
    decoder    ``text_decoder.``  ``states``                           ``tokens`` int64 (1, t), and the answer

Answering is vision, question, decoder: the question is read while looking at the picture, and the decoder sees what the
question's reader made of both. Captioning is vision, decoder: use ``caption`` of the same part. The two published
models have the same architecture in what both have; their weights were tuned apart, so their modules are two each.
The matrix of words of the decoder is its output layer too, and is held once (old checkpoints store it twice).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipImageProcessorPil,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedTokenizerBase,
)
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from edge_agent.modules import Output, Value
from edge_agent.modules.families import adapters, generation
from edge_agent.modules.inputs import decoding, outputs, prepare, sample_inputs
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config

MOST_TOKENS: Mapping[str | None, int] = MappingProxyType({None: 10, "caption": 20})  # after the start, by use
TYPICAL_QUESTION = 10  # tokens: "what is the cat looking at" with start, end and question mark


def see(network: BlipVisionModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, s, s) to ``states`` (1, 1 + p, d)."""
    return {"states": network(pixel_values=pixels).last_hidden_state}


def ask(network: BlipTextModel, ids: Tensor, mask: Tensor, states: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """A question (1, t), asked of a picture's states, to ``states`` (1, t, d). Each with its mask."""
    given = network(input_ids=ids, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=seen)
    return {"states": given.last_hidden_state}


class Decoder(BlipTextLMHeadModel):  # type: ignore[no-untyped-call]  # transformers is partly typed
    """The decoder; ``patches`` is how many states a picture has."""

    def __init__(self, config: BlipTextConfig, patches: int) -> None:
        super().__init__(config)
        self.patches = patches

    def say(self, states: Tensor, use: str | None) -> Tensor:
        """States (1, n, d) to tokens (1, t), start included."""
        start, end, pad = (cast("int", getattr(self.config, f"{name}_token_id")) for name in ("bos", "sep", "pad"))
        return generation.greedy(self, states, start=start, end=end, pad=pad, most=MOST_TOKENS[use])


def vision_config(config: Config) -> BlipVisionConfig:
    """The picture encoder's configuration."""
    return BlipVisionConfig(**config["vision_config"])


def text_config(config: Config) -> BlipTextConfig:
    """The configuration of the question's reader and of the decoder; both attend to the picture encoder's width."""
    return BlipTextConfig(**(config["text_config"] | {"encoder_hidden_size": vision_config(config).hidden_size}))


def patches(config: Config) -> int:
    """How many states a picture has, the class token among them."""
    vision = vision_config(config)
    side = cast("int", vision.image_size) // cast("int", vision.patch_size)
    return 1 + side * side


def _vision_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = vision_config(checkpoint.config)
    wanted = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size hidden_act "
        "layer_norm_eps"
    )
    return prepare.fields(config, wanted) | {"pictures": prepare.pictures(checkpoint, BlipImageProcessorPil)}


def _text_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = text_config(checkpoint.config)
    wanted = (
        "vocab_size hidden_size encoder_hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act "
        "layer_norm_eps max_position_embeddings"
    )
    return prepare.fields(config, wanted) | {"vocabulary": prepare.vocabulary(checkpoint)}


def _decoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = text_config(checkpoint.config)
    special: dict[str, JsonValue] = {
        name: cast("int", getattr(config, f"{name}_token_id")) for name in ("bos", "sep", "pad")
    }
    return _text_identity(checkpoint) | special | {"most": [MOST_TOKENS[None], MOST_TOKENS["caption"]]}


def _typical_vision(network: BlipVisionModel, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One picture."""
    return see(network, prepare.blank(network.config))


class _Reader(BlipTextModel):  # type: ignore[no-untyped-call]  # the same
    """The question's reader; ``patches`` is how many states a picture has."""

    def __init__(self, config: BlipTextConfig, seen: int) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.patches = seen


def _typical_question(network: _Reader, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """A question of ten tokens about one picture."""
    ids = torch.zeros(1, TYPICAL_QUESTION, dtype=torch.int64)
    states = torch.empty(1, network.patches, network.config.encoder_hidden_size)
    mask, seen = torch.zeros(1, 1, 1, TYPICAL_QUESTION), torch.zeros(1, 1, 1, network.patches)
    return ask(network, ids, mask, states, seen)


def _typical_decoder(network: Decoder, use: str | None) -> dict[str, Tensor]:
    """A caption of 16 tokens, or an answer of 4 to a question of ten, each token computed once, as with the cache."""
    tokens, attended = (generation.TYPICAL_TOKENS, network.patches) if use == "caption" else (4, TYPICAL_QUESTION)
    found = network(
        input_ids=torch.zeros(1, tokens, dtype=torch.int64),
        attention_mask=torch.zeros(1, 1, tokens, tokens),
        encoder_hidden_states=torch.empty(1, attended, network.config.encoder_hidden_size),
        encoder_attention_mask=torch.zeros(1, 1, 1, attended),
        use_cache=False,
    )
    return {"tokens": found.logits.argmax(dim=-1)}


class QuestionModule:
    """The question's reader with its weights and its tokenizer."""

    def __init__(self, network: _Reader, tokenizer: PreTrainedTokenizerBase) -> None:
        self._network = network
        self._tokenizer = tokenizer

    def typical(self) -> tuple[Value, ...]:
        """A picture's states and a question."""
        shape = (1, self._network.patches, self._network.config.encoder_hidden_size)
        return sample_inputs.arrays({"states": shape}), sample_inputs.question()

    def __call__(self, *values: Value) -> Output:
        """``states`` (1, 1 + p, d) of a picture and a question to ``states`` (1, t, d)."""
        decoding.count(values, 2)
        config = self._network.config
        shape = (1, self._network.patches, config.encoder_hidden_size)
        states = decoding.tensor(values[0], "states", shape).to(self._network.dtype)
        tokens = tokenize(self._tokenizer, values[1], config.max_position_embeddings)
        with torch.inference_mode():
            seen = torch.ones(states.shape[:-1], dtype=torch.int64)
            return Output(outputs.arrays(ask(self._network, *tokens, states, seen)))


class DecoderModule:
    """The decoder with its weights and its tokenizer."""

    uses = frozenset({"caption"})

    def __init__(self, network: Decoder, tokenizer: PreTrainedTokenizerBase) -> None:
        self._network = network
        self._tokenizer = tokenizer

    def typical(self) -> tuple[Value, ...]:
        """What the question's reader gives."""
        return (sample_inputs.arrays({"states": (1, TYPICAL_QUESTION, self._network.config.encoder_hidden_size)}),)

    def __call__(self, *values: Value, use: str | None = None) -> Output:
        """``states`` (1, n, d) to ``tokens`` (1, t), and the answer or the caption."""
        decoding.count(values, 1)
        width = self._network.config.encoder_hidden_size
        states = decoding.tensor(values[0], "states", (1, None, width)).to(self._network.dtype)
        with torch.inference_mode():
            tokens = self._network.say(states, use)
        return generation.spelled(self._tokenizer, tokens, use or "answer")


def tokenize(tokenizer: PreTrainedTokenizerBase, question: Value, longest: int) -> tuple[Tensor, Tensor]:
    """A question to tokens and mask (1, t); several lines are one question."""
    text = " ".join(decoding.lines(question))
    tokens = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


def _answering(network: Decoder, checkpoint: Checkpoint) -> DecoderModule:
    for own, other in _TIED.items():
        generation.check_tied(checkpoint, f"text_decoder.{own}", f"text_decoder.{other}")
    return DecoderModule(network, prepare.tokenizer(checkpoint, BertTokenizer))


_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
PARTS: model_parts.Parts = MappingProxyType(
    {
        "vision": model_parts.Part(
            prefixes={"blip": [{"vision_model.": ""}]},
            build=lambda config: BlipVisionModel(vision_config(config)),
            identity=_vision_identity,
            typical=_typical_vision,
            module=lambda network, checkpoint: adapters.Pictures(
                see, network, prepare.image_processor(checkpoint, BlipImageProcessorPil)
            ),
        ),
        "question": model_parts.Part(
            prefixes={"blip": [{"text_encoder.": ""}]},
            build=lambda config: _Reader(text_config(config), patches(config)),
            identity=_text_identity,
            typical=_typical_question,
            module=lambda network, checkpoint: QuestionModule(network, prepare.tokenizer(checkpoint, BertTokenizer)),
        ),
        "decoder": model_parts.Part(
            prefixes={"blip": [{"text_decoder.": ""}]},
            build=lambda config: Decoder(text_config(config), patches(config)),
            identity=_decoder_identity,
            typical=_typical_decoder,
            module=_answering,
            tied=_TIED,
            unread=(".position_ids", *(f"text_decoder.{name}" for name in _TIED)),
        ),
    }
)

load = model_parts.loader(PARTS)
