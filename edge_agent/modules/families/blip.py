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

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

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
)
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from edge_agent.modules.families import generation
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import Forward, ordinary, tower

MOST_TOKENS: Mapping[str | None, int] = {None: 10, "caption": 20}  # after the start, by use
QUESTION_TOKENS = 10  # of the passes that are counted: "what is the cat looking at" with start, end and question mark


def encode_question(
    network: BlipTextModel, ids: Tensor, mask: Tensor, states: Tensor, seen: Tensor | None = None
) -> dict[str, Tensor]:
    """A question (1, t), asked of a picture's states, to ``states`` (1, t, d). No mask ``seen``: all states count."""
    if seen is None:
        seen = torch.ones(states.shape[:-1], dtype=torch.int64, device=states.device)
    given = network(input_ids=ids, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=seen)
    return {"states": given.last_hidden_state}


def vision_config(config: Config) -> BlipVisionConfig:
    """The picture encoder's configuration."""
    return BlipVisionConfig(**config["vision_config"])


def text_config(config: Config) -> BlipTextConfig:
    """The configuration of the question's reader and of the decoder; both attend to a picture's ``patches``."""
    seen = {"encoder_hidden_size": vision_config(config).hidden_size, "patches": patches(config)}
    return BlipTextConfig(**(config["text_config"] | seen))


def patches(config: Config) -> int:
    """How many states a picture has, the class token among them."""
    vision = vision_config(config)
    side = cast("int", vision.image_size) // cast("int", vision.patch_size)
    return 1 + side * side


_text_identity = prepare.identity(text_config, f"{prepare.TEXT} encoder_hidden_size", texts=True)


def _special(checkpoint: Checkpoint) -> dict[str, int]:
    """The special tokens of ``generation.greedy``."""
    config = text_config(checkpoint.config)
    found = {"start": config.bos_token_id, "end": config.sep_token_id, "pad": config.pad_token_id}
    return cast("dict[str, int]", found)


def _decoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    most: list[JsonValue] = [MOST_TOKENS[None], MOST_TOKENS["caption"]]
    special = _special(checkpoint)
    ours: dict[str, JsonValue] = {"bos": special["start"], "sep": special["end"], "pad": special["pad"], "most": most}
    return _text_identity(checkpoint) | ours


def _tokens_and_states(network: BlipTextLMHeadModel, tokens: int, attended: int) -> model_parts.Shapes:
    states = (1, attended, network.config.encoder_hidden_size)
    return generation.tokens_and_states(tokens, states) | {"encoder_attention_mask": (1, 1, 1, attended)}


def _question_steps(checkpoint: Checkpoint) -> steps.Steps:
    config = text_config(checkpoint.config)
    states = steps.Arrays(shapes={"states": (1, patches(checkpoint.config), config.encoder_hidden_size)})
    tokenizer = prepare.tokenizer(checkpoint, BertTokenizer)
    return steps.Steps((states, prepare.texts(tokenizer, config.max_position_embeddings, joined=True)))


def _decoder_steps(checkpoint: Checkpoint) -> dict[str | None, steps.Steps]:
    tokenizer = prepare.tokenizer(checkpoint, BertTokenizer)
    shapes = {"states": (1, QUESTION_TOKENS, text_config(checkpoint.config).encoder_hidden_size)}
    names = {None: "answer", "caption": "caption"}
    states = steps.Arrays(shapes=shapes, free=True)
    return {use: steps.Steps((states,), generation.Spelled(tokenizer, what)) for use, what in names.items()}


_TYPICAL = (
    "A caption of 16 tokens, or an answer of 4 to a question of ten, each token computed once, as with the cache."
)
_SHAPES: Mapping[str | None, Callable[[BlipTextLMHeadModel], model_parts.Shapes]] = {
    None: lambda network: _tokens_and_states(network, 4, QUESTION_TOKENS),
    "caption": lambda network: _tokens_and_states(network, generation.CAPTION_TOKENS, network.config.patches),
}
_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
PARTS: model_parts.Parts = {
    "vision": model_parts.Part(
        prefixes={"blip": [{"vision_model.": ""}]},
        build=lambda config: BlipVisionModel(vision_config(config)),
        identity=prepare.identity(
            vision_config, f"{prepare.TOWER} image_size patch_size", pictures=BlipImageProcessorPil
        ),
        steps=prepare.picture_steps(BlipImageProcessorPil),
        forwards=tower("states", "last_hidden_state"),
    ),
    "question": model_parts.Part(
        prefixes={"blip": [{"text_encoder.": ""}]},
        build=lambda config: cast("Any", BlipTextModel)(text_config(config), add_pooling_layer=False),
        identity=_text_identity,
        steps=_question_steps,
        forwards=ordinary(
            encode_question,
            "A question of ten tokens about one picture.",
            lambda network: {
                "ids": (1, QUESTION_TOKENS),
                "mask": (1, 1, 1, QUESTION_TOKENS),
                "states": (1, network.config.patches, network.config.encoder_hidden_size),
                "seen": (1, 1, 1, network.config.patches),
            },
        ),
    ),
    "decoder": model_parts.Part(
        prefixes={"blip": [{"text_decoder.": ""}]},
        build=lambda config: cast("Any", BlipTextLMHeadModel)(text_config(config)),
        identity=_decoder_identity,
        steps=_decoder_steps,
        forwards={
            use: Forward(partial(generation.greedy, most=most), _TYPICAL, _SHAPES[use], generation.one_pass)
            for use, most in MOST_TOKENS.items()
        },
        settings=_special,
        tied=_TIED,
        equal={f"text_decoder.{own}": f"text_decoder.{other}" for own, other in _TIED.items()},
        unread=(".position_ids", *(f"text_decoder.{name}" for name in _TIED)),
    ),
}

load = model_parts.loader(PARTS)
