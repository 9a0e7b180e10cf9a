"""The application: the page's files, the stream of updates, the playground's requests, and orders where allowed.

Owns the paths, and what a browser may do. Invariants: the page loads nothing from another host; a page of another site
can't ask (it may not send the header, and has another origin); a browser that reads slowly gets fewer updates, not
more memory.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import Drain
from s2m3.dashboard.feed import Feed
from s2m3.http.answers import response_of
from s2m3.http.bodies import MAX_BODY_BYTES, Room, read_body, size_of
from s2m3.http.refusals import (
    BAD_REQUEST,
    FORBIDDEN,
    INTERNAL,
    NOT_FOUND,
    NOT_FOUND_CODE,
    UNAVAILABLE,
    Refusal,
    refused,
)

log = structlog.get_logger()

PAGE = Path(__file__).parent / "page"
HOSTS = ["localhost", "127.0.0.1"]
MAY_ASK = "x-s2m3"  # a header that a page of another site can't send
EVERY_S = 0.1  # between two updates to a browser
ALIVE_S = 15.0  # without an update, a comment says that the stream is there
MOST_BROWSERS = 32
MAX_ORDER_BYTES = 256
DEADLINE_S = 60.0
POLICY = "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@dataclass
class Dashboard:
    """The feed, the browsers that look, and whether the process is about to end."""

    feed: Feed
    browsers: int = 0
    ending: bool = False
    room: Room = field(default_factory=Room)


def application(dashboard: Dashboard) -> ASGIApp:
    """The whole application."""

    async def updates(_: Request) -> Response:
        if dashboard.browsers >= MOST_BROWSERS:
            message = f"{MOST_BROWSERS} browsers look already: close one"
            raise Refusal(UNAVAILABLE, ErrorCode.OVERLOADED, message, retry_after_s=5.0)
        return StreamingResponse(_stream(dashboard), media_type="text/event-stream")

    async def ask(request: Request) -> Response:
        _require_own_page(request.headers)
        if dashboard.feed.is_at_core:
            raise Refusal(FORBIDDEN, "forbidden", "a core carries no requests: ask with the site's own broker")
        with dashboard.room.taken(size_of(request.headers, MAX_BODY_BYTES)):
            body = await read_body(request, MAX_BODY_BYTES)
            payload = RawInput(body, "application/json")
            answered = await dashboard.feed.site.ask(request.path_params["task"], {"": payload}, DEADLINE_S)
            return response_of(answered, "")

    async def drain(request: Request) -> Response:
        _require_own_page(request.headers)
        device, wanted = request.path_params["device"], _read_drain(await read_body(request, MAX_ORDER_BYTES))
        if dashboard.feed.orders is None:
            message = "this dashboard gives no orders: start it with --allow-control"
            raise Refusal(FORBIDDEN, "forbidden", message)
        if not dashboard.feed.knows_device(device):
            raise Refusal(NOT_FOUND, NOT_FOUND_CODE, f"no device {device[:64]!r} is on this page")
        await dashboard.feed.orders.set_drain(device, drain=wanted)
        return JSONResponse({"device": device, "drain": wanted})

    handlers: dict[Any, Any] = {Refusal: refused, HTTPException: _not_served, Exception: _failed}
    paths = [
        Route("/api/updates", updates, methods=["GET"]),
        Route("/api/ask/{task}", ask, methods=["POST"]),
        Route("/api/drain/{device}", drain, methods=["POST"]),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    app = Starlette(routes=paths, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return _WithHeaders(TrustedHostMiddleware(app, allowed_hosts=HOSTS, www_redirect=False))


async def _stream(dashboard: Dashboard) -> AsyncIterator[str]:
    """The updates of one browser: all of it first, then what changes."""
    version: int | None = None
    said_s = time.monotonic()
    dashboard.browsers += 1
    try:
        while not dashboard.ending:
            update = dashboard.feed.update(version)
            if version is None or update.version != version:
                text = json.dumps(update.document, separators=(",", ":"))
                version, said_s = update.version, time.monotonic()
                yield f"data: {text}\n\n"
            elif time.monotonic() - said_s > ALIVE_S:
                said_s = time.monotonic()
                yield ":\n\n"
            await asyncio.sleep(EVERY_S)
    finally:
        dashboard.browsers -= 1


def _require_own_page(headers: Headers) -> None:
    """Refuse what a page of another site may send: it can't set the header, and its browser names it as the origin."""
    origin = headers.get("origin")
    if MAY_ASK not in headers or (origin is not None and origin != f"http://{headers.get('host')}"):
        raise Refusal(FORBIDDEN, "forbidden", f"only this page may ask here, with the header {MAY_ASK}")


def _read_drain(body: bytes) -> bool:
    """Whether a device is to be drained; raises Refusal for a body that doesn't say it."""
    try:
        return Drain.model_validate_json(body, strict=True).drain
    except ValidationError as error:
        message = 'send {"drain": true}, or false to put the device back in service'
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, message) from error


class _WithHeaders:
    """Adds to every response the headers that say what the page may do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with)


async def _not_served(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - the same
    return JSONResponse({"error": {"code": "not_found", "message": error.detail}}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    """The response when this program has an error."""
    log.error("request_failed", path=request.url.path, exc_info=error)
    return Refusal(INTERNAL, "internal_error", "an error of the dashboard: its log has the details").response()
