"""JSON documents, tables and progress as all commands print them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 140  # columns, where there is no terminal to ask
PROGRESS_S = 5.0

Document = TypeVar("Document")


def print_json(document: object) -> None:
    """Print one JSON document on one line of standard output."""
    print(json.dumps(document))


def print_result(arguments: argparse.Namespace, document: Document, shown: str | Callable[[Document], object]) -> None:
    """Print a command's result: with ``--json`` the document, else the text, or what a function prints of it."""
    if arguments.json:
        print_json(document)
    elif isinstance(shown, str):
        print(shown)
    else:
        shown(document)


def console(*, to_stderr: bool = False, quiet: bool = False) -> Console:
    """A console as wide as the terminal, or of ``PIPED_WIDTH`` columns where standard output isn't one.

    ``to_stderr`` leaves standard output to a JSON document. ``quiet`` prints only where standard error is a terminal.
    """
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(stderr=to_stderr, quiet=quiet and not sys.stderr.isatty(), width=width)


def table(*columns: str, title: str | None = None, right: Collection[str] = ()) -> Table:
    """An empty table whose long cells are folded. The cells of the columns ``right`` are aligned to the right."""
    made = Table(title=title, title_justify="left")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def megabytes(size_bytes: float) -> str:
    """A size in megabytes with one digit after the point."""
    return f"{size_bytes / 1e6:,.1f}"


def yes_or_no(*, holds: bool) -> str:
    """A table's cell for whether something holds."""
    return "yes" if holds else "[bold]NO[/bold]"


def show_progress(text: str) -> None:
    """Replace the terminal's last line of standard error; without a terminal, print nothing."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


class ProgressLines:
    """Prints ``WHAT: DONE of SIZE`` to standard error, at most once in ``PROGRESS_S``."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._printed_s = time.monotonic()

    def __call__(self, done: int, size: int) -> None:
        """Print a line, unless one was printed a moment ago."""
        if time.monotonic() - self._printed_s > PROGRESS_S:
            self._printed_s = time.monotonic()
            print(f"{self._what}: {done} of {size}", file=sys.stderr, flush=True)
