"""Pictures and sentences in one space without training: ConSE (Norouzi et al. 2013, arXiv:1312.5650), and a question.

A picture's embedding is the mean of its likeliest classes' name embeddings, weighted by their probabilities (ConSE's
ten, section 3 of the paper). Captions are ranked by their cosine with it: zero-shot classification.

There is no training data for question answering here, so a question has two effects. It raises the weights of the
classes whose names are near it (softmax attention over cosines), and its own cosine with each answer counts a little.
Measured on ``tests/equivalence/questions.yaml``, four answers to most questions: of the 45 on which the rule was chosen
38 are right (35 without the question, 12 by chance), of 16 held out 15 (15, 4): nearly all comes from the picture and
the answers. It can name what the classifier saw; it can't count, read or locate.

    part          weights                          takes
    embeddings    1,000 class names (1000, 384)    ``probs`` (1, 1000), n texts' ``embeddings`` (n, 384), the texts; or
                                                   ``probs``, a question's ``embeddings`` (1, 384), theirs, the texts

It gives ``scores`` float32 (n,) and the answer; the one module serves both tasks. The weights are made by
``python -m tests.equivalence.name_embeddings``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from broker.protocol.specs import ModuleSpec
from edge_agent.modules import Module, Pass
from edge_agent.modules.inputs import steps
from edge_agent.modules.inputs.answers import Ranked
from edge_agent.modules.inputs.imagenet import CLASSES
from edge_agent.modules.weights import check_size, packaged_tensors, precision

WIDTH = 384  # of the sentence encoder
TENSOR = "embeddings"
LIKELIEST = 10  # classes that make the picture's embedding, as in the paper
ATTENTION_TEMPERATURE = 0.1  # how sharply a question chooses among them
QUESTION_WEIGHT = 0.2  # how much an answer's own nearness to the question counts


STEPS = steps.Ranking(
    needs=(steps.Arrays(shapes={"probs": (1, CLASSES)}),),
    question=steps.Arrays(shapes={TENSOR: (1, WIDTH)}, names={TENSOR: "question"}, question=True),
    embeddings=TENSOR,
    taken="candidates",
    width=WIDTH,
    result=Ranked(scores="scores"),
)
"""The steps: a picture's classes, perhaps a question, and texts to rank, as ``answer`` where there is a question."""


def rank(names: Tensor, probs: Tensor, candidates: Tensor, question: Tensor | None = None) -> dict[str, Tensor]:
    """Texts (n, 384), and a question (1, 384), or (0, 384) without one, to ``scores`` (n,) between -1 and 1."""
    if question is None:
        question = candidates[:0]
    seen = picture(names, probs, question) @ candidates.T  # (1, n)
    fitting = (question @ candidates.T).sum(0)  # (n,)
    weight = QUESTION_WEIGHT * question.shape[0]
    return {"scores": (seen[0] + QUESTION_WEIGHT * fitting) / (1 + weight)}


def picture(names: Tensor, probabilities: Tensor, question: Tensor) -> Tensor:
    """The embedding (1, 384) of a picture with class probabilities (1, 1000), in the light of a question.

    ``names`` are the embeddings (1000, 384) of the class names; the question is (1, 384), or (0, 384) without one.
    """
    best = torch.sort(probabilities, descending=True, stable=True)
    likeliest = best.values[:, :LIKELIEST]  # (1, 10)
    near = names[best.indices[0, :LIKELIEST]].float()  # (10, 384)
    likeliest = likeliest * ((question @ near.T) / ATTENTION_TEMPERATURE).sum(0).exp()  # (1, 10)
    return functional.normalize(likeliest @ near)  # (1, 384)


def load(spec: ModuleSpec) -> Module:
    """Load the head.

    Raises:
        ModuleRefused: the weights aren't there or don't fit.
    """
    names = packaged_tensors.read(spec, "embeddings", {TENSOR: (CLASSES, WIDTH)})
    check_size(spec, precision.memory_bytes(names.values()))
    return Module(names[TENSOR], {None: Pass(STEPS, rank)})  # computes in float32, whatever the names are held in


def memory_bytes(spec: ModuleSpec) -> int:
    """Bytes of the names' embeddings in the spec's dtype; int8 leaves a table as it is."""
    return precision.shapes_bytes({TENSOR: (CLASSES, WIDTH)}, "float32" if spec.dtype == precision.INT8 else spec.dtype)
