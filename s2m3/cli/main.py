"""The command line: ``s2m3 COMMAND``. Exit code 0 = it holds, 1 = it does not, 2 = bad input.

Owns the list of commands and how errors end a command. Imports no service: each command is imported when it is chosen.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from broker.arguments import OneLineParser
from broker.protocol.errors import BadFile, S2M3Error
from s2m3.cli.commands import add_commands

INTERRUPTED = 130
COMMANDS = {
    "demo": ("a whole site on this machine, with real photographs and a failure", "s2m3.cli.demo"),
    "broker": ("run the embedded MQTT broker, on 127.0.0.1 only", "s2m3.cli.broker"),
    "agent": ("run one device's agent", "edge_agent.__main__"),
    "orchestrator": ("run the orchestrator", "orchestrator.__main__"),
    "deploy": ("deploy a task: a YAML file, or a name of the catalogue such as pocket/classify", "s2m3.cli.deploy"),
    "undeploy": ("take a task away", "s2m3.cli.undeploy"),
    "drain": ("take a device out of service: its modules move first, then it unloads", "s2m3.cli.drain"),
    "request": ("send one request and print its answer", "s2m3.cli.request"),
    "models": ("what the models of the catalogue are made of", "s2m3.cli.models"),
    "head": ("a new task on an encoder that is already there", "s2m3.cli.head"),
    "replay": ("let failures happen to a whole site, and see what its requests felt", "s2m3.cli.replay"),
    "soak": ("failures at random for half an hour: nothing lost, and no process that grows", "s2m3.cli.soak"),
    "plan": ("where modules would go: a plan from files, without any device", "s2m3.cli.plan"),
    "bench": ("measure: accuracy, latency, memory, placement", "s2m3.cli.bench"),
    "status": ("show devices, modules and tasks", "s2m3.cli.status"),
}


class _Version(argparse.Action):
    """Prints the version, which is only looked up then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - slow, and only for this option

        print(f"s2m3 {version('s2m3')}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that a person can correct become one line on standard error."""
    parser = OneLineParser(prog="s2m3", description="Many multi-modal AI tasks on the small machines of a site.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    add_commands(parser, "command", COMMANDS)
    arguments = parser.parse_args(argv)
    from broker.process import log_to_stderr  # noqa: PLC0415 - structlog, which --help does without

    log_to_stderr(level=logging.ERROR)  # a person reads what is printed; services lower the level themselves
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(arguments.run(arguments))
    except S2M3Error as error:
        print(f"s2m3: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadFile) else 1
    except KeyboardInterrupt:
        print("s2m3: interrupted; everything it started has ended", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
