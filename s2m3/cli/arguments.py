"""Types of arguments and options that commands share, and the connection that they describe."""

from __future__ import annotations

import argparse
import sys

from broker.arguments import add_broker, count, number, places_of
from broker.protocol.messages import MAX_DEADLINE_S
from broker.transport.connection import Connection, read_connection
from s2m3.testbed.observer import Observer

seconds = number(0, MAX_DEADLINE_S, above=True, unit="seconds")
positive_seconds = number(0, above=True, unit="seconds")
positive = count(1)
port = count(0, 65_535)
OWN_BROKERS = {"embedded", "mosquitto"}


def add_json(parser: argparse.ArgumentParser, text: str = "print one JSON document") -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help=text)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the connection, and ``--json``."""
    add_broker(parser)
    add_json(parser)


def add_site_broker(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add the options of a command that starts a whole site, and a broker for it unless one is named."""
    add_broker(parser, f"or mosquitto or embedded, which are started; {otherwise}")


def site_broker(arguments: argparse.Namespace) -> str | Connection | None:
    """The kind of broker to start, or the connection to one that runs; None if the arguments name neither."""
    if arguments.broker in OWN_BROKERS or not (arguments.broker or arguments.connection):
        return str(arguments.broker) if arguments.broker else None
    return connection_of(arguments)


def connection_of(arguments: argparse.Namespace) -> Connection:
    """The connection that the arguments and the environment describe, with its warnings printed; raises BadFile."""
    return read_connection(*places_of(arguments), warn=lambda text: print(f"s2m3: warning: {text}", file=sys.stderr))


def connected(arguments: argparse.Namespace) -> Observer:
    """The site that the arguments name, to be used in a ``with`` block, which raises NotConnected and BrokerRefused."""
    return Observer(connection_of(arguments))
