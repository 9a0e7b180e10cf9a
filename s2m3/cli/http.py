"""``s2m3 http``: a door for HTTP. Owns its options, and refuses to listen beyond this machine without a token."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from broker.arguments import add_broker, add_until_stdin_closes
from broker.process import log_to_stderr
from broker.protocol.errors import BadFile
from broker.transport.connection import read_password
from s2m3.cli.arguments import connection_of, port
from s2m3.cli.extras import imports_of
from s2m3.listening import is_loopback

HOST, PORT = "127.0.0.1", 8080
Certificate = tuple[Path, Path]
"""Its file, and that of its key."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_listener(parser, PORT, server="the door", clients="clients")
    add_broker(parser)
    add_until_stdin_closes(parser)


def add_listener(parser: argparse.ArgumentParser, default_port: int, *, server: str, clients: str) -> None:
    """Add the options of a server: where it listens, the token that its clients show, and its certificate."""
    group = parser.add_argument_group(server)
    group.add_argument("--port", type=port, default=default_port, help="default %(default)s; 0 takes a free one")
    group.add_argument("--bind", default=HOST, metavar="ADDRESS", help="listen here; default %(default)s, this machine")
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"a file with the token that {clients} must show"
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help=f"HTTPS: {server}'s own certificate")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="HTTPS: its key; default in the same file")


def read_listener(arguments: argparse.Namespace) -> tuple[str | None, Certificate | None]:
    """The token and the certificate that the options of ``add_listener`` name; a token without TLS brings a warning.

    Raises:
        BadFile: a key has no certificate, or the token can't be read.
    """
    if arguments.tls_key and not arguments.tls_cert:
        raise BadFile(file="--tls-key", problem="is of no use without a certificate", fix="name --tls-cert, too")
    token = read_password(arguments.token_file, "token") if arguments.token_file else None
    if token is not None and not arguments.tls_cert and not is_loopback(arguments.bind):
        print("s2m3: warning: the token crosses the network in plain text: use --tls-cert", file=sys.stderr)
    return token, (arguments.tls_cert, arguments.tls_key or arguments.tls_cert) if arguments.tls_cert else None


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; returns the exit status 0."""
    with imports_of("http", "the HTTP door needs"):
        from s2m3.http import server  # noqa: PLC0415 - an extra
    token, certificate = read_listener(arguments)
    if token is None and not is_loopback(arguments.bind):
        problem = f"{arguments.bind} can be reached from other machines, and there is no token"
        raise BadFile(file="--bind", problem=problem, fix="name a file with one: --token-file FILE")
    log_to_stderr(arguments.log_format)
    server.run(
        connection_of(arguments),
        (arguments.bind, arguments.port),
        token=token,
        certificate=certificate,
        until_stdin_closes=arguments.until_stdin_closes,
    )
    return 0
