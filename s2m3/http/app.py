"""The application behind the door: its paths, and how each request becomes a request of the site.

Owns the paths, the token, and the deadline header. Doesn't know sockets: ``server`` does.

Invariants:
- A request that failed never has status 200.
- No body is read before its token, its length and its encoding were checked.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.protocol import messages
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import MAX_DEADLINE_S
from broker.protocol.sizes import show_bytes
from broker.protocol.trace_context import NAME, read_traceparent
from s2m3.http.answers import response_of
from s2m3.http.bodies import MAX_BODY_BYTES, Room, is_form, payload_of, read_body, size_of
from s2m3.http.embeddings import MAX_TEXTS_BYTES, described, embed, is_model, model_of, read_request
from s2m3.http.refusals import (
    BAD_REQUEST,
    FORBIDDEN,
    HEADERS_TOO_LARGE,
    INTERNAL,
    NOT_FOUND,
    UNAUTHORIZED,
    UNAVAILABLE,
    Refusal,
    refused,
    shows_token,
)
from s2m3.http.site import BACK_S, Site
from s2m3.listening import is_own_name

log = structlog.get_logger()

DEADLINE_S = 30.0
MAX_HEADER_BYTES = 16 * 1024  # the server bounds only headers that arrive in pieces
HEALTH = "/healthz"  # for what restarts processes: it needs no token
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Door:
    """The site, the token that clients must show (None: none), and the room for their requests."""

    site: Site
    token: str | None = field(repr=False)
    room: Room = field(default_factory=Room)


def application(door: Door) -> ASGIApp:
    """The whole application."""

    def within_room(endpoint: Endpoint, limit_bytes: int) -> Endpoint:
        async def answered(request: Request) -> Response:
            with door.room.taken(size_of(request.headers, limit_bytes)):
                return await endpoint(request)

        return answered

    async def ask(request: Request) -> Response:
        deadline_s = deadline_of(request.headers)
        body, content_type = await read_body(request, MAX_BODY_BYTES), request.headers.get("content-type", "")
        payload = await asyncio.to_thread(payload_of, body, content_type)  # some bodies take seconds
        parent = read_traceparent(*request.headers.getlist(NAME))
        with _hint_of(content_type):
            answered = await door.site.ask(request.path_params["task"], {"": payload}, deadline_s, parent)
        return response_of(answered, request.headers.get("accept", ""))

    async def tasks(_: Request) -> Response:
        _require_list(door.site)
        return JSONResponse({"tasks": [_described(route) for route in door.site.routes.values()]})

    async def embeddings(request: Request) -> Response:
        deadline_s = deadline_of(request.headers)
        asked = read_request(await read_body(request, MAX_TEXTS_BYTES))
        parent = read_traceparent(*request.headers.getlist(NAME))
        return JSONResponse(await embed(door.site, asked, deadline_s, parent))

    async def models(_: Request) -> Response:
        _require_list(door.site)
        found = [described(route) for route in door.site.routes.values() if is_model(route)]
        return JSONResponse({"object": "list", "data": found})

    async def model(request: Request) -> Response:
        return JSONResponse(described(model_of(door.site, request.path_params["model"])))

    async def health(_: Request) -> Response:
        if why := door.site.why_away:
            return JSONResponse({"status": "unavailable", "reason": why}, UNAVAILABLE)
        return JSONResponse({"status": "ok"})

    paths = [
        Route("/v1/tasks", tasks, methods=["GET"]),
        Route("/v1/tasks/{task}", within_room(ask, MAX_BODY_BYTES), methods=["POST"]),
        Route("/v1/embeddings", within_room(embeddings, MAX_TEXTS_BYTES), methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model}", model, methods=["GET"]),
        Route(HEALTH, health, methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {Refusal: refused, HTTPException: _not_served, Exception: _failed}
    app = Starlette(routes=paths, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirection would lead where the Host header says
    return _Guard(app, door.token)


@contextmanager
def _hint_of(content_type: str) -> Iterator[None]:
    """Where a body may have come by curl -d, let the refusal of an input say that this changes files."""
    try:
        yield
    except Refusal as error:
        if error.code != ErrorCode.BAD_INPUT or not is_form(content_type):
            raise
        hint = "curl -d changes a file's bytes, and --data-binary @FILE doesn't"
        raise Refusal(error.status, error.code, f"{error.message}; {hint}") from error


def deadline_of(headers: Headers) -> float:
    """The seconds of the header ``Deadline``; raises Refusal for anything else."""
    text = headers.get("deadline", "")
    try:
        deadline_s = float(text) if text else DEADLINE_S
    except ValueError:
        deadline_s = math.nan
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        message = f"Deadline must be greater than 0 and at most {MAX_DEADLINE_S:g} seconds, got {text[:32]!r}"
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, message)
    return deadline_s


def _require_list(site: Site) -> None:
    """Refuse where the deployed tasks aren't known: no broker, or an access rule that hides them."""
    if why := site.why_away or site.why_hidden:
        raise Refusal(UNAVAILABLE, ErrorCode.NO_ROUTE, why, retry_after_s=BACK_S)


def _described(route: messages.Route) -> dict[str, Any]:
    """A deployed task, for a client that wants to ask it."""
    state = "unavailable" if route.unavailable else "served" if route.complete else "loading"
    inputs = {name: spec.model_dump(mode="json", exclude_none=True) for name, spec in route.inputs.items()}
    described = {"task": route.task, "state": state, "inputs": inputs, "revision": route.revision}
    return described | ({"reason": route.unavailable} if route.unavailable else {})


class _Guard:
    """Refuses requests without the token; where there is no token, those that a web page of another site may send."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope), scope["path"]) if scope["type"] == "http" else None
        app = self._app if refusal is None else refusal.response()
        await app(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> Refusal | None:
        if sum(len(name) + len(text) for name, text in headers.raw) > MAX_HEADER_BYTES:
            message = f"the headers have more than {show_bytes(MAX_HEADER_BYTES)}: send shorter ones"
            return Refusal(HEADERS_TOO_LARGE, ErrorCode.TOO_LARGE, message)
        if path == HEALTH:
            return None
        if self._token is None:
            if is_own_name(headers.get("host", "")) and "origin" not in headers:
                return None
            message = "a web page, or another name of this machine, may ask only with a token: start with --token-file"
            return Refusal(FORBIDDEN, "forbidden", message)
        if shows_token(headers, self._token):
            return None
        return Refusal(UNAUTHORIZED, "unauthorized", "send the token: Authorization: Bearer TOKEN")


async def _not_served(_: Request, error: Exception) -> Response:
    """The response for a path or a method that isn't there."""
    assert isinstance(error, HTTPException)  # noqa: S101 - the same
    code = "not_found" if error.status_code == NOT_FOUND else "not_allowed"
    there = f"GET /v1/tasks, POST /v1/tasks/TASK, GET /v1/models, POST /v1/embeddings, GET {HEALTH}"
    message = f"{error.detail}: this door has {there}"
    response = Refusal(error.status_code, code, message).response()
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    """The response when this program has an error."""
    log.error("request_failed", path=request.url.path, exc_info=error)
    return Refusal(INTERNAL, "internal_error", "an error of this HTTP door: its log has the details").response()
