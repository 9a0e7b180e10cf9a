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

from edge_agent.modules import Prepared, Value
from edge_agent.modules.families import generation
from edge_agent.modules.inputs import decoding, prepare, sample_inputs, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import Forward, one_picture, ordinary

MOST_TOKENS: Mapping[str | None, int] = {None: 10, "caption": 20}  # after the start, by use
QUESTION_TOKENS = 10  # of the passes that are counted: "what is the cat looking at" with start, end and question mark


def encode_image(network: BlipVisionModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, s, s) to ``states`` (1, 1 + p, d)."""
    return {"states": network(pixel_values=pixels).last_hidden_state}


def encode_question(
    network: BlipTextModel, ids: Tensor, mask: Tensor, states: Tensor, seen: Tensor | None = None
) -> dict[str, Tensor]:
    """A question (1, t), asked of a picture's states, to ``states`` (1, t, d). No mask ``seen``: all states count."""
    if seen is None:
        seen = torch.ones(states.shape[:-1], dtype=torch.int64)
    given = network(input_ids=ids, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=seen)
    return {"states": given.last_hidden_state}


class Decoder(BlipTextLMHeadModel):  # type: ignore[no-untyped-call]  # transformers is partly typed
    """The decoder; ``patches`` is how many states a picture has."""

    def __init__(self, config: BlipTextConfig, patches: int) -> None:
        super().__init__(config)
        self.patches = patches

    def generate_answer(self, states: Tensor) -> dict[str, Tensor]:
        """States (1, n, d) to ``tokens`` (1, t), start included."""
        return self._generate(states, MOST_TOKENS[None])

    def generate_caption(self, states: Tensor) -> dict[str, Tensor]:
        """The same, with a caption's limit."""
        return self._generate(states, MOST_TOKENS["caption"])

    def _generate(self, states: Tensor, most: int) -> dict[str, Tensor]:
        start, end, pad = (cast("int", getattr(self.config, f"{name}_token_id")) for name in ("bos", "sep", "pad"))
        return {"tokens": generation.greedy(self, states, start=start, end=end, pad=pad, most=most)}


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


class _Reader(BlipTextModel):  # type: ignore[no-untyped-call]  # the same
    """The question's reader; ``patches`` is how many states a picture has."""

    def __init__(self, config: BlipTextConfig, seen: int) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.patches = seen


def _picture_and_question(network: _Reader) -> dict[str, Tensor]:
    """A question of ten tokens about one picture."""
    return {
        "ids": torch.zeros(1, QUESTION_TOKENS, dtype=torch.int64),
        "mask": torch.zeros(1, 1, 1, QUESTION_TOKENS),
        "states": torch.empty(1, network.patches, network.config.encoder_hidden_size),
        "seen": torch.zeros(1, 1, 1, network.patches),
    }


def _answer(network: Decoder) -> dict[str, Tensor]:
    """A caption of 16 tokens, or an answer of 4 to a question of ten, each token computed once, as with the cache."""
    return _tokens_and_states(network, 4, QUESTION_TOKENS)


def _caption(network: Decoder) -> dict[str, Tensor]:
    """A caption of 16 tokens, or an answer of 4 to a question of ten, each token computed once, as with the cache."""
    return _tokens_and_states(network, generation.CAPTION_TOKENS, network.patches)


def _tokens_and_states(network: Decoder, tokens: int, attended: int) -> dict[str, Tensor]:
    states = torch.empty(1, attended, network.config.encoder_hidden_size)
    seen = torch.zeros(1, 1, 1, attended)
    return generation.tokens_and_states(tokens, states) | {"encoder_attention_mask": seen}


class QuestionSteps(steps.Steps):
    """A picture's states and a question."""

    values = 2

    def __init__(self, states: tuple[int, ...], tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        self._states = states
        self._tokenizer = tokenizer
        self._longest = longest

    def read(self, *values: Value) -> Prepared:
        """``states`` (1, 1 + p, d) of a picture, and a question's tokens."""
        states = decoding.array(values[0], "states", self._states)
        tokens = steps.tokens(self._tokenizer, [steps.question(values[1])], self._longest)
        return Prepared({"states": states, **tokens})

    def sample(self) -> tuple[Value, ...]:
        """A picture's states and a question."""
        return sample_inputs.arrays({"states": self._states}), sample_inputs.question()


def _question_steps(checkpoint: Checkpoint) -> QuestionSteps:
    config = text_config(checkpoint.config)
    states = (1, patches(checkpoint.config), config.encoder_hidden_size)
    return QuestionSteps(states, prepare.tokenizer(checkpoint, BertTokenizer), config.max_position_embeddings)


def _decoder_steps(checkpoint: Checkpoint) -> dict[str | None, steps.Spelling]:
    tokenizer = prepare.tokenizer(checkpoint, BertTokenizer)
    shapes = {"states": (1, QUESTION_TOKENS, text_config(checkpoint.config).encoder_hidden_size)}
    names = {None: "answer", "caption": "caption"}
    return {use: steps.Spelling(shapes, tokenizer, what, free=True) for use, what in names.items()}


_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
PARTS: model_parts.Parts = {
    "vision": model_parts.Part(
        prefixes={"blip": [{"vision_model.": ""}]},
        build=lambda config: BlipVisionModel(vision_config(config)),
        identity=_vision_identity,
        steps=lambda checkpoint: steps.Picture(prepare.image_processor(checkpoint, BlipImageProcessorPil)),
        forwards=ordinary(encode_image, one_picture),
    ),
    "question": model_parts.Part(
        prefixes={"blip": [{"text_encoder.": ""}]},
        build=lambda config: _Reader(text_config(config), patches(config)),
        identity=_text_identity,
        steps=_question_steps,
        forwards=ordinary(encode_question, _picture_and_question),
    ),
    "decoder": model_parts.Part(
        prefixes={"blip": [{"text_decoder.": ""}]},
        build=lambda config: Decoder(text_config(config), patches(config)),
        identity=_decoder_identity,
        steps=_decoder_steps,
        forwards={
            None: Forward(Decoder.generate_answer, _answer, unrolled=generation.one_pass),
            "caption": Forward(Decoder.generate_caption, _caption, unrolled=generation.one_pass),
        },
        tied=_TIED,
        equal={f"text_decoder.{own}": f"text_decoder.{other}" for own, other in _TIED.items()},
        unread=(".position_ids", *(f"text_decoder.{name}" for name in _TIED)),
    ),
}

load = model_parts.loader(PARTS)
