"""Types of arguments and options that commands share, and the connection that they describe."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from broker.arguments import add_broker, count, number, places_of
from broker.protocol.errors import BadFile, NotConnected
from broker.protocol.messages import MAX_DEADLINE_S
from broker.protocol.topics import ALL_SITES, is_at_core, prefix_of
from broker.servers.access import site_at_core
from broker.transport.connection import Connection, read_connection
from s2m3.testbed.observer import Observer

seconds = number(0, MAX_DEADLINE_S, above=True, unit="seconds")
positive_seconds = number(0, above=True, unit="seconds")
positive = count(1)
port = count(0, 65_535)
OWN_BROKERS = {"embedded", "mosquitto"}
FOR_ALL_SITES = frozenset({"deploy", "rollback", "status", "undeploy"})
AT_CORE = FOR_ALL_SITES | {"dashboard", "events", "metrics"}
"""The commands that work at a core; all others need what no bridge carries."""
BROKER_S = 10.0  # for a broker that starts at this moment, as after `s2m3 broker &`
_PAUSE_S = 0.2
Made = TypeVar("Made")


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


def add_what_if(parser: argparse.ArgumentParser, without: str, more: str) -> None:
    """Add ``--without`` and ``--one-more``, which change a fleet."""
    parser.add_argument("--without", action="append", default=[], metavar="DEVICE", help=f"{without}; again for more")
    parser.add_argument("--one-more", action="append", default=[], metavar="DEVICE", help=f"{more}; again for more")


def site_broker(arguments: argparse.Namespace) -> str | Connection | None:
    """The kind of broker to start, or the connection to one that runs; None if the arguments name neither."""
    if arguments.broker in OWN_BROKERS or not (arguments.broker or arguments.connection):
        return str(arguments.broker) if arguments.broker else None
    return connection_of(arguments)


def connection_of(arguments: argparse.Namespace) -> Connection:
    """The connection that the arguments and the environment describe, with its warnings printed; raises BadFile."""
    connection = read_connection(*places_of(arguments), warn=_print_warning)
    if connection.site is not None and is_at_core(prefix_of(connection.site)):
        verb = getattr(arguments, "verb", None)
        _require_at_core(f"{arguments.command} {verb}" if verb else arguments.command, connection.site)
    return connection


def _print_warning(text: str) -> None:
    print(f"s2m3: warning: {text}", file=sys.stderr)


def _require_at_core(command: str, site: str) -> None:
    """Check that a command works at a core, and for as many sites as this prefix means; raises BadFile."""
    if site.count("/") != 1:
        problem = "names no site: a core has them below sites/, with one word each"
        raise BadFile(file=f"--site {site}", problem=problem, fix=f"write --site {site_at_core('NAME')}")
    if command not in AT_CORE:
        problem = f"is a site as its core sees it, and `s2m3 {command}` needs what stays in the site"
        raise BadFile(file=f"--site {site}", problem=problem, fix="run it with the site's own broker")
    if site == ALL_SITES and command not in FOR_ALL_SITES:
        problem = f"means several sites, and `s2m3 {command}` is for one"
        raise BadFile(file=f"--site {site}", problem=problem, fix=f"name it: --site {site_at_core('NAME')}")


@contextmanager
def connected(arguments: argparse.Namespace, *, sources: bool = False) -> Iterator[Observer]:
    """The site that the arguments name, in a ``with`` block, which raises NotConnected and BrokerRefused.

    With ``sources`` it sees these, too.
    """
    connection = connection_of(arguments)
    with ExitStack() as stack:
        yield when_reached(lambda: stack.enter_context(Observer(connection, sources=sources)))


def when_reached(attempt: Callable[[], Made]) -> Made:
    """The result of an attempt, made again while nothing answers at the broker's address, for ``BROKER_S``.

    Standard error says once that it waits.

    Raises:
        NotConnected: that of the last attempt.
    """
    until_s, told = time.monotonic() + BROKER_S, False
    while True:
        try:
            return attempt()
        except NotConnected as error:
            if not error.is_absent or time.monotonic() >= until_s:
                raise
            if not told:
                print(f"s2m3: {error}; waiting up to {BROKER_S:g} s for a broker there", file=sys.stderr, flush=True)
                told = True
        time.sleep(_PAUSE_S)
