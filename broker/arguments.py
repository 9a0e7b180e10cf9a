"""The common parts of all command lines: errors of one line, the options of the broker, and types of arguments.

Owns how a wrong argument is reported. Imports no message and no client, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from broker.transport.connection import Connection, Place


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse a value that isn't one of the choices; of a mistyped one, say which was meant."""
        if action.choices is None or value in action.choices:
            return
        is_command = action.nargs == argparse.PARSER
        names = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, n=1)
        fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
        text = f"there is no {'command' if is_command else 'choice'} {value!r}; {fix}"
        raise argparse.ArgumentError(None if is_command else action, text)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 2. A word may be a broker's address in a wrong place: its login isn't shown."""
        from broker.protocol.errors import without_login  # noqa: PLC0415 - only for an error

        self.exit(2, f"{self.prog}: {without_login(message)}; see {self.prog} --help\n")


def add_broker(parser: argparse.ArgumentParser, otherwise: str = "default mqtt://127.0.0.1:1883") -> None:
    """Add the options that describe a connection; the help says which broker it is ``otherwise``."""
    options = parser.add_argument_group(
        "connection", "Each of these may also stand in the environment (S2M3_BROKER, S2M3_CA, ...)."
    )
    options.add_argument("--broker", metavar="URL", help=f"mqtt://host[:port], or mqtts:// for TLS; {otherwise}")
    options.add_argument("--connection", metavar="FILE", help="a YAML file with these options as keys, and client_id")
    options.add_argument("--ca", metavar="FILE", help="TLS: who signs the broker's certificate; default the system's")
    options.add_argument("--cert", metavar="FILE", help="TLS: this client's certificate, where the broker wants one")
    options.add_argument("--key", metavar="FILE", help="TLS: the certificate's key; default in the same file")
    options.add_argument("--user", metavar="NAME", help="the name of this client's account")
    options.add_argument("--password-file", metavar="FILE", help="a file with the account's password")
    options.add_argument("--site", type=site_prefix, metavar="PREFIX", help="the site's topic prefix, when it has one")
    text = "of the log lines on standard error; default console at a terminal, else json; S2M3_LOG_FORMAT sets it, too"
    parser.add_argument("--log-format", choices=("console", "json"), help=text)


def places_of(arguments: argparse.Namespace) -> tuple[Place, ...]:
    """The places of a command line and of the connection file that it names; raises BadFile."""
    from broker.transport.connection import command_line, connection_file  # noqa: PLC0415 - pydantic, when it is needed

    names = ("broker", "ca", "cert", "key", "user", "password_file", "site")
    given = command_line(**{name: getattr(arguments, name) for name in names})
    return (given, connection_file(arguments.connection)) if arguments.connection else (given,)


def connection_of(arguments: argparse.Namespace) -> Connection:
    """The connection that the arguments and the environment describe; raises BadFile."""
    from broker.transport.connection import read_connection  # noqa: PLC0415 - the same

    return read_connection(*places_of(arguments))


def add_until_stdin_closes(parser: argparse.ArgumentParser) -> None:
    """Add ``--until-stdin-closes``, for a process that another one starts."""
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end when standard input does, so as not to outlive a parent"
    )


def number(least: float, most: float = math.inf, *, above: bool = False, unit: str = "") -> Callable[[str], float]:
    """The type of an argument that is a number from ``least`` to ``most``; ``above`` excludes ``least`` itself."""
    bound = f"greater than {least:g}" if above else f"at least {least:g}"
    bound += f" and at most {most:g}" if most < math.inf else ""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least < value or (least == value and not above)) or not value <= most or math.isinf(value):
            raise argparse.ArgumentTypeError(f"must be {bound}{f' {unit}' * bool(unit)}, got {text!r}")
        return value

    return convert


def count(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``least`` to ``most``."""
    bound = f"from {least} to {most}" if most is not None else f"of at least {least}"

    def convert(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"must be a whole number {bound}, got {text!r}")
        return int(text)

    return convert


def site_prefix(text: str) -> str:
    """The type of an argument that is a site's topic prefix, without slashes at its ends."""
    from broker.protocol.specs import INVALID_SITE, SITE_PATTERN  # noqa: PLC0415 - pydantic, and only where a site is named

    site = text.strip("/")
    if not re.fullmatch(SITE_PATTERN, site):
        raise argparse.ArgumentTypeError(f"{INVALID_SITE}, got {text!r}")
    return site
