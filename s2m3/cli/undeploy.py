"""``s2m3 undeploy``: clear a task's spec and wait until its route is gone."""

from __future__ import annotations

import argparse

from broker.protocol.errors import BadFile
from s2m3.cli.arguments import add_connection, connected
from s2m3.cli.output import print_json
from s2m3.testbed import tasks

ROUTE_S = 1.0  # a retained message arrives within milliseconds
GONE_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("task", metavar="TASK")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Undeploy a task; 0 when the orchestrator took its route away.

    Raises:
        BadFile: no such task is deployed.
        NotConnected: the broker doesn't answer.
    """
    with connected(arguments) as observer:
        if not observer.wait_for(lambda seen: arguments.task in seen.routes, ROUTE_S):
            known = ", ".join(sorted(observer.routes)) or "none"
            raise BadFile(file=arguments.task, problem="no such task is deployed", fix=f"deployed tasks: {known}")
        gone = tasks.undeploy(observer, arguments.task, GONE_S)
    if arguments.json:
        print_json({"task": arguments.task, "undeployed": gone})
    else:
        print(f"{arguments.task}: {'undeployed' if gone else 'spec cleared, but no orchestrator took the route away'}")
    return 0 if gone else 1
