"""How a service process begins and ends: its command line's errors, its log, its signals, its parent.

Owns what the orchestrator's and the agents' processes have in common around their loops. Knows neither.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import structlog

from broker.protocol.specs import SITE_PATTERN

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def site_prefix(text: str) -> str:
    """A site's topic prefix, for argparse.

    Raises:
        ArgumentTypeError: it isn't one.
    """
    site = text.strip("/")
    if not re.fullmatch(SITE_PATTERN, site):
        raise argparse.ArgumentTypeError(f"{text!r} is no prefix: use a-z, 0-9 and -, and / between levels")
    return site


def log_to_stderr(*, level: int = logging.INFO) -> None:
    """Log lines with fields: readable at a terminal, JSON anywhere else."""
    at_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if at_terminal else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer() if at_terminal else structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # of the moment: tests and supervisors replace it
    )


@contextmanager
def stopped_by_signals(stop: Callable[[], None], *, until_stdin_closes: bool) -> Iterator[None]:
    """Call ``stop`` at SIGINT and SIGTERM, and when standard input ends if that is asked for: a parent died."""
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
