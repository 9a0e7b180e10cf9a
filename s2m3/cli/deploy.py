"""``s2m3 deploy``: publish a task's spec, wait until the task is served, and print where its nodes run."""

from __future__ import annotations

import argparse

from broker.protocol.messages import Route
from s2m3.catalogue import load_task
from s2m3.cli.arguments import add_connection, connected, seconds
from s2m3.cli.output import print_result

LEADER_S = 10.0  # for an orchestrator that starts at this moment
ORDER_S = 1.0  # to publish an order that no orchestrator takes yet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("task", metavar="FILE")
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="S", help="seconds to wait, default 60")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Deploy a task; 0 when it is served."""
    spec = load_task(arguments.task)
    with connected(arguments) as observer:
        leads = observer.wait_for(lambda seen: seen.leads, min(LEADER_S, arguments.timeout))
        route = observer.deploy([spec], arguments.timeout if leads else ORDER_S)[spec.task]
    document = route.model_dump(mode="json", exclude_none=True) if route else None
    print_result(arguments, document, f"{spec.task}: {_outcome(route, leads=leads)}")
    return 0 if route is not None and route.complete and leads else 1  # without a leader, a route may be an old one


def _outcome(route: Route | None, *, leads: bool) -> str:
    if not leads:
        return "published, but not served yet: no orchestrator is online"
    if route is None:
        return "published, but not served yet: its modules are still being loaded"
    if route.unavailable:
        return f"unavailable: {route.unavailable}"
    places = (f"{name} on {'+'.join(d.device for d in node.devices)}" for name, node in route.nodes.items())
    return f"deployed: {', '.join(places)}"
