"""``s2m3 agent``: run one device's agent; ``init`` writes the files of a gateway from nothing."""

from __future__ import annotations

import argparse
import re
import shlex
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.arguments import OneLineParser, add_broker, places_of
from broker.directories import in_home
from broker.protocol.errors import BadFile
from broker.transport.connection import parse_url

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
KEYS = ("id", "memory", "engine", "models", "tasks", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the agent, and of ``init``."""
    from edge_agent.__main__ import add_arguments as add_of_agent  # noqa: PLC0415 - `unit` needs the name alone

    add_of_agent(parser, needs_config=False)
    parser.set_defaults(run=_run, parser=parser)
    text = "without a command: run the agent of --config"
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=OneLineParser, description=text)
    init = verbs.add_parser("init", help="write the agent's file, its connection and a systemd unit")
    init.add_argument("--id", help="the device's name; at a terminal you are asked, with the machine's name as default")
    init.add_argument(
        "--memory", metavar="SIZE", help="for modules, such as 300MiB; default: what is free at each start"
    )
    init.add_argument("--engine", choices=("auto", "torch", "onnx"), help="default auto: torch where it is installed")
    init.add_argument("--models", type=Path, metavar="DIR", help="the models directory, with checkpoints and exports")
    init.add_argument("--tasks", nargs="+", metavar="TASK", help="the tasks that it may serve; default: all")
    init.add_argument("--threads", type=int, metavar="N", help="of one forward pass; default 1")
    init.add_argument(
        "--to", type=Path, metavar="DIR", help="write there; default: the folder of --connection, else one named ID"
    )
    init.add_argument("--systemd", action="store_true", help="also write a systemd unit, s2m3-agent.service")
    init.add_argument("--program", type=Path, metavar="PATH", help="s2m3 for the unit; default: that of this Python")
    add_broker(init, f"default {DEFAULT_BROKER}")
    init.set_defaults(run=_init)


def _run(arguments: argparse.Namespace) -> int:
    from edge_agent.__main__ import run  # noqa: PLC0415 - the same

    if arguments.config is None:
        arguments.parser.error("the following arguments are required: --config")
    return run(arguments)


def _init(arguments: argparse.Namespace) -> int:
    """Write the files, and print what to do with them."""
    from s2m3.cli.unit import unit_of  # noqa: PLC0415 - only for this command
    from s2m3.gateway import AGENT_FILE, CONNECTION_FILE, write_gateway  # noqa: PLC0415 - the same

    if sys.stdin.isatty():
        _ask(arguments)
    if not arguments.id:
        raise BadFile(file="--id", problem="is missing", fix="name the device, as in --id gw-a")
    given = {key: _value(key, getattr(arguments, key)) for key in KEYS if getattr(arguments, key) is not None}
    beside = Path(arguments.connection).parent if arguments.connection else Path(arguments.id)
    folder = (arguments.to or beside).absolute()
    unit_file = folder / "s2m3-agent.service"
    if arguments.systemd and unit_file.exists():
        fix = "remove it, or name another folder with --to"
        raise BadFile(file=str(unit_file), problem="is there already", fix=fix)
    written = write_gateway(folder, given, places_of(arguments))
    words = ("--config", str(folder / AGENT_FILE), "--connection", str(folder / CONNECTION_FILE))
    if arguments.systemd:
        try:
            text = unit_of("agent", words, name="s2m3-agent", program=arguments.program)
        except BadFile:
            for path in written:
                path.unlink()
            raise
        unit_file.write_text(text)
        written.append(unit_file)
    print(f"{folder}: {', '.join(path.name for path in written)}")
    print(f"by hand: s2m3 agent {shlex.join(words)}")
    if arguments.systemd:
        copy = f"cp {shlex.quote(str(unit_file))} /etc/systemd/system/"
        print(f"as a service, as root: {copy} && systemctl enable --now s2m3-agent")
    return 0


def _value(key: str, given: object) -> object:
    """The value of a key. A number of bytes stays a number, so that ``--memory 300`` is refused as in a file."""
    if isinstance(given, Path):
        return str(in_home(given).absolute())
    return int(str(given)) if key == "memory" and re.fullmatch("[0-9]+", str(given)) else given


def _ask(arguments: argparse.Namespace) -> None:
    """Ask at the terminal for what the command line leaves out."""
    if not arguments.id:
        name = re.sub("[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-") or "gateway"
        arguments.id = _answer("the device's name", name, partial(_check, "id")) or name
    if not (arguments.broker or arguments.connection):
        arguments.broker = _answer("the broker's address", DEFAULT_BROKER, parse_url) or DEFAULT_BROKER
    if not arguments.memory:
        question = "memory for modules, such as 300MiB"
        arguments.memory = _answer(question, "what is free at each start", partial(_check, "memory")) or None
    if not arguments.models:
        models = _answer("the models directory", "none", in_home)
        arguments.models = Path(models) if models else None


def _answer(question: str, shown: str, check: Callable[[str], object]) -> str:
    """An answer that passes its check, or an empty one: of a wrong one it says why, and asks again."""
    while True:
        try:
            answer = input(f"{question} [{shown}]: ").strip()
        except EOFError:
            raise KeyboardInterrupt from None
        try:
            if answer.isprintable():
                if answer:
                    check(answer)
                return answer
            print("has signs that can't be printed; write it again")
        except BadFile as error:
            print(f"{error.problem}; {error.fix}")


def _check(key: str, answer: str) -> None:
    """Raise BadFile for an answer that the agent's file may not have."""
    from s2m3.gateway import check_agent  # noqa: PLC0415 - only for this command

    with TemporaryDirectory() as folder:
        check_agent(Path(folder, "agent.yaml"), {"id": "gw-a", key: _value(key, answer)})
