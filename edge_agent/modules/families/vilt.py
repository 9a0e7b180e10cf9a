"""ViLT (Kim et al. 2021, arXiv:2102.03334), an answerer of questions about pictures, as one fused module.

    part    weights                     takes                          gives (and nothing else crosses the wire)
    answer  ``vilt.``, ``classifier.``  a picture's bytes, a question  ``logits`` float32 (1, c), and the answers

ViLT has one stream: words and patches meet in the first layer, so there is no cut between modalities at which less
would cross than what a sensor sends. A device holds all of it or none.

transformers draws the order of a picture's patches at random. An order changes rounding only; here it is the picture's
own, so that the same values give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertTokenizer,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
)

from broker.protocol.tensors import Array
from edge_agent.modules import SCORES, Output, Prepared, Value
from edge_agent.modules.inputs import prepare, sample_inputs, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import ordinary

RANKED = 5  # answers named
PICTURE = (384, 512)  # pixels of the pass that is counted: 4 by 3, its shorter side as published
QUESTION_TOKENS = 10  # of the same: "what is the cat looking at" with start, end and question mark


def embed_picture(network: ViltForQuestionAnswering, pixels: Tensor) -> Tensor:
    """A picture (1, 3, h, w) to its embedded patches (1, 1 + p, d), class token first, row by row.

    ``ViltEmbeddings.visual_embed`` for one picture without padding, in order.
    """
    embeddings = network.vilt.embeddings
    patches = embeddings.patch_embeddings(pixels)  # (1, d, rows, columns)
    config = network.config
    side = cast("int", config.image_size) // cast("int", config.patch_size)
    learnt = embeddings.position_embeddings  # (1, 1 + side * side, d)
    spread = functional.interpolate(
        learnt[:, 1:, :].transpose(1, 2).view(1, -1, side, side),
        size=patches.shape[2:],
        mode="bilinear",
        align_corners=True,
    )
    seen = torch.cat((embeddings.cls_token, patches.flatten(2).transpose(1, 2)), dim=1)
    places = torch.cat((learnt[:, :1, :], spread.flatten(2).transpose(1, 2)), dim=1)
    return seen + places


def answer_question(network: ViltForQuestionAnswering, ids: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """A question (1, t) about a picture (1, 3, h, w) to ``logits`` (1, c)."""
    patches = embed_picture(network, pixels)
    every = torch.ones(patches.shape[:2], dtype=torch.int64)
    joined, _ = network.vilt.embeddings(ids, torch.ones_like(ids), None, None, every, None, patches)
    hidden = network.vilt.layernorm(network.vilt.encoder(joined, attention_mask=None)[0])  # (1, t + 1 + p, d)
    pooler = cast("nn.Module", network.vilt.pooler)  # answering has one; other uses of ViLT don't
    logits = network.classifier(pooler(hidden))
    return {"logits": logits, SCORES: logits.float().sigmoid()}


def _config(config: Config) -> ViltConfig:
    return ViltConfig(**config)


def _labels(config: Config) -> list[str]:
    names = cast("dict[int, str]", _config(config).id2label)
    return [names[index] for index in range(len(names))]


def _identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = _config(checkpoint.config)
    wanted = (
        "vocab_size type_vocab_size modality_type_vocab_size max_position_embeddings hidden_size num_hidden_layers "
        "num_attention_heads intermediate_size image_size patch_size num_channels qkv_bias hidden_act layer_norm_eps"
    )
    return prepare.fields(config, wanted) | {
        "pictures": prepare.pictures(checkpoint, ViltImageProcessorPil),
        "vocabulary": prepare.vocabulary(checkpoint),
        "labels": [*_labels(checkpoint.config)],
    }


def _picture_and_question(network: ViltForQuestionAnswering) -> dict[str, Tensor]:
    """One picture of 384 x 512 pixels and a question of ten tokens."""
    ids = torch.zeros(1, QUESTION_TOKENS, dtype=torch.int64)
    return {"ids": ids, "pixels": torch.empty(1, network.config.num_channels, *PICTURE)}


class AnswerSteps(steps.Picture):
    """A picture's bytes and a question to the likeliest answers."""

    values = 2

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(prepare.image_processor(checkpoint, ViltImageProcessorPil))
        self._tokenizer = prepare.tokenizer(checkpoint, BertTokenizer)
        self._longest = _config(checkpoint.config).max_position_embeddings
        self._labels = _labels(checkpoint.config)

    def read(self, *values: Value) -> Prepared:
        """The question's tokens and the picture's pixels; lines are one question."""
        ids = steps.tokens(self._tokenizer, [steps.question(values[1])], self._longest)["ids"]
        return Prepared({"ids": ids, "pixels": steps.pixels(self._processor, values[0])})

    def answer(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        """``logits`` (1, c) and the likeliest answers."""
        return steps.ranked("answer", self._labels, arrays, RANKED)

    def sample(self) -> tuple[Value, ...]:
        """A picture and a question."""
        return sample_inputs.picture(), sample_inputs.question()


PARTS: model_parts.Parts = {
    "answer": model_parts.Part(
        prefixes={"vilt": [{"vilt.": "vilt.", "classifier.": "classifier."}]},
        build=lambda config: ViltForQuestionAnswering(_config(config)),
        identity=_identity,
        steps=AnswerSteps,
        forwards=ordinary(answer_question, _picture_and_question),
    ),
}

load = model_parts.loader(PARTS)
