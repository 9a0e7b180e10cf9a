"""Pictures and sentences in one space without training: ConSE (Norouzi et al. 2013, arXiv:1312.5650), and a question.

A picture's embedding is the mean of its likeliest classes' name embeddings, weighted by their probabilities (ConSE's
ten, section 3 of the paper). Captions are ranked by their cosine with it: zero-shot classification.

For question answering there is no training data here, so the question does two plain things: it turns the classes'
weights towards those whose names are near the question (softmax attention over cosines), and its own cosine with each
answer counts a little. Measured on ``tests/equivalence/questions.yaml``, four answers to most questions: of the 45
on which the rule was chosen 38 are right (35 without the question, 12 by chance), of 16 held out 15 (15, 4). So
nearly all comes from the picture and the answers, and little from the question. It can name what the classifier saw;
it can't count, read or locate.

    part          weights                          takes
    embeddings    1,000 class names (1000, 384)    ``probs`` (1, 1000), n texts' ``embeddings`` (n, 384), the texts; or
                                                   ``probs``, a question's ``embeddings`` (1, 384), theirs, the texts

It gives ``scores`` float32 (n,) and the answer; the one module serves both tasks. The weights are made by
``python -m s2m3.reference.name_embeddings``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.specs import ModuleSpec
from edge_agent.modules import Module, Output, Value
from edge_agent.modules.inputs import decoding, outputs, sample_inputs
from edge_agent.modules.inputs.imagenet import CLASSES
from edge_agent.modules.weights import packaged, precision

WIDTH = 384  # of the sentence encoder
TENSOR = "embeddings"
LIKELIEST = 10  # classes that make the picture's embedding, as in the paper
ATTENTION_TEMPERATURE = 0.1  # how sharply a question chooses among them
QUESTION_WEIGHT = 0.2  # how much an answer's own nearness to the question counts


class Head:
    """The head with the embeddings of the class names."""

    def __init__(self, names: Tensor) -> None:
        self._names = names  # (1000, 384), rows of length 1

    def typical(self) -> tuple[Value, ...]:
        """A picture's classes, four captions' embeddings, and these."""
        probs, embeddings = (
            sample_inputs.arrays({"probs": (1, CLASSES)}),
            sample_inputs.arrays({TENSOR: (sample_inputs.TEXTS, WIDTH)}),
        )
        return probs, embeddings, sample_inputs.texts()

    def __call__(self, *values: Value) -> Output:
        """(``probs``, ``embeddings``, texts) or (``probs``, question, ``embeddings``, texts) to ``scores`` (n,)."""
        decoding.count(values, 3, 4)
        probs, *asked, embedded, sent = values
        texts = decoding.lines(sent)
        with torch.inference_mode():
            probabilities = decoding.tensor(probs, "probs", (1, CLASSES))
            candidates = decoding.tensor(embedded, TENSOR, (len(texts), WIDTH))  # (n, 384)
            if not asked:
                scores = (picture(self._names, probabilities) @ candidates.T)[0]  # (n,)
                return Output({"scores": scores.numpy()}, outputs.ranking("label", texts, scores))
            question = decoding.tensor(asked[0], TENSOR, (None, WIDTH))  # (1, 384)
            if len(question) != 1:
                raise RequestFailed(
                    ErrorCode.BAD_INPUT, f"the question has {len(question)} lines: send one question on one line"
                )
            seen = picture(self._names, probabilities, question) @ candidates.T  # (1, n)
            fitting = question @ candidates.T  # (1, n)
            scores = ((seen + QUESTION_WEIGHT * fitting) / (1 + QUESTION_WEIGHT))[0]  # (n,), between -1 and 1
            return Output({"scores": scores.numpy()}, outputs.ranking("answer", texts, scores))


def picture(names: Tensor, probabilities: Tensor, question: Tensor | None = None) -> Tensor:
    """The embedding (1, 384) of a picture.

    Args:
        names: Embeddings of the class names (1000, 384).
        probabilities: The picture's class probabilities (1, 1000).
        question: The embedding (1, 384) of a question in whose light it is seen, or None.
    """
    best = torch.sort(probabilities, descending=True, stable=True)
    likeliest = best.values[:, :LIKELIEST]  # (1, 10)
    near = names[best.indices[0, :LIKELIEST]].float()  # (10, 384)
    if question is not None:
        likeliest = likeliest * ((question @ near.T) / ATTENTION_TEMPERATURE).exp()  # (1, 10)
    return functional.normalize(likeliest @ near)  # (1, 384)


def load(spec: ModuleSpec) -> Module:
    """Load the head.

    Raises:
        ModuleRefused: the weights aren't there or don't fit.
    """
    names = packaged.read(spec, "embeddings", {TENSOR: (CLASSES, WIDTH)})
    precision.check(spec, precision.memory_bytes(names.values()))
    return Head(names[TENSOR])


def memory_bytes(spec: ModuleSpec) -> int:
    """Bytes of the names' embeddings in the spec's dtype; int8 leaves a table as it is."""
    return precision.shapes_bytes({TENSOR: (CLASSES, WIDTH)}, "float32" if spec.dtype == precision.INT8 else spec.dtype)
