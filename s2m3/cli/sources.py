"""``s2m3 sources``: turn what a site already publishes into requests; ``check`` says what files would do."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from broker.arguments import OneLineParser, add_broker, add_until_stdin_closes, connection_of, site_prefix
from broker.process import end_at_once, log_to_stderr, stopped_by_signals
from broker.protocol.sources import SourceSpec
from broker.protocol.topics import SOURCE_ANSWER, prefix_of
from broker.service_manager import ServiceManager
from s2m3.cli.arguments import add_json
from s2m3.cli.output import print_result
from s2m3.sources.files import Configuration, read_files
from s2m3.sources.service import Sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="FILE",
        help="YAML files with sources; without, those that the broker retains",
    )
    add_broker(parser)
    add_until_stdin_closes(parser)
    parser.set_defaults(run=_run)
    text = "without a command: run the sources, or wait as the spare of a process that does"
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=OneLineParser, description=text)
    check = verbs.add_parser("check", help="say what files would do, without a broker")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.add_argument(
        "--site", type=site_prefix, metavar="PREFIX", default=argparse.SUPPRESS, help="the site's topic prefix"
    )
    add_json(check)
    check.set_defaults(run=_check)


def _run(arguments: argparse.Namespace) -> int:
    """Run the sources until a signal comes."""
    end_at_once()
    log_to_stderr(arguments.log_format)
    connection = connection_of(arguments)
    configuration = read_files(arguments.config, prefix_of(connection.site))
    sources = Sources(connection, configuration, manager=ServiceManager(os.environ))
    with stopped_by_signals(sources.stop, until_stdin_closes=arguments.until_stdin_closes):
        sources.run()
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """Print what the files would do; 0 when they are right."""
    prefix = prefix_of(connection_of(arguments).site)
    configuration = read_files(arguments.files, prefix)
    document = {
        "sources": [described(spec, prefix) for spec in configuration.sources.values()],
        "homeassistant": configuration.homeassistant,
    }
    print_result(arguments, document, _told(configuration, prefix))
    return 0


def described(spec: SourceSpec, prefix: str) -> dict[str, object]:
    """The effect of a source, for programs."""
    paths = {} if isinstance(spec.payload, str) else dict(spec.payload["json"])
    return {
        "source": spec.source,
        "reads": spec.subscribe,
        "captures": spec.subscribe.split("/").count("+"),
        "task": spec.task,
        "payload": spec.payload,
        "inputs": {name: f"{path} of the message" for name, path in paths.items()} | dict(spec.inputs),
        "answers": [SOURCE_ANSWER.at(prefix, source=spec.source), *([spec.publish] if spec.publish else [])],
        "min_interval_s": spec.min_interval_s,
        "retained": spec.retained,
        "deadline_s": spec.deadline_s,
    }


def _told(configuration: Configuration, prefix: str) -> str:
    lines = []
    for spec in configuration.sources.values():
        places = " and ".join([SOURCE_ANSWER.at(prefix, source=spec.source), *([spec.publish] if spec.publish else [])])
        rate = f"at most one request in {spec.min_interval_s:g} s" if spec.min_interval_s else "one request at a time"
        kept = "skipped" if spec.retained == "skip" else "taken"
        lines += [
            f"{spec.source}",
            f"  reads     {spec.subscribe}; retained messages are {kept}",
            f"  asks      {spec.task}, with {_inputs(spec)}",
            f"  rate      {rate} for each topic; the newest message is sent, older ones are skipped and counted",
            f"  deadline  {spec.deadline_s:g} s",
            f"  answers   {places}",
        ]
    if configuration.homeassistant:
        lines.append(f"Home Assistant finds devices and sources below {configuration.homeassistant}/")
    return "\n".join(lines)


def _inputs(spec: SourceSpec) -> str:
    taken = ["the message"]
    if not isinstance(spec.payload, str):
        taken = [f"{name} at {path} of the message" for name, path in spec.payload["json"].items()]
    for name, value in spec.inputs.items():
        taken.append(f"{name}: {value if isinstance(value, str) else ' | '.join(value)}")
    return "; ".join(taken)
