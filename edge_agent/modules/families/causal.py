"""A causal language model that answers a prompt with a picture in it: what LLaVA and SmolVLM share.

Owns the network that transformers builds from ``text_config``, the picture's vectors in the place of its tokens, and
greedy decoding with the KV cache, all inside one module: neither the cache nor logits ever cross the wire. Knows no
family's prompt.

    takes                                            gives
    the picture's vectors float32 (1, p, d), the     ``tokens`` int64 (1, t), the new ones and the end among them, and
    question                                         the answer that they spell

Invariant: the tokens are those of the whole model's ``generate`` with the same limit. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from broker.protocol.tensors import Tensors
from edge_agent.modules import Prepared, Value
from edge_agent.modules.families import generation
from edge_agent.modules.inputs import decoding, prepare, sample_inputs
from edge_agent.modules.inputs.limits import MAX_QUESTION_TOKENS
from edge_agent.modules.inputs.picture_file import too_large
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.layout import read_object
from edge_agent.modules.weights.model_parts import Forwards, Shapes, ordinary

IMAGE = "<image>"
"""The placeholder of the picture in a prompt, once for each of its vectors."""
MOST_TOKENS = 64  # of an answer
PROMPT_TOKENS, ANSWER_TOKENS = 24, 16  # of the pass that is counted, besides the picture's
_GENERATION = "generation_config.json"
# Of a text_config: neither arithmetic, nor read here.
_HISTORY = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")

Language = LlamaForCausalLM | Qwen2ForCausalLM


def text_config(config: Config) -> LlamaConfig | Qwen2Config:
    """The language model's configuration, from a whole model's; its dtype is the spec's, not the publisher's."""
    fields = {name: value for name, value in config["text_config"].items() if name not in _HISTORY}
    kind = fields.get("model_type", "llama")
    kinds: dict[str, type[LlamaConfig | Qwen2Config]] = {"llama": LlamaConfig, "qwen2": Qwen2Config}
    if kind not in kinds:
        msg = f"text_config names {kind}, and only {', '.join(kinds)} are known"
        raise ValueError(msg)
    return kinds[kind].from_dict(fields)


def build(config: Config) -> Language:
    """The network, with its own generation settings left empty: ``generate`` has them all."""
    own = text_config(config)
    network: Language = LlamaForCausalLM(own) if isinstance(own, LlamaConfig) else Qwen2ForCausalLM(own)
    network.generation_config = cast("Any", GenerationConfig)()
    return network


def tied(config: Config) -> bool:
    """Whether the output matrix is the embedding."""
    own: dict[str, Any] = config["text_config"]
    return bool(config.get("tie_word_embeddings") or own.get("tie_word_embeddings"))


def image_token(config: Config) -> int:
    """The id of ``IMAGE``."""
    return int(config["image_token_index"] if "image_token_index" in config else config["image_token_id"])


def ends(checkpoint: Checkpoint) -> list[int]:
    """The tokens that end an answer: generation_config.json's, else config.json's.

    Raises:
        ModuleRefused: a file is not JSON.
    """
    path = checkpoint.repository.path(_GENERATION)
    found = read_object(path).get("eos_token_id") if path is not None else None
    if found is None:
        found = text_config(checkpoint.config).eos_token_id
    return [] if found is None else [int(each) for each in (found if isinstance(found, list) else [found])]


def identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    """The part of the configuration that changes the answer."""
    own = text_config(checkpoint.config)
    wanted = (
        "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "hidden_act rms_norm_eps rope_parameters max_position_embeddings head_dim attention_bias "
        "mlp_bias use_sliding_window"
    )
    fields: dict[str, JsonValue] = {name: getattr(own, name, None) for name in wanted.split()}
    return fields | {
        "tied": tied(checkpoint.config),
        "image": image_token(checkpoint.config),
        "ends": [*ends(checkpoint)],
        "most": MOST_TOKENS,
        "vocabulary": prepare.vocabulary(checkpoint),
    }


def settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments of ``generate`` besides tensors.

    Raises:
        ModuleRefused: a file is not JSON.
    """
    return {"image": image_token(checkpoint.config), "end": ends(checkpoint)}


def generate(
    network: PreTrainedModel, ids: Tensor, picture: Tensor, *, image: int, end: list[int]
) -> dict[str, Tensor]:
    """The most probable tokens after a prompt: the new ids ``tokens`` (1, t), int64, until one of ``end``.

    In the prompt ``ids`` (1, n) the token ``image`` stands once for each of the ``picture``'s vectors (1, p, d).
    """
    embedded = cast("Any", network).get_input_embeddings()(ids)  # (1, n, d)
    place = (ids == image).unsqueeze(-1)  # (1, n, 1)
    embedded = embedded.masked_scatter(place, picture.to(embedded.dtype))
    found = cast("Any", network).generate(
        inputs_embeds=embedded,
        attention_mask=torch.ones_like(ids),
        eos_token_id=end or None,
        pad_token_id=end[0] if end else 0,
        **generation.limits(MOST_TOKENS),
    )
    return {"tokens": found}


def _one_pass(network: Language, inputs_embeds: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
    """The pass of a prompt and of its answer: each token once, as ``generate`` does with its cache."""
    logits = network(
        inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False, logits_to_keep=ANSWER_TOKENS
    ).logits
    return {"tokens": logits.argmax(dim=-1)}


def answering(typical: str) -> Forwards[Language]:
    """The forwards of a language model that answers a prompt with a picture in it; ``typical`` describes the pass."""

    def shapes(network: Language) -> Shapes:
        length = network.config.picture_tokens + PROMPT_TOKENS + ANSWER_TOKENS
        return {"inputs_embeds": (1, length, network.config.hidden_size), "attention_mask": (1, 1, length, length)}

    return ordinary(generate, typical, shapes, _one_pass)


class PromptSteps:
    """A picture's vectors and a question to an answer.

    Args:
        checkpoint: Its tokenizer, and its token for a picture's vector.
        prompt: The family's prompt, with ``{image}`` and ``{question}``.
        placeholder: The picture's place in the prompt: ``IMAGE`` once a vector. Given the picture's value and their
            number; it may raise RequestFailed.
        sample: The value of a picture to measure with.

    Raises:
        ModuleRefused: a file is missing or wrong.
    """

    def __init__(
        self, checkpoint: Checkpoint, prompt: str, placeholder: Callable[[Value, int], str], sample: Tensors
    ) -> None:
        self._tokenizer = prepare.tokenizer(checkpoint, AutoTokenizer)
        self._image = image_token(checkpoint.config)
        self._width = text_config(checkpoint.config).hidden_size
        self._prompt = prompt
        self._placeholder = placeholder
        self._sample = sample
        self.answer = generation.Spelled(self._tokenizer, "answer")

    def prepare(self, values: Sequence[Value]) -> Prepared:
        """The picture's vectors (1, p, d), and the prompt's tokens, ``IMAGE`` p times among them.

        Raises:
            RequestFailed: ``bad_input`` when the question names ``IMAGE``, too; ``too_large`` when it has too many
                tokens: some texts have four a character.
        """
        decoding.count(values, 2)
        picture = decoding.array(values[0], "image_embeds", (1, None, self._width))
        image = self._placeholder(values[0], picture.shape[1])
        question = _question(values[1])
        if (count := len(self._tokenizer(question)["input_ids"])) > MAX_QUESTION_TOKENS:
            raise too_large(f"the question has {count} tokens, at most {MAX_QUESTION_TOKENS} are allowed: shorten it")
        prompt = self._prompt.format(image=image, question=question)
        ids = self._tokenizer(prompt, return_tensors="np")["input_ids"]
        if int((ids == self._image).sum()) != picture.shape[1]:
            raise decoding.bad_input(f"the question has {IMAGE} in it, which stands for the picture: leave it out")
        return Prepared({"ids": ids, "picture": picture})

    def sample(self) -> tuple[Value, ...]:
        """A picture's vectors and a question."""
        return self._sample, sample_inputs.question()


def _question(value: Value) -> str:
    lines = decoding.lines(value)
    decoding.one_question(lines)
    return lines[0]
