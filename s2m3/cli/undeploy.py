"""``s2m3 undeploy``: clear a task's spec and wait until its route is gone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskName
from broker.protocol.topics import ALL_SITES
from broker.transport.connection import Connection
from s2m3.cli.arguments import add_connection, connected, connection_of
from s2m3.cli.output import print_result
from s2m3.cli.sites import every_site, require_one_place
from s2m3.cli.task_names import task_name
from s2m3.testbed.observer import Observer

KNOWN_S = 1.0  # a retained message arrives within milliseconds
GONE_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("task", metavar="TASK")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Undeploy a task; 0 when the orchestrator took its route away."""
    connection, task = connection_of(arguments), task_name(arguments.task)
    places = require_one_place(connection, task)
    if connection.site == ALL_SITES:
        return _everywhere(arguments, connection, is_ordered=ALL_SITES in places)
    with connected(arguments) as observer:
        observer.follow(task)
        if not observer.wait_for(lambda seen: seen.is_deployed(task), KNOWN_S) and connection.site not in places:
            raise _not_deployed(task, observer.routes)
        gone = observer.undeploy(task, GONE_S if observer.bridge is not False else 0.0)
        text = _told(observer, gone=gone)
    print_result(arguments, {"task": task, "undeployed": gone}, f"{task}: {text}")
    return 0 if gone else 1


def _everywhere(arguments: argparse.Namespace, core: Connection, *, is_ordered: bool) -> int:
    """Undeploy a task at all sites of a core; 0 when each one took its route away."""
    task = arguments.task
    with every_site(core) as (order, sites):
        for observer in sites.values():
            observer.listen(KNOWN_S / len(sites))
        known = {each for observer in sites.values() for each in observer.routes}
        if task not in known and not is_ordered:
            raise _not_deployed(task, known)
        order.clear_spec(task)
        until_s, told = time.monotonic() + GONE_S, {}
        for name, observer in sites.items():
            observer.look()
            seconds = until_s - time.monotonic() if observer.bridge else 0.0
            told[name] = observer.wait_for(lambda seen: task not in seen.routes, seconds) and observer.bridge is True
        lines = [f"{name}: {task}: {_told(sites[name], gone=gone)}" for name, gone in told.items()]
    text = "\n".join(lines) or f"{task}: spec cleared; no site is bridged to this broker"
    print_result(arguments, {"task": task, "sites": told}, text)
    return 0 if all(told.values()) else 1


def _told(observer: Observer, *, gone: bool) -> str:
    if observer.bridge is False:
        return "spec cleared; the site's bridge is down, and the site hears of it when that is up again"
    return "undeployed" if gone else "spec cleared, but no orchestrator took the route away"


def _not_deployed(task: TaskName, known: Iterable[TaskName]) -> BadFile:
    fix = f"deployed tasks: {', '.join(sorted(known)) or 'none'}"
    return BadFile(file=task, problem="no such task is deployed", fix=fix)
