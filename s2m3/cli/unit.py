"""``s2m3 unit``: print a systemd unit for a service of this site, which is given as it would be started by hand."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from broker.arguments import connection_of
from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.transport.connection import ConnectionFile, ConnectionKeys, parse_url
from s2m3 import units
from s2m3.cli.commands import CommandParser
from s2m3.units import SERVICES, require_visible, unit

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.usage = "s2m3 unit [--name NAME] [--program PATH] SERVICE OPTION ..."
    parser.add_argument("--name", help="of the unit; default s2m3-SERVICE")
    parser.add_argument("--program", type=Path, metavar="PATH", help="s2m3; default: that of this Python environment")
    parser.add_argument("service", choices=SERVICES, metavar="SERVICE", help=", ".join(SERVICES))
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="OPTION", help="its options, as s2m3 SERVICE has them"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the unit; returns the exit status 0."""
    name = arguments.name or f"s2m3-{arguments.service}"
    sys.stdout.write(unit_of(arguments.service, arguments.words, name=name, program=arguments.program))
    return 0


def unit_of(service: str, words: Sequence[str], *, name: str, program: Path | None) -> str:
    """The unit of a service with these options, which its own parser checks; raises BadFile."""
    if not NAME.fullmatch(name):
        raise BadFile(
            file="--name", problem=f"{name!r} is not a valid name of a unit", fix="use letters, digits, - and _"
        )
    parser = CommandParser(prog=f"s2m3 {service}")
    parser.module = SERVICES[service]
    given = parser.parse_args(list(words))
    if getattr(given, "verb", None):
        raise BadFile(file=f"s2m3 {service}", problem=f"{given.verb} isn't a service", fix="leave it out")
    if getattr(given, "state_dir", None):
        raise BadFile(file="--state-dir", problem=f"a service has /var/lib/{name}", fix="leave it out")
    if given.broker and parse_url(given.broker).password:
        problem = "has a password, which every user of the machine could read in the unit and in the list of processes"
        fix = "write broker, user and password_file into a file, and name it with --connection"
        raise BadFile(file="--broker", problem=problem, fix=fix)
    places: list[tuple[Path, ConnectionKeys]] = []
    if given.connection:
        places.append((Path(given.connection), load_spec(given.connection, ConnectionFile)))
    memory_max_bytes = None
    if service == "agent":
        memory_max_bytes = _of_agent(Path(given.config), places)
    else:
        given.command = service
        connection_of(given)  # it can be read
    return unit(
        service,
        words,
        name=name,
        program=program.absolute() if program else _own_program(),
        places=places,
        memory_max_bytes=memory_max_bytes,
    )


def _of_agent(file: Path, places: list[tuple[Path, ConnectionKeys]]) -> int | None:
    """The most memory of an agent; its file joins the places. Raises BadFile for what a service doesn't see."""
    from edge_agent.config import AgentConfig  # noqa: PLC0415 - only for an agent
    from edge_agent.device.profile import RESERVE_BYTES  # noqa: PLC0415 - the same
    from edge_agent.runtime import engines  # noqa: PLC0415 - the same

    config = load_spec(file, AgentConfig)
    places.append((file, config))
    if config.state_dir:
        raise BadFile(file=str(file), field="state_dir", problem="a service has its own directories", fix="remove it")
    if config.models:
        models = Path(config.models)
        if not models.is_absolute():
            raise BadFile(
                file=str(file), field="models", problem="is relative, and a service begins in /", fix="write it from /"
            )
        require_visible(models, f"{file}: models", f"move it to /srv{models}")
    if config.memory is None or config.accelerator == "cuda":
        return None
    engine = engines.chosen(config.engine, str(file))
    if engine == "torch" and config.accelerator == "auto" and units.GPU.exists():
        return None  # this memory may be the card's
    return round(config.memory / (1 - config.headroom)) + RESERVE_BYTES[engine]


def _own_program() -> Path:
    program = Path(sys.executable).with_name("s2m3")
    fix = "install s2m3 elsewhere (python3 -m venv /opt/s2m3), or name another with --program"
    if not program.is_file():
        raise BadFile(file=str(program), problem="isn't there", fix=fix)
    for each in (program, Path(sys.executable).resolve()):
        require_visible(each, "--program", fix)
    return program
