"""Types of arguments and options that commands share, and the connection that they describe."""

from __future__ import annotations

import argparse

from broker.arguments import add_broker, connection_of, count, number
from broker.protocol.messages import MAX_DEADLINE_S
from s2m3.testbed.observer import Observer

seconds = number(0, MAX_DEADLINE_S, above=True, unit="seconds")
positive_seconds = number(0, above=True, unit="seconds")
positive = count(1)
port = count(0, 65_535)


def add_json(parser: argparse.ArgumentParser, text: str = "print one JSON document") -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help=text)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the connection, and ``--json``."""
    add_broker(parser)
    add_json(parser)


def connected(arguments: argparse.Namespace, task: str | None = None) -> Observer:
    """The site that the arguments name, or one task of it, to be used in a ``with`` block.

    The block raises NotConnected, and BrokerRefused.
    """
    return Observer(connection_of(arguments), task=task)
