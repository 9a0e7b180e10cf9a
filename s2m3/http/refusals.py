"""Errors over HTTP: the status, the JSON body, and the header that says when to try again.

Owns which error code has which status, and the check of a token. The body has the shape that OpenAI's clients read.
"""

from __future__ import annotations

import hmac
import math

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody

BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 400, 401, 403, 404
NOT_ACCEPTABLE, TIMEOUT, TOO_LARGE, WRONG_TYPE, TOO_MANY, HEADERS_TOO_LARGE = 406, 408, 413, 415, 429, 431
INTERNAL, BAD_GATEWAY, UNAVAILABLE, LATE = 500, 502, 503, 504
STATUSES = {
    ErrorCode.BAD_INPUT: BAD_REQUEST,
    ErrorCode.TOO_LARGE: TOO_LARGE,
    ErrorCode.OVERLOADED: TOO_MANY,
    ErrorCode.NO_ROUTE: UNAVAILABLE,
    ErrorCode.MODULE_FAILED: UNAVAILABLE,
    ErrorCode.DEADLINE_EXCEEDED: LATE,
}
RETRY_S = {ErrorCode.OVERLOADED: 1.0, ErrorCode.NO_ROUTE: 5.0, ErrorCode.DEADLINE_EXCEEDED: 1.0}
"""The wait before another attempt, where the error names none."""
_UNREAD = {
    UNAUTHORIZED,
    FORBIDDEN,
    TIMEOUT,
    TOO_LARGE,
    WRONG_TYPE,
    TOO_MANY,
    HEADERS_TOO_LARGE,
}  # a part of the body may not be read
NOT_FOUND_CODE = "not_found"


class Refusal(Exception):
    """A request that ends without an answer. ``code`` is for programs, ``message`` for people."""

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: float | None = None, param: str | None = None
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param
        super().__init__(message)

    def response(self) -> JSONResponse:
        """The response that says so."""
        kind = "server_error" if self.status >= INTERNAL else "invalid_request_error"
        if self.status == TOO_MANY:
            kind = "rate_limit_error"
        body = {"code": self.code, "message": self.message, "type": kind, "param": self.param}
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in _UNREAD:
            headers["Connection"] = "close"
        return JSONResponse({"error": body}, self.status, headers)


async def refused(_: Request, error: Exception) -> JSONResponse:
    """The response of an application to a request for which a ``Refusal`` was raised."""
    assert isinstance(error, Refusal)  # noqa: S101 - it is the handler of this class
    return error.response()


def shows_token(headers: Headers, token: str) -> bool:
    """Whether a request shows the token: ``Authorization: Bearer TOKEN``. It takes equally long for any other one."""
    scheme, _, shown = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode("latin-1"), token.encode())


def refusal_of(error: ErrorBody) -> Refusal:
    """The refusal of a request that the site ended with this error."""
    wait_s = error.retry_after_s if error.retry_after_s is not None else RETRY_S.get(error.code)
    return Refusal(STATUSES[error.code], error.code, error.message, retry_after_s=wait_s)


def no_task(task: str) -> Refusal:
    """The refusal of a task that isn't deployed."""
    message = f"no task {task[:64]!r} is deployed: GET /v1/tasks lists those that are"
    return Refusal(NOT_FOUND, NOT_FOUND_CODE, message)


def no_model(name: str) -> Refusal:
    """The refusal of a model for vectors of texts, which is a task that isn't deployed."""
    message = f"there is no model {name[:64]!r}: GET /v1/models lists those that are deployed"
    return Refusal(NOT_FOUND, NOT_FOUND_CODE, f"{message} (`s2m3 deploy pocket/embed-text` deploys one)", param="model")
