"""``s2m3 dashboard``: a page that shows the site. Owns its options."""

from __future__ import annotations

import argparse

from broker.arguments import add_broker, add_until_stdin_closes
from broker.process import log_to_stderr
from broker.protocol.errors import BadFile
from broker.protocol.topics import is_at_core, prefix_of
from s2m3.cli.arguments import connection_of, port
from s2m3.cli.extras import imports_of

PORT = 8090


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    own = parser.add_argument_group("the page")
    own.add_argument("--port", type=port, default=PORT, help="default %(default)s, on this machine; 0 takes a free one")
    text = "the page can drain devices, and put them back in service; needs an account that may: dashboard or operator"
    own.add_argument("--allow-control", action="store_true", help=text)
    add_broker(parser)
    add_until_stdin_closes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until a signal comes; returns the exit status 0."""
    with imports_of("dashboard", "the dashboard needs"):
        from s2m3.dashboard import server  # noqa: PLC0415 - an extra
    connection = connection_of(arguments)
    if arguments.allow_control and is_at_core(prefix_of(connection.site)):
        problem = "can't be used at a core, for no bridge carries these orders"
        raise BadFile(file="--allow-control", problem=problem, fix="leave it out, or use the site's own broker")
    log_to_stderr(arguments.log_format)
    server.run(
        connection,
        arguments.port,
        allow_control=arguments.allow_control,
        until_stdin_closes=arguments.until_stdin_closes,
    )
    return 0
