"""Embeddings as OpenAI's clients ask for them: texts to vectors, by a deployed task whose answer is ``embeddings``.

Owns the shapes of OpenAI's requests and responses, and how many texts become lines of one request.

Invariants:
- Each text has the vector that its own line was answered with; when one fails, the whole response is an error.
- No number is made up: there is no ``usage``, because no device reports tokens.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from broker.client import Response
from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import Route
from broker.protocol.sizes import show_count
from s2m3.http.refusals import BAD_GATEWAY, BAD_REQUEST, Refusal, no_model
from s2m3.http.site import Site

MOST_TEXTS = 2048  # as OpenAI's
LINES = 64  # of one request: as many as one text input may have
MAX_TEXTS_BYTES = 4 * 1024 * 1024


class EmbeddingsRequest(BaseModel):
    """The body of ``POST /v1/embeddings``. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None

    @property
    def texts(self) -> list[str]:
        """The texts, each on one line: a line break counts as a space."""
        given = [self.input] if isinstance(self.input, str) else self.input
        return [re.sub(r"\r\n|[\r\n]", " ", text) for text in given]


def read_request(body: bytes) -> EmbeddingsRequest:
    """The request in a body.

    Raises:
        Refusal: it isn't JSON, or a field is missing or wrong.
    """
    try:
        asked = EmbeddingsRequest.model_validate_json(body)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        field = str(place[0]) if place else None
        sentences = {
            "input": "input must be a text or a list of texts: token numbers can't be sent",
            "encoding_format": "encoding_format must be float or base64",
            "dimensions": "dimensions can't be chosen: a model has its own",
            "model": "model must be the name of a deployed task: GET /v1/models lists them",
        }
        message = sentences.get(field or "", "the body must be a JSON object with model and input")
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, message, param=field) from error
    if not 0 < len(asked.texts) <= MOST_TEXTS:
        message = f"input must have 1 to {MOST_TEXTS} texts, got {len(asked.texts)}"
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, message, param="input")
    if blank := [index for index, text in enumerate(asked.texts) if not text.strip()]:
        message = f"text {blank[0]} of input is empty: send texts with at least one character"
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, message, param="input")
    return asked


def is_model(route: Route) -> bool:
    """Whether a task makes vectors of texts."""
    return route.answer is not None and [spec.kind for spec in route.inputs.values()] == ["text"]


def described(route: Route) -> dict[str, object]:
    """A task as one of OpenAI's models."""
    return {"id": route.task, "object": "model", "created": 0, "owned_by": "s2m3"}


def model_of(site: Site, name: str) -> Route:
    """The task with this name, if it makes vectors of texts; raises Refusal otherwise."""
    route = site.routes.get(name)
    if route is None and site.why_hidden is None:
        raise site.refusal() or no_model(name)
    if route is None or not is_model(route):
        message = f"the task {name[:64]!r} makes no vectors of texts: GET /v1/models lists those that do"
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, message, param="model")
    return route


async def embed(
    site: Site, asked: EmbeddingsRequest, deadline_s: float, traceparent: str | None = None
) -> dict[str, object]:
    """The response, with one vector for each text, in order. The ``traceparent`` goes with each part.

    Raises:
        Refusal: a text has no vector.
    """
    route = model_of(site, asked.model)
    texts = asked.texts
    parts = [texts[first : first + LINES] for first in range(0, len(texts), LINES)]
    asking = [asyncio.ensure_future(_rows_of(site, route, part, deadline_s, traceparent)) for part in parts]
    try:
        rows = [row for part in await asyncio.gather(*asking) for row in part]
    finally:
        for each in asking:
            each.cancel()
    encode = _base64 if asked.encoding_format == "base64" else list
    data = [{"object": "embedding", "index": index, "embedding": encode(row)} for index, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": asked.model}


async def _rows_of(
    site: Site, route: Route, texts: Sequence[str], deadline_s: float, traceparent: str | None
) -> Sequence[Sequence[float]]:
    lines = RawInput("\n".join(texts).encode(errors="surrogatepass"), "text/plain; charset=utf-8")
    answered = await site.ask(route.task, {"text": lines}, deadline_s, traceparent)
    rows = _rows(answered)
    if len(rows) != len(texts):
        message = f"{route.task} answered {show_count(len(rows), 'vector')} for {show_count(len(texts), 'text')}"
        raise Refusal(BAD_GATEWAY, ErrorCode.MODULE_FAILED, message)
    return rows


def _rows(answered: Response) -> list[list[float]]:
    rows: Any = (answered.result.answer or {}).get("embeddings")
    is_table = isinstance(rows, list) and all(
        isinstance(row, list) and row and all(isinstance(number, float | int) for number in row) for row in rows
    )
    if not is_table or len({len(row) for row in rows}) > 1:
        raise Refusal(BAD_GATEWAY, ErrorCode.MODULE_FAILED, f"{answered.result.task} answered without vectors")
    return list(rows)


def _base64(row: Sequence[float]) -> str:
    import numpy as np  # noqa: PLC0415 - it takes 12 MB of a process that may see no array

    return base64.b64encode(np.asarray(row, "<f4").tobytes()).decode()
