"""``s2m3 fleet export DIR``: the running site as files for ``s2m3 plan`` and ``s2m3 replay``."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from broker.protocol.errors import BadFile, BrokerRefused
from broker.protocol.specs import TaskSpec
from s2m3.cli.arguments import add_connection, connected
from s2m3.cli.output import print_result
from s2m3.cli.status import HEARTBEATS_S, summaries_of, traffic_of
from s2m3.testbed.observer import Observer
from s2m3.testbed.site_export import FLEET, REQUESTS, SCENARIO, TASKS, Exported, export

SPECS_S = 2.0  # retained messages arrive within milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands under ``s2m3 fleet``."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    text = "write the site's devices, tasks and links into a new folder"
    exporting = verbs.add_parser("export", help=text, description=text)
    exporting.add_argument("directory", type=Path, metavar="DIR", help="a folder that isn't there yet")
    text = "the models directory of the machine that replays it, for tasks of your own models"
    exporting.add_argument("--models", type=Path, metavar="DIR", help=text)
    add_connection(exporting)


def run(arguments: argparse.Namespace) -> int:
    """Write the files; returns the exit status 0."""
    directory: Path = arguments.directory
    _check_directory(directory)
    if arguments.models is not None and not arguments.models.is_dir():
        raise BadFile(file="--models", problem=f"{arguments.models} is not a folder", fix="name a models directory")
    try:
        with connected(arguments) as seen:
            exported = _export(seen, arguments.models)
    except BrokerRefused as error:
        fix = "use an account that may: an operator's or an observer's"
        raise BadFile(file="fleet export", problem=f"this account may not read {error.topic}", fix=fix) from error
    _write(directory, exported)
    document = {
        "directory": str(directory),
        "devices": list(exported.devices),
        "tasks": list(exported.tasks),
        "left_out": dict(exported.left_out),
        "not_played": list(exported.not_played),
        "made_up_requests": list(exported.made_up),
        "files": sorted(exported.files),
    }
    print_result(arguments, document, _told(directory, exported))
    return 0


def _check_directory(directory: Path) -> None:
    if directory.exists() or directory.is_symlink():
        raise BadFile(file=str(directory), problem="is there already", fix="remove it, or name a new folder")


def _export(seen: Observer, models: Path | None) -> Exported:
    seen.wait_for(lambda each: each.leader is not None and each.has_heartbeats(), HEARTBEATS_S)
    seen.listen(HEARTBEATS_S if seen.devices else 0.0)  # each device's newest figures
    if not seen.devices and seen.leader is None:
        problem = "no device and no orchestrator is to be seen"
        fix = "start them, name the site that they are at, or use an account that may read it: an operator's"
        raise BadFile(file="fleet export", problem=problem, fix=fix)
    specs = [_spec(seen, task) for task in sorted(seen.routes.keys() | seen.statuses.keys())]
    per_minute = sum(each.requests for each in traffic_of(summaries_of(seen, time.time())).values())
    place = seen.prefix.removesuffix("/s2m3/v1").removesuffix("s2m3/v1")
    title = f"The site{f' {place}' if place else ''} as it was on {datetime.now().astimezone():%Y-%m-%d %H:%M}."
    unserved = [spec.task for spec in specs if not seen.serves([spec.task])]
    models = models and models.absolute()
    return export(seen, specs, title=title, models=models, per_minute=per_minute, unserved=unserved)


def _spec(seen: Observer, task: str) -> TaskSpec:
    """The spec that is served; of a task that isn't, the newest one."""
    specs = seen.revisions(task, SPECS_S)
    route = seen.routes.get(task)
    served = specs.get(route.revision) if route is not None and route.revision is not None else None
    if spec := served or next(iter(specs.values()), None):
        return spec
    problem, fix = "its spec can't be read at the broker", "deploy it again, or use an operator's account"
    raise BadFile(file=task, problem=problem, fix=fix)


def _write(directory: Path, exported: Exported) -> None:
    """Write all files, or none."""
    try:
        directory.mkdir()
    except OSError as error:
        problem = f"can't be made: {error.strerror}"
        raise BadFile(
            file=str(directory), problem=problem, fix="name a new folder in one that you may change"
        ) from error
    try:
        for name, content in exported.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        with suppress(OSError):
            shutil.rmtree(directory)
        problem, fix = f"can't be written: {error.strerror}", "free some room, or name another folder"
        raise BadFile(file=str(directory), problem=problem, fix=fix) from error


def _told(directory: Path, exported: Exported) -> str:
    first = exported.devices[0]
    lines = [f"{directory}: {_count('device', exported.devices)} and {_count('task', exported.tasks)}"]
    lines += [f"left out: {name}: {why}" for name, why in exported.left_out.items()]
    lines += [
        f"{directory / REQUESTS / task} has made-up requests: put real ones in their place" for task in exported.made_up
    ]
    if exported.not_played:
        names = ", ".join(exported.not_played)
        lines.append(f"not in {directory / SCENARIO}, because the site doesn't serve it now: {names}")
    plan = f"s2m3 plan --fleet {directory / FLEET} --tasks {directory / TASKS}"
    replay = f"s2m3 replay {directory / SCENARIO}"
    lines += [f"what if {first} dies?", f"  {plan} --without {first}", f"  {replay} --without {first}"]
    lines += [f"what if one more like {first} comes?", f"  {plan} --one-more {first}", f"  {replay} --one-more {first}"]
    return "\n".join(lines)


def _count(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'} ({', '.join(names)})"
