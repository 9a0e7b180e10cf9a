"""Commands by name, each imported when it is chosen, so that ``--help`` and ``--version`` import none of them.

A command is a module with ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit code. A module that
has several commands sets the ``run`` of each. ``main`` prints the errors that ``run`` raises: ``BadFile`` for a wrong
file or argument, another ``S2M3Error`` when the site fails (``NotConnected``, ``SiteFailed``).
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from typing import Any

from broker.arguments import OneLineParser


class CommandParser(OneLineParser):
    """A command's parser. It imports the command, which adds its arguments, when it is about to parse."""

    module = ""
    """The command's module; empty once it is imported."""

    def parse_known_args(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - argparse's own overloads
        """Import the command, then parse."""
        if self.module:
            command, self.module = importlib.import_module(self.module), ""
            command.add_arguments(self)
            if hasattr(command, "run"):
                self.set_defaults(run=command.run)
        return super().parse_known_args(*args, **named)


def add_commands(parser: argparse.ArgumentParser, dest: str, commands: Mapping[str, tuple[str, str]]) -> None:
    """Add commands to a parser: name -> (its line of help, its module)."""
    verbs = parser.add_subparsers(dest=dest, required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, (text, module) in commands.items():
        verbs.add_parser(name, help=text, description=text).module = module
