"""``s2m3 models store`` and ``serve``: weights in a folder by their digests, and a web server for it.

Owns their arguments and output. The folder is plain: any other web server can serve it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from broker.arguments import add_until_stdin_closes
from broker.process import log_to_stderr
from broker.protocol.errors import BadFile, S2M3Error
from broker.protocol.sizes import show_bytes, show_count
from broker.transport.connection import read_password
from s2m3.cli.arguments import port
from s2m3.cli.http import EXTRA, HOST, TOKEN
from s2m3.cli.output import print_result
from s2m3.listening import is_loopback

PORT = 8090
BASE = f"http://{HOST}:{PORT}/"


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``store``."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the folder; made where it is missing")
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a repository's, head's or export's directory, or a file"
    )
    parser.add_argument(
        "--url", default=BASE, metavar="URL", help="where devices will reach the folder; default %(default)s"
    )


def store(arguments: argparse.Namespace) -> int:
    """Store weights, and print the sources for task files."""
    from s2m3 import weights_folder  # noqa: PLC0415 - it reads weights

    found = [weights_folder.store(arguments.directory, path, arguments.url) for path in arguments.paths]
    print_result(arguments, found, "\n".join(map(_line, found)))
    return 0


def _line(found: dict[str, Any]) -> str:
    left_out = f"; left out: {', '.join(found['left_out'])}" if found["left_out"] else ""
    return (
        f"{found['path']}: {show_count(found['files'], 'file')}, {show_bytes(found['bytes'])}{left_out}\n"
        f"source: {{url: {found['url']}, digest: {found['digest']}, part: …}}"
    )


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``serve``."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the folder that `s2m3 models store` filled")
    parser.add_argument("--port", type=port, default=PORT, help="default %(default)s; 0 takes a free one")
    parser.add_argument("--bind", default=HOST, metavar="ADDRESS", help="listen here; default %(default)s")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the token that agents must show")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="HTTPS: the server's own certificate")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="HTTPS: its key; default in the same file")
    add_until_stdin_closes(parser)


def serve(arguments: argparse.Namespace) -> int:
    """Serve a folder until a signal comes."""
    try:
        from s2m3.http import weights  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise S2M3Error(f"it needs {error.name}, which isn't installed: pip install 's2m3[http]'") from error
    if not (arguments.directory / "sha256").is_dir():
        problem = "has no folder sha256, so it holds no weights"
        raise BadFile(file=str(arguments.directory), problem=problem, fix="fill it with `s2m3 models store`")
    if arguments.tls_key and not arguments.tls_cert:
        raise BadFile(file="--tls-key", problem="is of no use without a certificate", fix="name --tls-cert, too")
    token = read_password(arguments.token_file, TOKEN) if arguments.token_file else None
    if token is None and not is_loopback(arguments.bind):
        print(
            "s2m3: warning: every client that reaches this machine can read these weights: use --token-file",
            file=sys.stderr,
        )
    if token is not None and not arguments.tls_cert and not is_loopback(arguments.bind):
        print("s2m3: warning: the token crosses the network in plain text: use --tls-cert", file=sys.stderr)
    log_to_stderr(level=logging.INFO)
    certificate = (arguments.tls_cert, arguments.tls_key or arguments.tls_cert) if arguments.tls_cert else None
    weights.run(
        arguments.directory,
        (arguments.bind, arguments.port),
        token=token,
        certificate=certificate,
        until_stdin_closes=arguments.until_stdin_closes,
    )
    return 0
