"""``s2m3 http``: a door for HTTP. Owns its options, and refuses to listen beyond this machine without a token."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from broker.arguments import add_broker, add_until_stdin_closes
from broker.process import log_to_stderr
from broker.protocol.errors import BadFile, S2M3Error
from broker.transport.connection import read_password
from s2m3.cli.arguments import connection_of, port
from s2m3.listening import is_loopback

HOST, PORT = "127.0.0.1", 8080
EXTRA = frozenset({"starlette", "uvicorn", "python_multipart"})
TOKEN = "token"  # noqa: S105 - the word for it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    own = parser.add_argument_group("the door")
    own.add_argument("--port", type=port, default=PORT, help="default %(default)s; 0 takes a free one")
    own.add_argument("--bind", default=HOST, metavar="ADDRESS", help="listen here; default %(default)s, this machine")
    own.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the token that clients must show")
    own.add_argument("--tls-cert", type=Path, metavar="FILE", help="HTTPS: the door's own certificate")
    own.add_argument("--tls-key", type=Path, metavar="FILE", help="HTTPS: its key; default in the same file")
    add_broker(parser)
    add_until_stdin_closes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; returns the exit status 0."""
    try:
        from s2m3.http import server  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise S2M3Error(f"the HTTP door needs {error.name}, which isn't installed: pip install 's2m3[http]'") from error
    if arguments.tls_key and not arguments.tls_cert:
        raise BadFile(file="--tls-key", problem="is of no use without a certificate", fix="name --tls-cert, too")
    token = read_password(arguments.token_file, TOKEN) if arguments.token_file else None
    if not is_loopback(arguments.bind):
        if token is None:
            problem = f"{arguments.bind} can be reached from other machines, and there is no token"
            raise BadFile(file="--bind", problem=problem, fix="name a file with one: --token-file FILE")
        if not arguments.tls_cert:
            print("s2m3: warning: the token crosses the network in plain text: use --tls-cert", file=sys.stderr)
    log_to_stderr(arguments.log_format)
    certificate = (arguments.tls_cert, arguments.tls_key or arguments.tls_cert) if arguments.tls_cert else None
    server.run(
        connection_of(arguments),
        (arguments.bind, arguments.port),
        token=token,
        certificate=certificate,
        until_stdin_closes=arguments.until_stdin_closes,
    )
    return 0
