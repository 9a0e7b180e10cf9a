"""ViLT (Kim et al. 2021, arXiv:2102.03334), an answerer of questions about pictures, as one fused module.

    part    weights                     takes                          gives (and nothing else crosses the wire)
    answer  ``vilt.``, ``classifier.``  a picture's bytes, a question  ``logits`` float32 (1, c), and the answers

ViLT has one stream: words and patches meet in the first layer, so there is no cut between modalities at which less
would cross than what a sensor sends. A device holds all of it or none.

transformers draws the order of a picture's patches at random. An order changes rounding only; here it is the picture's
own, so that the same values give the same bits.
"""

from __future__ import annotations

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

from edge_agent.modules import SCORES
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.inputs.answers import Likeliest
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


def answer_question(network: ViltForQuestionAnswering, ids: Tensor, pixels: Tensor, **_: Tensor) -> dict[str, Tensor]:
    """A question (1, t) about a picture (1, 3, h, w) to ``logits`` (1, c); all tokens are real."""
    patches = embed_picture(network, pixels)
    every = torch.ones(patches.shape[:2], dtype=torch.int64, device=patches.device)
    joined, _ = network.vilt.embeddings(ids, torch.ones_like(ids), None, None, every, None, patches)
    hidden = network.vilt.layernorm(network.vilt.encoder(joined, attention_mask=None)[0])  # (1, t + 1 + p, d)
    pooler = cast("nn.Module", network.vilt.pooler)  # answering has one; other uses of ViLT don't
    logits = network.classifier(pooler(hidden))
    return {"logits": logits, SCORES: logits.float().sigmoid()}


def _config(config: Config) -> ViltConfig:
    return ViltConfig(**config)


def _identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    wanted = f"{prepare.VISION} {prepare.TEXT} type_vocab_size modality_type_vocab_size qkv_bias"
    own = prepare.identity(_config, wanted, pictures=ViltImageProcessorPil, texts=True)(checkpoint)
    return own | {"labels": [*prepare.labels(_config(checkpoint.config))]}


def _steps(checkpoint: Checkpoint) -> steps.Steps:
    config = _config(checkpoint.config)
    picture = prepare.picture(prepare.processor(checkpoint, ViltImageProcessorPil))
    tokenizer = prepare.tokenizer(checkpoint, BertTokenizer)
    question = prepare.texts(tokenizer, config.max_position_embeddings, joined=True)
    answer = Likeliest(what="answer", labels=tuple(prepare.labels(config)), most=RANKED)
    return steps.Steps((picture, question), answer)


PARTS: model_parts.Parts = {
    "answer": model_parts.Part(
        prefixes={"vilt": [{"vilt.": "vilt.", "classifier.": "classifier."}]},
        build=lambda config: ViltForQuestionAnswering(_config(config)),
        identity=_identity,
        steps=_steps,
        forwards=ordinary(
            answer_question,
            "One picture of 384 x 512 pixels and a question of ten tokens.",
            lambda network: {"ids": (1, QUESTION_TOKENS), "pixels": (1, network.config.num_channels, *PICTURE)},
        ),
    ),
}

load = model_parts.loader(PARTS)
