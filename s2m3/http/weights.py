"""A web server for a folder of weights (``DIR/sha256/DIGEST``), with ranges, a token and TLS.

Owns its paths. A name is a SHA-256 and nothing else, so no request leads out of the folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from s2m3.http.refusals import shows_token
from s2m3.http.server import Server, context_of
from s2m3.listening import listening

_NAME = re.compile(r"[0-9a-f]{64}")
_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def run(
    folder: Path,
    address: tuple[str, int],
    *,
    token: str | None = None,
    certificate: tuple[Path, Path] | None = None,
    until_stdin_closes: bool = False,
) -> None:
    """Serve until a signal comes.

    Args:
        folder: its weights are served.
        address: where to listen; port 0 takes a free one.
        token: clients must show it; None: they need none.
        certificate: for TLS, its file and that of its key.
        until_stdin_closes: end also when standard input does.

    Raises:
        BadFile: the address is in use, or a file can't be used.
    """
    context = None if certificate is None else context_of(*certificate)
    with listening(*address) as listener:
        server = Server(None, application(folder, token), context)
        said = f"weights of {folder} are at {server.url_at(listener, address[0])}/"
        server.serve_until_stopped(listener, said, until_stdin_closes=until_stdin_closes)


def application(folder: Path, token: str | None = None) -> Starlette:
    """The application: the files of a folder, and ``/healthz``, which needs no token."""

    async def file(request: Request) -> Response:
        if token is not None and not shows_token(request.headers, token):
            return PlainTextResponse(
                "send the token: Authorization: Bearer TOKEN\n", 401, {"WWW-Authenticate": "Bearer"}
            )
        name = request.path_params["name"]
        path = folder / "sha256" / name
        if not _NAME.fullmatch(name) or not path.is_file():
            return PlainTextResponse("no weights have this SHA-256; `s2m3 models store` stores some\n", 404)
        return FileResponse(path, media_type="application/octet-stream", headers=_HEADERS)

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    made = Starlette(routes=[Route("/sha256/{name}", file), Route("/healthz", health)])
    made.router.redirect_slashes = False
    return made
