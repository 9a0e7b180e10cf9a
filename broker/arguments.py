"""The common parts of all command lines: errors of one line, the options of the broker, and types of arguments.

Owns how a wrong argument is reported. Imports no message and no client, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_broker(parser: argparse.ArgumentParser) -> None:
    """Add ``--broker`` and ``--site``."""
    parser.add_argument("--broker", default=DEFAULT_BROKER, metavar="URL", help="default %(default)s")
    parser.add_argument("--site", type=site_prefix, metavar="PREFIX", help="the site's topic prefix, when it has one")


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
    from broker.protocol.specs import SITE_PATTERN  # noqa: PLC0415 - pydantic, and only where a site is named

    site = text.strip("/")
    if not re.fullmatch(SITE_PATTERN, site):
        raise argparse.ArgumentTypeError(f"must consist of a-z, 0-9 and -, with / between levels, got {text!r}")
    return site
