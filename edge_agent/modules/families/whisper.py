"""Whisper (Radford et al. 2022, arXiv:2212.04356), speech to text, cut between its encoder and its decoder.

    part       weights              takes                   gives (and nothing else crosses the wire)
    encoder    ``model.encoder.``   a wav's bytes           ``states`` float32 (1, s, d), s = 1500 for 30 s
    decoder    ``model.decoder.``   ``states``              ``tokens`` int64 (1, t), and the text

All of the text is generated inside the decoder, with its KV cache, greedily, without timestamps: the language is that
of the likeliest language token, then the tokens of transcription. ``tokens`` are those after these and before the end,
as transformers' ``generate`` gives them; but were a model to write a timestamp all the same, ``generate`` would listen
again from there, and this decoder goes on. What a token means stands in generation_config.json.
The decoder's matrix of words is its output layer too, and is held once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from broker.protocol.errors import ModuleRefused
from broker.protocol.tensors import Array
from edge_agent.modules import Value
from edge_agent.modules.families import generation
from edge_agent.modules.inputs import audio, prepare, sample_inputs, steps
from edge_agent.modules.weights import identity, model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.layout import read_object
from edge_agent.modules.weights.model_parts import ordinary, tower

MOST_TOKENS = 224  # of 30 s, as its authors generate: half of what the decoder can hold
GENERATION = "generation_config.json"
# What of preprocessor_config.json says how sound is prepared.
SOUND = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value", "dither")


@dataclass(frozen=True)
class Tokens:
    """The tokens that mean something, from generation_config.json."""

    start: int
    end: int
    languages: tuple[int, ...]  # empty: the model has one language, and its prompt names none
    prompt: tuple[int, ...]  # after start and language
    never: tuple[int, ...]
    never_first: tuple[int, ...]


def _tokens_of(fields: Mapping[str, JsonValue]) -> Tokens:
    def ids(value: JsonValue) -> tuple[int, ...]:
        return tuple(int(each) for each in cast("list[int]", value or []))

    languages = ids([*cast("dict[str, JsonValue]", fields.get("lang_to_id") or {}).values()])
    task = (cast("dict[str, int]", fields["task_to_id"])["transcribe"],) if languages else ()
    return Tokens(
        start=int(cast("int", fields["decoder_start_token_id"])),
        end=int(cast("int", fields["eos_token_id"])),
        languages=languages,
        prompt=ids([*task, fields["no_timestamps_token_id"]]),
        never=ids(fields.get("suppress_tokens")),
        never_first=ids(fields.get("begin_suppress_tokens")),
    )


class Decoder(nn.Module):
    """The decoder under its output layer."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.decoder = WhisperDecoder(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (1, t, d) to the scores (1, t, v) of all words."""
        return functional.linear(hidden, self.decoder.embed_tokens.weight)

    def generate(self, states: Tensor, *, tokens: Tokens) -> dict[str, Tensor]:
        """States (1, s, d) to the likeliest ``tokens`` (1, t), one after the other."""
        prompt = [tokens.start, *self._language(states, tokens), *tokens.prompt]
        given, cache = torch.tensor([prompt], device=states.device), None
        found: list[int] = []
        while len(found) < MOST_TOKENS:
            step = self.decoder(input_ids=given, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
            scores = self.forward(step.last_hidden_state[:, -1:])[0, -1].float()  # (v,)
            scores[list(tokens.never if found else {*tokens.never, *tokens.never_first})] = -torch.inf
            best = int(scores.argmax())
            if best == tokens.end:
                break
            found.append(best)
            given, cache = torch.tensor([[best]], device=states.device), step.past_key_values
        return {"tokens": torch.tensor([found], dtype=torch.int64)}

    def _language(self, states: Tensor, tokens: Tokens) -> list[int]:
        if not tokens.languages:
            return []
        start = torch.tensor([[tokens.start]], device=states.device)
        first = self.decoder(input_ids=start, encoder_hidden_states=states, use_cache=False)
        scores = self.forward(first.last_hidden_state)[0, -1]  # (v,)
        ids = torch.tensor(sorted(tokens.languages), device=states.device)
        return [int(ids[scores[ids].argmax()])]


def _config(config: Config) -> WhisperConfig:
    return WhisperConfig(**config)


def _extractor(checkpoint: Checkpoint) -> WhisperFeatureExtractor:
    return prepare.processor(checkpoint, WhisperFeatureExtractor, SOUND)


def _tokens(checkpoint: Checkpoint) -> Tokens:
    path = checkpoint.repository.required(GENERATION)
    try:
        found = _tokens_of(read_object(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModuleRefused(
            f"{path} doesn't say which tokens start and end a text ({error}): fetch it again"
        ) from error
    size = _config(checkpoint.config).vocab_size
    every = (found.start, found.end, *found.languages, *found.prompt, *found.never, *found.never_first)
    if strange := [token for token in every if not 0 <= token < size]:
        raise ModuleRefused(
            f"{path} names the token {strange[0]}, and config.json has {size} tokens: they are of different models; "
            "fetch both again"
        )
    return found


def _shape(config: WhisperConfig, side: str) -> dict[str, JsonValue]:
    return prepare.fields(
        config, f"{side}_layers {side}_attention_heads {side}_ffn_dim d_model activation_function scale_embedding"
    )


def _encoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config, extractor = _config(checkpoint.config), _extractor(checkpoint)
    sound = prepare.fields(extractor, " ".join(SOUND))
    bins, positions = config.num_mel_bins, config.max_source_positions
    return _shape(config, "encoder") | {"num_mel_bins": bins, "max_source_positions": positions, "sound": sound}


def _decoder_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config, tokens = _config(checkpoint.config), _tokens(checkpoint)
    fields: dict[str, JsonValue] = {
        "vocab_size": config.vocab_size,
        "max_target_positions": config.max_target_positions,
        "tokens": identity.fingerprint(cast("dict[str, JsonValue]", asdict(tokens))),
        "most": MOST_TOKENS,
        "vocabulary": prepare.vocabulary(checkpoint),
    }
    return _shape(config, "decoder") | fields


def _text(network: Decoder) -> model_parts.Shapes:
    config = network.decoder.config
    return generation.tokens_and_states(generation.CAPTION_TOKENS, (1, config.max_source_positions, config.d_model))


def _one_pass(network: Decoder, **tensors: Tensor) -> dict[str, Tensor]:
    hidden = network.decoder(**tensors, use_cache=False).last_hidden_state
    return {"tokens": network.forward(hidden).argmax(dim=-1)}


@dataclass(frozen=True)
class ExtractedSound:
    """A sound's wav bytes to ``features`` float32 (1, b, f), by transformers' feature extractor, which runs torch."""

    extractor: WhisperFeatureExtractor

    def read(self, value: Value) -> dict[str, Array]:
        """The features."""
        samples = audio.samples(value, self.extractor.sampling_rate, self.extractor.chunk_length)
        made = self.extractor(samples, sampling_rate=self.extractor.sampling_rate, return_tensors="np")
        return {"features": np.ascontiguousarray(made["input_features"], dtype=np.float32)}

    def sample(self) -> Value:
        """A sound of two seconds."""
        return sample_inputs.sound()


def _text_steps(checkpoint: Checkpoint) -> steps.Steps:
    config = _config(checkpoint.config)
    shapes = {"states": (1, config.max_source_positions, config.d_model)}
    answer = generation.Spelled(prepare.tokenizer(checkpoint, WhisperTokenizer), "text")
    return steps.Steps((steps.Arrays(shapes=shapes),), answer)


PARTS: model_parts.Parts = {
    "encoder": model_parts.Part(
        prefixes={"whisper": [{"model.encoder.": ""}]},
        build=lambda config: WhisperEncoder(_config(config)),
        identity=_encoder_identity,
        steps=lambda checkpoint: steps.Steps((ExtractedSound(_extractor(checkpoint)),)),
        forwards=tower(
            "states",
            "last_hidden_state",
            "One sound, padded to 30 seconds.",
            lambda network: {"features": (1, network.config.num_mel_bins, 2 * network.config.max_source_positions)},
            features="input_features",
        ),
    ),
    "decoder": model_parts.Part(
        prefixes={"whisper": [{"model.decoder.": "decoder."}]},
        build=lambda config: Decoder(_config(config)),
        identity=_decoder_identity,
        steps=_text_steps,
        forwards=ordinary(
            Decoder.generate,
            "A text of 16 tokens, the start's among them, each computed once, as with the cache.",
            _text,
            _one_pass,
        ),
        settings=lambda checkpoint: {"tokens": _tokens(checkpoint)},
        equal={"proj_out.weight": "model.decoder.embed_tokens.weight"},
    ),
}

load = model_parts.loader(PARTS)
