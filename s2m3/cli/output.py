"""JSON documents, tables and progress as all commands print them."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 140  # columns, where there is no terminal to ask
PROGRESS_S = 5.0

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
Document = TypeVar("Document")


def print_json(document: object) -> None:
    """Print one JSON document on one line of standard output."""
    print(json.dumps(document))


def document_of(message: BaseModel | None) -> object:
    """A message as a part of a JSON document; None where there is no message."""
    return message.model_dump(mode="json", exclude_none=True) if message else None


def print_result(arguments: argparse.Namespace, document: Document, shown: str | Callable[[Document], object]) -> None:
    """Print a command's result: with ``--json`` the document, else the text, or what a function prints of it."""
    if arguments.json:
        print_json(document)
    elif isinstance(shown, str):
        print(printable(shown))
    else:
        shown(document)


class _Console(Console):
    """Leaves a pipe that nobody reads any more to ``main``, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, to_stderr: bool = False, quiet: bool = False) -> Console:
    """A console as wide as the terminal, or of ``PIPED_WIDTH`` columns where standard output isn't one.

    ``to_stderr`` leaves standard output to a JSON document. ``quiet`` prints only where standard error is a terminal.
    """
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return _Console(stderr=to_stderr, quiet=quiet and not sys.stderr.isatty(), width=width)


def printable(text: str) -> str:
    """A text for a terminal, without characters that move its cursor or change its title."""
    return _CONTROL.sub("?", text)


class _Table(Table):
    """A table whose cells are shown as they are: a text from the site is neither markup nor a terminal's command."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:  # noqa: ANN401 - as the library's
        super().add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells), **options)


def table(*columns: str, title: str | None = None, right: Collection[str] = ()) -> Table:
    """An empty table whose long cells are folded. The cells of the columns ``right`` are aligned to the right."""
    made = _Table(title=title, title_justify="left")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def yes_or_no(*, holds: bool) -> Text:
    """A table's cell for whether something holds."""
    return Text("yes") if holds else Text("NO", style="bold")


def clock(at: float) -> str:
    """A time in seconds since 1970 as hours, minutes and seconds here."""
    try:
        return f"{datetime.fromtimestamp(at, UTC).astimezone():%H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f} s after 1970"  # no process's clock says so


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
