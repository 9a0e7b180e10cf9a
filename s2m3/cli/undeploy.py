"""``s2m3 undeploy``: clear a task's spec and wait until its route is gone."""

from __future__ import annotations

import argparse

from broker.protocol.errors import BadFile
from s2m3.cli.arguments import add_connection, connected
from s2m3.cli.output import print_result

ROUTE_S = 1.0  # a retained message arrives within milliseconds
GONE_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("task", metavar="TASK")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Undeploy a task; 0 when the orchestrator took its route away."""
    with connected(arguments) as observer:
        if not observer.wait_for(lambda seen: arguments.task in seen.routes, ROUTE_S):
            known = ", ".join(sorted(observer.routes)) or "none"
            raise BadFile(file=arguments.task, problem="no such task is deployed", fix=f"deployed tasks: {known}")
        gone = observer.undeploy(arguments.task, GONE_S)
    text = "undeployed" if gone else "spec cleared, but no orchestrator took the route away"
    print_result(arguments, {"task": arguments.task, "undeployed": gone}, f"{arguments.task}: {text}")
    return 0 if gone else 1
