"""The command line: ``s2m3 COMMAND``. Exit code 0 = it holds, 1 = it does not, 2 = bad input.

Owns the list of commands and how errors end a command. Imports no service: each command is imported when it is chosen.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence

from broker.arguments import OneLineParser
from broker.protocol.errors import BadFile, LocalProtocolError, NotConnected, S2M3Error
from s2m3.cli.commands import add_commands

INTERRUPTED = 130
START_ONE = ": start a broker (`s2m3 broker`), or name another one with --broker"
COMMANDS = {
    "demo": ("a whole site on this machine, with real photographs and a failure", "s2m3.cli.demo"),
    "broker": ("run the embedded MQTT broker, on 127.0.0.1 only", "s2m3.cli.broker"),
    "agent": ("run one device's agent, or write the files of a new one", "s2m3.cli.agent"),
    "orchestrator": ("run the orchestrator", "orchestrator.__main__"),
    "deploy": ("deploy a task: a YAML file, or a name of the catalogue such as pocket/classify", "s2m3.cli.deploy"),
    "rollback": ("deploy an earlier revision of a task again", "s2m3.cli.rollback"),
    "undeploy": ("take a task away", "s2m3.cli.undeploy"),
    "drain": ("take a device out of service: its modules move first, then it unloads", "s2m3.cli.drain"),
    "forget": ("take a device that is gone for good out of the picture", "s2m3.cli.forget"),
    "request": ("send one request and print its answer", "s2m3.cli.request"),
    "http": ("a door for HTTP: tasks are asked by POST", "s2m3.cli.http"),
    "sources": ("turn what a site already publishes into requests, and their answers into topics", "s2m3.cli.sources"),
    "unit": ("print a systemd unit for an agent, an orchestrator, sources or the HTTP door", "s2m3.cli.unit"),
    "healthy": ("whether the service of this container serves: for its health check", "s2m3.cli.healthy"),
    "camera": ("ask tasks about what a camera, a video or a folder shows", "s2m3.cli.camera"),
    "metrics": ("the site's figures for Prometheus, and whether it serves", "s2m3.cli.metrics"),
    "models": ("what the models of the catalogue are made of", "s2m3.cli.models"),
    "head": ("a new task on an encoder that is already there", "s2m3.cli.head"),
    "replay": ("let failures happen to a whole site, and see what its requests felt", "s2m3.cli.replay"),
    "soak": ("failures at random for half an hour: nothing lost, and no process that grows", "s2m3.cli.soak"),
    "fleet": ("the running site as files, for plan and replay", "s2m3.cli.fleet"),
    "plan": ("where modules would go: a plan from files, without any device", "s2m3.cli.plan"),
    "bench": ("measure: accuracy, latency, memory, placement", "s2m3.cli.bench"),
    "dashboard": ("a page that shows devices, tasks, requests and failures as they happen", "s2m3.cli.dashboard"),
    "status": ("show devices, modules and tasks", "s2m3.cli.status"),
    "events": ("show what happens, a line each", "s2m3.cli.events"),
    "trace": ("show where the time of one request went", "s2m3.cli.trace"),
}


class _Version(argparse.Action):
    """Prints the version, which is only looked up then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - slow, and only for this option

        print(f"s2m3 {version('s2m3')}")
        parser.exit()


def _is_utf_8(word: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in word)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 also where the reader of its output has gone, as behind ``| head``.

    What it prints is written line by line, also into a pipe: some commands stay, and a program reads what they say.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where it can be answered, and not when the interpreter ends
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _nobody_reads(file: int) -> bool:
    waiting = select.poll()
    waiting.register(file, 0)
    return any(event & select.POLLERR for _, event in waiting.poll(0))


def _run(argv: Sequence[str] | None) -> int:
    """Run a command; errors that a person can correct become one line on standard error."""
    parser = OneLineParser(prog="s2m3", description="Many multi-modal AI tasks on the small machines of a site.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    add_commands(parser, "command", COMMANDS)
    words = sys.argv[1:] if argv is None else argv
    if wrong := next((word for word in words if not _is_utf_8(word)), None):
        parser.error(f"the argument {wrong!r} is not UTF-8 text")
    arguments = parser.parse_args(words)
    from broker.process import log_to_stderr  # noqa: PLC0415 - structlog, which --help does without

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # a person reads what is printed; services lower the level themselves
        log_to_stderr(getattr(arguments, "log_format", None), level=logging.ERROR)
        return int(arguments.run(arguments))
    except S2M3Error as error:
        from s2m3.cli.output import printable  # noqa: PLC0415 - rich, which --help does without

        advice = START_ONE if isinstance(error, NotConnected) and error.is_absent else ""
        print(f"s2m3: {printable(' '.join(str(error).splitlines()))}{advice}", file=sys.stderr)
        return 2 if isinstance(error, (BadFile, LocalProtocolError)) else 1
    except KeyboardInterrupt:
        print("s2m3: interrupted; everything it started has ended", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
