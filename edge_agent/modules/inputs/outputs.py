"""What a module gives, in one form for all families: arrays for other nodes, and what a sensor reads.

Owns the form. Knows no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue
from torch import Tensor

from broker.protocol.tensors import Array


def ranking(what: str, texts: Sequence[str], scores: Tensor, most: int | None = None) -> dict[str, JsonValue]:
    """The best text under the name ``what``, its score, and the best ``most`` of them (all by default), best first.

    Args:
        what: The name of a text: ``label``, ``answer``.
        texts: n texts.
        scores: Their scores (n,); ties stay in the order of the texts.
        most: How many are named.
    """
    order = scores.sort(descending=True, stable=True).indices.tolist()
    ranked: list[JsonValue] = [{what: texts[index], "score": float(scores[index])} for index in order[:most]]
    return {what: texts[order[0]], "score": float(scores[order[0]]), "ranked": ranked}


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors as the wire takes them: contiguous, and float32 whatever they were computed in."""
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
        for name, tensor in tensors.items()
    }
