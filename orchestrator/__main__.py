"""The orchestrator's program: ``python -m orchestrator``. Owns how the process begins and ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from broker.arguments import OneLineParser, add_broker, add_until_stdin_closes, connection_of, number
from broker.directories import state_directory
from broker.process import end_at_once, log_to_stderr, stopped_by_signals
from broker.protocol.errors import BadFile
from broker.protocol.messages import LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S
from broker.service_manager import ServiceManager
from orchestrator.leadership.leader_files import held_alone
from orchestrator.service import Orchestrator
from orchestrator.state import Pace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the orchestrator's arguments to the parser of this program or of a command of another one."""
    add_broker(parser)
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where the epoch and the deployed tasks are kept; it must survive restarts; default ~/.local/state/s2m3",
    )
    parser.add_argument(
        "--heartbeat-interval",
        type=number(SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S, unit="seconds"),
        default=1.0,
        metavar="S",
        help="seconds between the heartbeats of agents that don't say how often they send them; default %(default)g",
    )
    parser.add_argument(
        "--answer-unknown-tasks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="answer requests that no device serves; costs one more copy of each request from the broker",
    )
    parser.add_argument(
        "--spares",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give leftover memory to standby copies and replicas; without, it stays free",
    )
    add_until_stdin_closes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Lead, or stand by for the orchestrator that leads, until a signal comes; returns the exit status 0.

    Raises:
        BadFile: a wrong argument or file.
    """
    end_at_once()
    log_to_stderr(arguments.log_format)
    connection, directory = connection_of(arguments), arguments.state_dir or state_directory("--state-dir")
    with held_alone(directory):
        orchestrator = Orchestrator(
            connection,
            directory,
            heartbeat_interval_s=arguments.heartbeat_interval,
            answer_unknown_tasks=arguments.answer_unknown_tasks,
            pace=Pace(spares=arguments.spares),
            manager=ServiceManager(os.environ),
        )
        with stopped_by_signals(orchestrator.stop, until_stdin_closes=arguments.until_stdin_closes):
            orchestrator.run()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = OneLineParser(prog="python -m orchestrator", description="Decides which device holds which module.")
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except BadFile as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
