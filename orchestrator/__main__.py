"""``python -m orchestrator``: arguments, signals, the log; then the loop.

Owns how the process begins and ends. Knows nothing of devices or tasks.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import structlog

from broker.errors import BadFile
from orchestrator.service import Orchestrator

_SITE = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)*\Z")


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the orchestrator's arguments to a parser, this program's or another's subcommand."""
    parser.add_argument("--broker", required=True, metavar="URL", help="mqtt://host:port")
    parser.add_argument(
        "--state-dir", required=True, type=Path, metavar="DIR", help="where the epoch is kept; it must survive restarts"
    )
    parser.add_argument("--site", type=_site, metavar="PREFIX", help="in front of all topics")
    parser.add_argument(
        "--answer-unknown-tasks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="answer requests that no device serves, for one more copy of each request from the broker",
    )
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end when standard input does, so as not to outlive a parent"
    )


def run(arguments: argparse.Namespace) -> int:
    """Lead until a signal comes.

    Args:
        arguments: those of ``add_arguments``.

    Returns:
        The exit status: 0 after a clean stop, 1 when a newer orchestrator leads, 2 for a wrong argument or file.
    """
    _write_log_to_stderr()
    try:
        orchestrator = Orchestrator(
            arguments.broker,
            arguments.state_dir,
            arguments.site,
            answer_unknown_tasks=arguments.answer_unknown_tasks,
        )
        before = {number: signal.signal(number, lambda *_: orchestrator.stop()) for number in _SIGNALS}
        try:
            if arguments.until_stdin_closes:
                threading.Thread(target=_stop_at_eof, args=(orchestrator.stop,), name="stdin", daemon=True).start()
            orchestrator.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    except BadFile as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        return 2
    if orchestrator.resigned:
        sys.stderr.write(f"orchestrator: resigned: {orchestrator.resigned}\n")
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = OneLineParser(prog="python -m orchestrator", description="Decides which device holds which module.")
    add_arguments(parser)
    return run(parser.parse_args(argv))


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _site(text: str) -> str:
    site = text.strip("/")
    if not _SITE.match(site):
        raise argparse.ArgumentTypeError(f"{text!r} is no prefix: use a-z, 0-9 and -, and / between levels")
    return site


def _stop_at_eof(stop: Callable[[], None]) -> None:
    try:
        while os.read(sys.stdin.fileno(), 4096):  # not through the buffer: its lock would hang the interpreter's end
            pass
    except (OSError, ValueError):
        pass  # closed already
    stop()


def _write_log_to_stderr() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
