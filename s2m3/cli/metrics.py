"""``s2m3 metrics``: the site's figures for Prometheus. Owns its options."""

from __future__ import annotations

import argparse

from broker.arguments import add_broker, add_until_stdin_closes
from broker.process import log_to_stderr
from s2m3.cli.arguments import connection_of, port
from s2m3.cli.extras import imports_of

HOST, PORT = "127.0.0.1", 9464  # the port that OpenTelemetry's exporters for Prometheus have


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    own = parser.add_argument_group("the exporter")
    own.add_argument("--port", type=port, default=PORT, help="default %(default)s; 0 takes a free one")
    text = "listen here; default %(default)s, this machine. Whoever reaches it reads the names of devices and tasks"
    own.add_argument("--bind", default=HOST, metavar="ADDRESS", help=text)
    add_broker(parser)
    add_until_stdin_closes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export until a signal comes; returns the exit status 0."""
    with imports_of("metrics", "metrics need"):
        from s2m3.metrics import service  # noqa: PLC0415 - an extra
    log_to_stderr(arguments.log_format)
    service.run(
        connection_of(arguments),
        (arguments.bind, arguments.port),
        until_stdin_closes=arguments.until_stdin_closes,
    )
    return 0
