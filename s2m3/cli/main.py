"""The command line: ``s2m3 COMMAND``. Exit code 0 = it holds, 1 = it does not, 2 = bad input."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
from collections.abc import Sequence

import edge_agent.__main__
import orchestrator.__main__
from broker.process import DEFAULT_BROKER, OneLineParser, log_to_stderr, site_prefix
from broker.protocol.errors import BadFile, S2M3Error
from broker.protocol.messages import MAX_DEADLINE_S
from s2m3.cli import bench, commands, drain, models, replay, soak
from s2m3.cli.head import command as head
from s2m3.cli.plan import command as plan
from s2m3.testbed import demo

INTERRUPTED = 130
LAST_PORT = 65_535


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    whole = OneLineParser(prog="s2m3", description="Many multi-modal AI tasks on the small machines of a site.")
    verbs = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text)

    demo.add_arguments(verb("demo", "a whole site on this machine, with real photographs and a failure"))
    broker = verb("broker", "run the embedded MQTT broker, on 127.0.0.1 only")
    broker.add_argument("--port", type=_port, default=1883, help="default %(default)s; 0 takes a free one")
    broker.set_defaults(run=commands.broker)
    agent = verb("agent", "run one device's agent")
    edge_agent.__main__.add_arguments(agent)
    agent.set_defaults(run=edge_agent.__main__.run)
    leader = verb("orchestrator", "run the orchestrator")
    orchestrator.__main__.add_arguments(leader)
    leader.set_defaults(run=orchestrator.__main__.run)

    deploy = verb("deploy", "deploy a task: a YAML file, or a name of the catalogue such as pocket/classify")
    deploy.add_argument("task", metavar="FILE")
    deploy.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait, default 60")
    deploy.set_defaults(run=commands.deploy)
    undeploy = verb("undeploy", "take a task away")
    undeploy.add_argument("task", metavar="TASK")
    undeploy.set_defaults(run=commands.undeploy)
    emptied = verb("drain", "take a device out of service: its modules move first, then it unloads")
    emptied.add_argument("device", metavar="DEVICE")
    emptied.add_argument("--undo", action="store_true", help="put it back in service")
    emptied.add_argument("--timeout", type=_seconds, default=600.0, metavar="S", help="seconds to wait, default 600")
    emptied.set_defaults(run=drain.drain)
    request = verb("request", "send one request and print its answer")
    request.add_argument("task", metavar="TASK")
    request.add_argument("--image", metavar="FILE")
    request.add_argument(
        "--text", metavar="S", action="append", default=[], help="again for a second text, or one more line"
    )
    request.add_argument("--audio", metavar="FILE")
    request.add_argument("--deadline", type=_seconds, default=30.0, metavar="S", help="seconds, default 30")
    request.set_defaults(run=commands.request)
    models.add_arguments(verb("models", "what the models of the catalogue are made of"))
    head.add_arguments(verb("head", "a new task on an encoder that is already there"))
    replay.add_arguments(verb("replay", "let failures happen to a whole site, and see what its requests felt"))
    soak.add_arguments(verb("soak", "failures at random for half an hour: nothing lost, and no process that grows"))
    plan.add_arguments(verb("plan", "where modules would go: a plan from files, without any device"))
    bench.add_arguments(verb("bench", "measure: accuracy, latency, memory, placement"))
    status = verb("status", "show devices, modules and tasks")
    status.set_defaults(run=commands.status)
    for command in (deploy, undeploy, emptied, request, status):
        command.add_argument("--broker", default=DEFAULT_BROKER, metavar="URL", help="default %(default)s")
        command.add_argument(
            "--site", type=site_prefix, metavar="PREFIX", help="the site's topic prefix, when it has one"
        )
        command.add_argument("--json", action="store_true", help="print one JSON document")
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and turn what a person can mend into one line."""
    arguments = parser().parse_args(argv)
    log_to_stderr(level=logging.ERROR)  # a person reads what is printed; services raise it for themselves
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(arguments.run(arguments))
    except BadFile as error:
        print(f"s2m3: {error}", file=sys.stderr)
        return 2
    except S2M3Error as error:
        print(f"s2m3: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("s2m3: interrupted; everything it started has ended", file=sys.stderr)
        return INTERRUPTED


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: use more than 0 and at most {MAX_DEADLINE_S:g} seconds")
    return seconds


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: use a number from 0 to {LAST_PORT}")
    return int(text)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
