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
from broker.protocol.errors import BadFile
from broker.protocol.sizes import show_bytes, show_count
from s2m3.cli.extras import imports_of
from s2m3.cli.http import HOST, add_listener, read_listener
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
    add_listener(parser, PORT, server="the server", clients="agents")
    add_until_stdin_closes(parser)


def serve(arguments: argparse.Namespace) -> int:
    """Serve a folder until a signal comes."""
    with imports_of("http", "it needs"):
        from s2m3.http import weights  # noqa: PLC0415 - an extra
    if not (arguments.directory / "sha256").is_dir():
        problem = "has no folder sha256, so it holds no weights"
        raise BadFile(file=str(arguments.directory), problem=problem, fix="fill it with `s2m3 models store`")
    token, certificate = read_listener(arguments)
    if token is None and not is_loopback(arguments.bind):
        print(
            "s2m3: warning: every client that reaches this machine can read these weights: use --token-file",
            file=sys.stderr,
        )
    log_to_stderr(level=logging.INFO)
    weights.run(
        arguments.directory,
        (arguments.bind, arguments.port),
        token=token,
        certificate=certificate,
        until_stdin_closes=arguments.until_stdin_closes,
    )
    return 0
