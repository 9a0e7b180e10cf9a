"""The log, the freed memory and the end of a service process: by a signal, or with the process that started it.

Owns what the orchestrator's and the agents' processes have in common around their loops. Knows neither.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from broker.protocol.errors import BadFile
from broker.structured_log import structlog

LOG_FORMAT = "S2M3_LOG_FORMAT"
MOST_WARNINGS, WITHIN_S = 100, 10.0
"""The lines of one warning in this time: most are about strangers' messages, and a log must not fill the disk."""


def log_to_stderr(log_format: str | None = None, *, level: int = logging.INFO) -> None:
    """Log lines with fields to standard error: readable ones (``console``), or ``json``.

    Args:
        log_format: as the command line has it; None: as S2M3_LOG_FORMAT says, else readable at a terminal only.
        level: the lowest level that is shown.

    Raises:
        BadFile: S2M3_LOG_FORMAT is wrong.
    """
    at_terminal = sys.stderr.isatty()
    wanted = log_format or os.environ.get(LOG_FORMAT) or ("console" if at_terminal else "json")
    if wanted not in {"console", "json"}:
        raise BadFile(file=LOG_FORMAT, problem=f"must be console or json, got {wanted!r}", fix="change this variable")
    is_console = wanted == "console"
    structlog.configure(
        processors=[
            _Warnings(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if is_console else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer(colors=at_terminal)
            if is_console
            else structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # looked up for each line: tests replace it
    )


class _Warnings:
    """Drops the lines of a warning that come too often; the first one after that says how many were left out."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}  # warning -> when its time began, and its lines since then

    def __call__(self, _logger: object, level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if level != "warning":
            return fields
        name, now_s = str(fields.get("event")), time.monotonic()
        began_s, lines = self._seen.get(name, (now_s, 0))
        left_out = 0
        if now_s - began_s > WITHIN_S:
            left_out, began_s, lines = max(0, lines - MOST_WARNINGS), now_s, 0
        self._seen[name] = began_s, lines + 1
        if lines >= MOST_WARNINGS:
            raise structlog.DropEvent
        if left_out:
            fields["lines_left_out"] = left_out
        return fields


def return_freed_memory() -> None:
    """Return freed memory to the system (glibc's ``malloc_trim``). Takes milliseconds."""
    with suppress(OSError, AttributeError):  # another C library than glibc has no such function
        ctypes.CDLL(None).malloc_trim(0)


def end_at_once() -> None:
    """Let SIGTERM end this process until ``stopped_by_signals``: there is nothing to tidy up while a service starts.

    As an exception of Python's, which it is for commands that start processes, it may get lost where a library calls
    back: an agent that was asked to end while it imported pydantic's types served on.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def stopped_by_signals(stop: Callable[[], None], *, until_stdin_closes: bool) -> Iterator[None]:
    """Call ``stop`` at SIGINT and SIGTERM, and on request when standard input ends: then the parent died."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    if until_stdin_closes:
        threading.Thread(target=_stop_at_eof, args=(stop,), name="stdin", daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_at_eof(stop: Callable[[], None]) -> None:
    try:
        while os.read(sys.stdin.fileno(), 4096):  # not through the buffer: its lock would hang the interpreter's end
            pass
    except (OSError, ValueError):
        pass  # closed already
    stop()
