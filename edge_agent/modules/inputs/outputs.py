"""The answer for the sensor, in one form for all families.

Owns the form. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from pydantic import JsonValue


def ranking(what: str, texts: Sequence[str], scores: ArrayLike, most: int | None = None) -> dict[str, JsonValue]:
    """The best text under the name ``what``, its score, and the best ``most`` of them (all by default), best first.

    Args:
        what: The name of a text: ``label``, ``answer``.
        texts: n texts.
        scores: Their scores (n,); ties stay in the order of the texts.
        most: How many are named.
    """
    values = np.asarray(scores)
    order = np.argsort(-values, kind="stable").tolist()
    ranked: list[JsonValue] = [{what: texts[index], "score": float(values[index])} for index in order[:most]]
    return {what: texts[order[0]], "score": float(values[order[0]]), "ranked": ranked}
