"""``s2m3 rollback TASK``: deploy a revision of a task again that was deployed before."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from broker.protocol.errors import BadFile
from broker.protocol.reports import TaskStatus
from broker.protocol.specs import Revision
from s2m3.cli.arguments import add_connection, connected, seconds
from s2m3.cli.deploy import KNOWN_S, add_replace, deploy, known_status
from s2m3.cli.task_names import task_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("task", metavar="TASK")
    parser.add_argument(
        "--to",
        metavar="REVISION",
        help="one of `s2m3 deploy --history TASK`; default: the one before, or the served one if a newer one waits",
    )
    add_replace(parser)
    parser.add_argument("--timeout", type=seconds, default=60.0, metavar="S", help="seconds to wait, default 60")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Deploy an earlier revision of a task; 0 when it is served."""
    name = task_name(arguments.task)
    with connected(arguments) as observer:
        if observer.is_at_core:
            problem = "a core has no earlier revisions of its sites' tasks"
            raise BadFile(file=name, problem=problem, fix="deploy the earlier task file again")
        status = known_status(observer, name)
        task = status.task
        wanted = arguments.to or _before(status, observer.orders[task])
        specs = observer.revisions(task, KNOWN_S)
        if arguments.replace and not arguments.to and wanted is not None and wanted == status.revision:
            problem = f"serves {wanted}, and another revision waits or was refused"
            raise BadFile(file=task, problem=problem, fix=f"say which is to replace it: --to {' or '.join(specs)}")
        if wanted is None or wanted not in specs:
            known = ", ".join(specs) or "none"
            problem = "has no revision before" if wanted is None else f"has no revision {wanted}"
            raise BadFile(file=task, problem=problem, fix=f"its revisions, the newest first: {known}")
        return deploy(arguments, observer, specs[wanted].model_copy(update={"replace": arguments.replace}))


def _before(status: TaskStatus, orders: Sequence[Revision | None]) -> Revision | None:
    """The revision to go back to: the one deployed before, or the served one if a newer one waits or was refused."""
    last = status.revisions[0] if status.revisions else None
    is_told = orders[-1:] in ([], [last])  # else no orchestrator has read the last order yet
    if not is_told or (status.candidate is not None and status.revision is not None):
        return status.revision or last
    return status.revisions[1] if len(status.revisions) > 1 else None
