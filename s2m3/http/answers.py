"""The response of an answered request: JSON, or a safetensors document for a client that accepts one.

Owns how arrays stand in JSON.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse, Response

from broker import client
from broker.protocol.codec import JSON, SAFETENSORS, encode_result
from broker.protocol.tensors import Tensors
from s2m3.http.refusals import NOT_ACCEPTABLE, Refusal

MAX_NUMBERS = 60_000  # of an answer's arrays in JSON; more are for safetensors


def accepts(accept: str, media_type: str) -> bool:
    """Whether an Accept header names this media type itself, not by a ``*``."""
    for each in accept.split(","):
        name, *parameters = (part.strip().lower() for part in each.split(";"))
        if name == media_type:
            return not any(_is_zero(part) for part in parameters)
    return False


def response_of(answered: client.Response, accept: str) -> Response:
    """The response with an answer. JSON has an output's arrays as lists of numbers, under ``tensors``.

    Raises:
        Refusal: the client wants JSON, and the arrays are too long for it, or have numbers that it has not.
    """
    headers = {"Request-Id": answered.result.request}
    if answered.tensors and accepts(accept, SAFETENSORS):
        payload, media_type = encode_result(answered.result, answered.tensors)
        return Response(payload, media_type=media_type, headers=headers)
    document: dict[str, Any] = answered.result.model_dump(mode="json", exclude_none=True)
    document |= {"latency_s": answered.latency_s, "attempts": answered.attempts}
    if answered.tensors:
        document["tensors"] = _listed(answered.tensors)
    return JSONResponse(document, headers=headers, media_type=JSON)


def _listed(tensors: Tensors) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415 - it takes 12 MB of a process that may see no array

    numbers = sum(array.size for array in tensors.values())
    if numbers > MAX_NUMBERS or not all(np.isfinite(array).all() for array in tensors.values()):
        problem = f"has {numbers} numbers" if numbers > MAX_NUMBERS else "has numbers that JSON can't write"
        message = f"the output {problem}: ask for it with Accept: {SAFETENSORS}"
        raise Refusal(NOT_ACCEPTABLE, "not_acceptable", message)
    return {
        name: {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.tolist()}
        for name, array in tensors.items()
    }


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    try:
        return name.strip() == "q" and math.isclose(float(value), 0.0)
    except ValueError:
        return False
