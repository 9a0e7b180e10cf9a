"""Answers for the sensor as frozen values: each makes an ``Output`` of one kind from a module's arrays.

Owns these kinds and the form of rankings. Knows no network and no engine. A value is described by its fields as JSON.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from pydantic import Field, JsonValue, StringConstraints

from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array
from broker.protocol.values import Spec
from edge_agent.modules import SCORES, Output, Prepared

MAX_LABELS = 65_536
_MASKED = 0.5  # probability from which a pixel belongs to a text
_Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Answer(Protocol):
    """Makes the output of what ``forward`` gave."""

    def __call__(self, arrays: Mapping[str, Array], prepared: Prepared, /) -> Output:
        """The output."""


class AsItIs(Spec):
    """The arrays of ``forward`` as the output, without an answer for the sensor."""

    kind: Literal["as it is"] = "as it is"

    def __call__(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        """The output."""
        return Output(finite(arrays))


class Likeliest(Spec):
    """The answer of a classifier: its likeliest ``most`` labels, under the name ``what``, by the array ``scores``."""

    kind: Literal["likeliest"] = "likeliest"
    what: _Name = "label"
    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LABELS)]
    most: Annotated[int, Field(ge=1, le=1000)] = 5
    scores: _Name = SCORES

    def __call__(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        """The output."""
        return Output(sent(arrays), ranking(self.what, self.labels, arrays[self.scores], self.most))


class Ranked(Spec):
    """The given texts, best first, under the name ``what``, by the array ``scores`` (n,) or (1, n).

    Where an array ``question`` was prepared, the name is ``asked``. ``also`` names arrays of one number each that the
    answer has besides.
    """

    kind: Literal["ranked"] = "ranked"
    what: _Name = "label"
    asked: _Name = "answer"
    scores: _Name = SCORES
    also: tuple[_Name, ...] = ()

    def __call__(self, arrays: Mapping[str, Array], prepared: Prepared) -> Output:
        """The output."""
        what = self.asked if "question" in prepared.arrays else self.what
        more: dict[str, JsonValue] = {name: float(arrays[name].reshape(-1)[0]) for name in self.also}
        return Output(sent(arrays), ranking(what, prepared.texts, arrays[self.scores]) | more)


class Masks(Spec):
    """A mask for each of the given texts, by probabilities ``SCORES`` (n, s, s)."""

    kind: Literal["masks"] = "masks"

    def __call__(self, arrays: Mapping[str, Array], prepared: Prepared) -> Output:
        """The output."""
        return Output(sent(arrays), masks(prepared.texts, arrays[SCORES]))


def sent(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of ``forward`` that cross the wire.

    Raises:
        RequestFailed: as ``finite`` does, of the scores, too.
    """
    return {name: array for name, array in finite(arrays).items() if name != SCORES}


def finite(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays, if all their numbers are finite: of others, the likeliest label is any.

    Raises:
        RequestFailed: ``module_failed``: they aren't.
    """
    if name := next((each for each, array in arrays.items() if not np.isfinite(array).all()), None):
        raise RequestFailed(
            ErrorCode.MODULE_FAILED,
            f"this module's {name} has numbers that aren't finite (NaN or too large) for this input: correct its "
            "weights or its preparation, or export it in float32",
        )
    return dict(arrays)


def ranking(what: str, texts: Sequence[str], scores: ArrayLike, most: int | None = None) -> dict[str, JsonValue]:
    """The best of n texts by scores (n,) under the name ``what``, its score, and the best ``most`` texts, best first.

    All are named by default; ties stay in the order of the texts.
    """
    values = np.asarray(scores).reshape(-1)
    order = np.argsort(-values, kind="stable").tolist()
    ranked: list[JsonValue] = [{what: texts[index], "score": float(values[index])} for index in order[:most]]
    return {what: texts[order[0]], "score": float(values[order[0]]), "ranked": ranked}


def masks(texts: Sequence[str], probabilities: Array) -> dict[str, JsonValue]:
    """The answer of probabilities (n, s, s): for each text its share of the picture, its box, and its mask.

    ``score`` is the highest probability of a pixel, ``area`` the share of pixels of at least one half, ``box`` their
    bounds (left, top, right, bottom) as shares of the picture's sides, null when there isn't any, and ``mask`` a PNG of
    one bit a pixel, s x s, in base64.
    """
    segments: list[JsonValue] = []
    for text, one in zip(texts, probabilities, strict=True):
        mask = one >= _MASKED  # (s, s)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box: list[JsonValue] | None = None
        if len(rows):
            height, width = mask.shape
            box = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
            box = [float(cast("float", side)) for side in box]
        png = io.BytesIO()
        Image.fromarray(mask).save(png, "PNG")
        segments.append(
            {
                "label": text,
                "score": float(one.max()),
                "area": float(mask.mean()),
                "box": box,
                "mask": base64.b64encode(png.getvalue()).decode(),
            }
        )
    return {"segments": segments}
