"""``s2m3 broker check``: whether a broker does what a site needs, and whether the messages of tasks fit into it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from broker.message_sizes import SentMessage, largest_message, too_large, why_too_large
from broker.protocol.errors import BadFile, BrokerRefused
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import TaskSpec
from broker.transport.connection import Connection
from s2m3.broker_check.probes import Report, check_broker
from s2m3.catalogue import load_tasks
from s2m3.cli.arguments import add_connection, connection_of
from s2m3.cli.deploy import KNOWN_S, await_current
from s2m3.cli.output import console, print_result, table
from s2m3.testbed.observer import Observer


@dataclass(frozen=True)
class Fit:
    """Whether a task's largest message passes; ``why`` not."""

    task: str
    largest: SentMessage
    why: str | None
    largest_s: float | None  # for it to cross the broker, on this link


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("url", nargs="?", metavar="URL", help="the broker, as --broker names it")
    text = "a task file, a folder of them, or a name of the catalogue; may be given often; default: what is deployed"
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help=text)
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check a broker; 0 when a site can work with it, and all tasks fit."""
    if arguments.url and arguments.broker:
        raise BadFile(file="--broker", problem="names a broker, and URL does, too", fix="leave one of them out")
    arguments.broker = arguments.url or arguments.broker
    connection = connection_of(arguments)
    if connection.client_id is not None:
        problem = f"this account may have one connection only, as {connection.client_id}, and a check has several"
        raise BadFile(file="the account", problem=problem, fix="use one of the role operator or orchestrator")
    named = [written.spec for name in arguments.task for written in load_tasks(name)]
    report = check_broker(connection)
    specs, unread = (named, None) if arguments.task else _deployed(connection)
    fits = [_fit(spec, report) for spec in specs]
    holds = report.holds and all(fit.why is None for fit in fits)
    document = _document(connection, report, fits, unread, holds=holds)
    print_result(arguments, document, lambda _: _show(connection, report, fits, unread, holds=holds))
    return 0 if holds else 1


def _deployed(connection: Connection) -> tuple[list[TaskSpec], str | None]:
    """The deployed tasks; or none, and why they can't be read."""
    try:
        with Observer(connection) as observer:
            observer.listen(KNOWN_S)  # nothing says which status is the last one
            tasks = sorted(observer.statuses)
            await_current(observer, *tasks)
            found = {task: observer.revisions(task, KNOWN_S) for task in tasks}
            served = {task: status.revision for task, status in observer.statuses.items()}
    except BrokerRefused as error:
        return [], f"{error}; name tasks with --task"
    specs = {
        task: revisions.get(served[task] or "") or next(iter(revisions.values()), None)
        for task, revisions in found.items()
    }
    return [spec for spec in specs.values() if spec is not None], None


def _fit(spec: TaskSpec, report: Report) -> Fit:
    largest, limit = largest_message(spec), report.limit_bytes
    seconds = None
    if report.bytes_per_s and report.round_trip_s is not None:
        seconds = largest.size_bytes / report.bytes_per_s + report.round_trip_s
    why = why_too_large(spec, limit)
    if why is None and limit is not None and largest.packet_bytes > limit:
        why = too_large(largest, limit)
    return Fit(spec.task, largest, why, seconds)


def _document(
    connection: Connection, report: Report, fits: list[Fit], unread: str | None, *, holds: bool
) -> dict[str, object]:
    return {
        "broker": connection.url,
        "ok": holds,
        "checks": {
            each.what: {"state": each.state, "needed": each.needed, "text": each.text} for each in report.findings
        },
        "stated_packet_bytes": report.packet_bytes,
        "largest_packet_bytes": report.message_bytes,
        "refused_packet_bytes": report.refused_bytes,
        "round_trip_s": report.round_trip_s,
        "bytes_per_s": report.bytes_per_s,
        "tasks": {
            fit.task: {
                "fits": fit.why is None,
                "largest": fit.largest.what,
                "largest_bytes": fit.largest.size_bytes,
                "largest_s": fit.largest_s,
                "why": fit.why,
            }
            for fit in fits
        },
        **({"tasks_unread": unread} if unread else {}),
    }


def _show(connection: Connection, report: Report, fits: list[Fit], unread: str | None, *, holds: bool) -> None:
    shown = table("what", "", "found", title=f"the broker at {connection.url}")
    for each in report.findings:
        shown.add_row(each.what, each.state, each.text)
    console().print(shown)
    if fits:
        tasks = table("task", "fits", "its largest message", title="tasks")
        for fit in fits:
            seconds = f", {fit.largest_s * 1000:.0f} ms through this broker" if fit.largest_s is not None else ""
            size = f"{fit.largest.what}: {show_bytes(fit.largest.size_bytes)}{seconds}"
            tasks.add_row(fit.task, "no" if fit.why else "yes", fit.why or size)
        console().print(tasks)
    if unread:
        console().print(f"the deployed tasks can't be read: {unread}")
    failed = [each.what for each in report.findings if not each.holds] + [fit.task for fit in fits if fit.why]
    console().print("a site works with this broker" if holds else f"not with this broker: {', '.join(failed)}")
