"""``s2m3 dashboard``: a page that shows the site. Owns its options."""

from __future__ import annotations

import argparse

from broker.arguments import add_broker, add_until_stdin_closes
from broker.process import log_to_stderr
from broker.protocol.errors import BadFile, S2M3Error
from broker.protocol.topics import is_at_core, prefix_of
from s2m3.cli.arguments import connection_of, port

PORT = 8090
EXTRA = frozenset({"starlette", "uvicorn", "python_multipart"})


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
    try:
        from s2m3.dashboard import server  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        needs = f"the dashboard needs {package}, which isn't installed: pip install 's2m3[dashboard]'"
        raise S2M3Error(needs) from error
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
