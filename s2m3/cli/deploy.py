"""``s2m3 deploy``: publish a task's spec, wait until this revision is served, and print where its nodes run.

While it is loaded, and if it can't be served, the revision before is served on. ``--history`` lists the last revisions.
"""

from __future__ import annotations

import argparse
import time

from broker.message_sizes import largest_message
from broker.protocol.errors import BadFile
from broker.protocol.messages import Route
from broker.protocol.reports import UNDELIVERED, TaskStatus
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import TaskSpec
from broker.protocol.topics import ALL_SITES, NOT_BRIDGED
from broker.servers.access import site_at_core
from broker.transport.connection import Connection
from broker.transport.port import MAX_PACKET_BYTES
from s2m3.broker_check.probes import passes
from s2m3.catalogue import load_task
from s2m3.cli.arguments import add_connection, connected, connection_of, seconds
from s2m3.cli.output import console, print_result, table
from s2m3.cli.sites import every_site, require_one_place
from s2m3.cli.task_names import task_name
from s2m3.reference.auto_numbers import counted
from s2m3.testbed.observer import UNDEPLOYED, Observer

LEADER_S = 10.0  # for an orchestrator that starts at this moment
DEVICE_S = 10.0  # likewise, for a first device: without one every task is refused at once
ORDER_S = 1.0  # to publish an order that no orchestrator takes yet
STATUS_S = 3.0  # a task's status follows its route within a second
KNOWN_S = 1.0  # retained messages arrive within milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("task", metavar="FILE", help="a task file, or a name of the catalogue; with --history a task")
    add_replace(parser)
    parser.add_argument("--history", action="store_true", help="deploy nothing; list the task's last revisions")
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="S", help="seconds to wait, default 60")
    add_connection(parser)


def add_replace(parser: argparse.ArgumentParser) -> None:
    """Add ``--replace``."""
    parser.add_argument(
        "--replace",
        action="store_true",
        help="end the revision that is served first, and then load this one: for a site whose memory doesn't hold both",
    )


def run(arguments: argparse.Namespace) -> int:
    """Deploy a task, or list its revisions; 0 when it is served."""
    if arguments.history:
        return _history(arguments)
    spec = load_task(arguments.task, counted)
    if arguments.replace:
        spec = spec.model_copy(update={"replace": True})
    connection = connection_of(arguments)
    require_one_place(connection, spec.task)
    if connection.site == ALL_SITES:
        return deploy_everywhere(arguments, connection, spec)
    with connected(arguments) as observer:
        return deploy(arguments, observer, spec)


def deploy(arguments: argparse.Namespace, observer: Observer, spec: TaskSpec) -> int:
    """Deploy a spec, and print what became of it; 0 when this revision is served."""
    if (why := _why_it_cannot_pass(arguments, observer, spec)) is not None:
        print_result(arguments, None, f"{spec.task}: not deployed: {why}")
        return 1
    is_reached = not observer.is_at_core or observer.wait_for(lambda seen: seen.bridge is True, KNOWN_S)
    leads = is_reached and observer.wait_for(lambda seen: seen.leads, min(LEADER_S, arguments.timeout))
    observer.wait_for(lambda seen: seen.has_a_device() or not leads, min(DEVICE_S, arguments.timeout))
    observer.follow(spec.task)
    route = observer.deploy([spec], arguments.timeout if leads else ORDER_S)[spec.task]
    served, document, text = _told(observer, spec, route)
    print_result(arguments, document, f"{spec.task}: {text}")
    return 0 if served else 1


def deploy_everywhere(arguments: argparse.Namespace, core: Connection, spec: TaskSpec) -> int:
    """Deploy a spec to all sites of a core, and print what became of it at each; 0 when each serves it."""
    with every_site(core) as (order, sites):
        until_s = time.monotonic() + arguments.timeout
        for observer in sites.values():
            observer.wait_for(_can_begin, min(DEVICE_S, until_s - time.monotonic()))
        known = {name: observer.known(spec.task) for name, observer in sites.items()}
        order.publish(spec)
        told = {}
        for name, observer in sites.items():
            ends_s = until_s if observer.bridge and observer.leads else time.monotonic() + ORDER_S
            route = observer.outcome(spec, known[name], ends_s)
            told[name] = _told(observer, spec, route)
    lines = [f"{name}: {spec.task}: {text}" for name, (_, _, text) in told.items()]
    lines = lines or [f"{spec.task}: published; no site is bridged to this broker yet, and each gets it when it joins"]
    documents = {name: document for name, (_, document, _) in told.items()}
    print_result(arguments, {"task": spec.task, "sites": documents}, "\n".join(lines))
    return 0 if told and all(served for served, _, _ in told.values()) else 1


def _can_begin(observer: Observer) -> bool:
    return observer.bridge is False or (observer.leads and observer.has_a_device())


def _told(observer: Observer, spec: TaskSpec, route: Route | None) -> tuple[bool, dict[str, object] | None, str]:
    """Whether a site serves what was deployed; the document and the sentence that say it."""
    leads = observer.leads and observer.bridge is not False  # else a route may be an old one
    served = route is not None and route.complete and leads and not observer.is_overtaken(spec)
    document: dict[str, object] | None = route.model_dump(mode="json", exclude_none=True) if route else None
    if not served and (status := observer.statuses.get(spec.task)) is not None and status.candidate is not None:
        document = {**(document or {}), "candidate": status.candidate.model_dump(mode="json", exclude_none=True)}
    return served, document, _overtaken(observer, spec) or _outcome(observer, spec, route, leads=leads)


def _why_it_cannot_pass(arguments: argparse.Namespace, observer: Observer, spec: TaskSpec) -> str | None:
    """The reason why the task's largest message can't pass the broker, found by trying; None if it can.

    Where the broker states a lower limit, the orchestrator knows it, and the task's route says it. A core's broker
    carries no such message of its sites.
    """
    if observer.is_at_core:
        return None
    largest, connection = largest_message(spec), connection_of(arguments)
    most_bytes = min(observer.max_packet_bytes or MAX_PACKET_BYTES, MAX_PACKET_BYTES)
    if largest.packet_bytes > most_bytes or connection.client_id is not None:
        return None
    if passes(connection, largest.packet_bytes) is not False:
        return None
    return (
        f"the broker refused a message of {show_bytes(largest.packet_bytes)}, and {largest.what} may need that much: "
        "send smaller ones and write their size into the task's file, or raise the broker's limit (`s2m3 broker check` "
        "finds it)"
    )


def known_status(observer: Observer, task: str) -> TaskStatus:
    """The status of a task after its last order; raises BadFile if no task of this name is deployed.

    If no orchestrator leads, it is the status before that order; at a core, the last one that came up.
    """
    observer.follow(task)
    if observer.wait_for(lambda seen: task in seen.statuses, KNOWN_S):
        await_current(observer, task)
    if (status := observer.statuses.get(task)) is None:
        if observer.is_deployed(task) and not observer.leads:
            raise BadFile(file=task, problem="no orchestrator has read this task yet", fix="start one")
        known = ", ".join(sorted(observer.statuses)) or "none"
        raise BadFile(file=task, problem="no such task is deployed", fix=f"deployed tasks: {known}")
    return status


def await_current(observer: Observer, *tasks: str) -> None:
    """Wait until the statuses of tasks are those of their last orders; at a core, where they aren't, not at all."""
    if observer.is_at_core:
        return
    for task in tasks:
        observer.follow(task)
    limit_s = STATUS_S if observer.leads else KNOWN_S
    observer.wait_for(lambda seen: all(seen.has_current(task) for task in tasks), limit_s)


def _overtaken(observer: Observer, spec: TaskSpec) -> str:
    """The order that came after a spec; empty without one."""
    if not observer.is_overtaken(spec):
        return ""
    order = observer.orders[spec.task][-1]
    newer = "the task was undeployed" if order == UNDEPLOYED else f"{order or 'another spec'} was deployed"
    return f"revision {spec.revision} is not served: {newer} after it, by another command"


def _outcome(observer: Observer, spec: TaskSpec, route: Route | None, *, leads: bool) -> str:
    if (reason := _reason_to_wait(observer, leads=leads)) is not None:
        return f"published, but not served yet: {reason}"
    if (why := observer.why_refused(spec)) is not None:
        return f"refused: {why}"
    lost = (
        f"{name}: {each.why}" for name, each in sorted(observer.standings.items()) if each.why.startswith(UNDELIVERED)
    )
    if route is None and (why := next(lost, None)) is not None:
        return f"published, but not served yet: {why}"
    if route is None:
        return f"published, but not served yet: the modules of revision {spec.revision} are still being loaded"
    if route.unavailable:
        return f"unavailable: {route.unavailable}"
    places = (f"{name} on {'+'.join(d.device for d in node.devices)}" for name, node in route.nodes.items())
    return f"deployed revision {spec.revision}: {', '.join(places)}"


def _reason_to_wait(observer: Observer, *, leads: bool) -> str | None:
    if observer.bridge is False:
        return "the site's bridge is down; the site gets it when that is up again"
    if observer.bridge is None and observer.is_at_core:
        return f"{NOT_BRIDGED}; it gets it when it joins"
    return None if leads else "no orchestrator is online"


def _history(arguments: argparse.Namespace) -> int:
    name = task_name(arguments.task)
    if connection_of(arguments).site == ALL_SITES:
        raise BadFile(file="--history", problem="is of one site only", fix=f"name it: --site {site_at_core('NAME')}")
    with connected(arguments) as observer:
        status = known_status(observer, name)
        task = status.task
        specs = observer.revisions(task, KNOWN_S)
    candidate = status.candidate
    states = {status.revision: "served"} if status.revision else {}
    if candidate is not None and candidate.revision is not None:
        states[candidate.revision] = candidate.state + (f": {candidate.why}" if candidate.why else "")
    rows = [
        {"revision": revision, "state": states.get(revision, ""), "description": spec.description if spec else None}
        for revision, spec in ((revision, specs.get(revision)) for revision in status.revisions)
    ]
    if arguments.json:
        print_result(arguments, {"task": task, "revisions": rows}, "")
        return 0
    listed = table("revision", "state", "description", title=f"the last revisions of {task}, the newest first")
    for row in rows:
        listed.add_row(row["revision"], row["state"], row["description"] or "")
    console().print(listed)
    if candidate is not None and candidate.revision is None:
        console().print(f"the spec that was deployed last can't be served: {candidate.why}")
    return 0
