"""The files of a plan: a fleet file and task files, read and checked against each other.

Owns the rules between files; each file's own rules are its spec's. A wrong field is shown with its file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import DeviceSpec, FleetSpec, ModuleKey, ModuleName, TaskSpec
from s2m3.catalogue import Written, load_tasks


def read(fleet: str | Path, tasks: Sequence[str | Path]) -> tuple[tuple[DeviceSpec, ...], list[TaskSpec]]:
    """The devices, and the tasks with the source of each filled in.

    Args:
        fleet: a fleet file.
        tasks: catalogue names, task files, lists of tasks, or directories of such files.

    Raises:
        BadFile: a file is wrong; two tasks have one name; a task's source is not a device of the fleet; one module name
            means two different modules.
    """
    found = load_spec(fleet, FleetSpec)
    written = [each for name in tasks for each in load_tasks(name)]
    if not written:
        raise BadFile(file="--tasks", problem="names no task", fix="name a task file, or one of the catalogue")
    _refuse_one_name_for_two_tasks(written)
    _refuse_one_name_for_two_modules(written)
    known = {device.id for device in found.devices}
    for each in written:
        if each.spec.source is not None and each.spec.source not in known:
            raise each.wrong(
                "source",
                problem=f"names {each.spec.source}, which is not a device of {fleet}",
                fix="name one of its devices, or leave it out to take the fleet's source",
            )
    return found.devices, with_sources([each.spec for each in written], found)


def with_sources(tasks: Iterable[TaskSpec], fleet: FleetSpec) -> list[TaskSpec]:
    """The tasks, each with a source: its own, or the fleet's."""
    return [task if task.source else task.model_copy(update={"source": fleet.source}) for task in tasks]


def _refuse_one_name_for_two_tasks(written: Sequence[Written]) -> None:
    first: dict[str, Written] = {}
    for each in written:
        if other := first.get(each.spec.task):
            raise each.wrong(
                "task",
                problem=f"{each.spec.task} is the name of another task too, in {other.file}",
                fix="name each task once, or rename one",
            )
        first[each.spec.task] = each


def _refuse_one_name_for_two_modules(written: Sequence[Written]) -> None:
    """A plan names modules as tasks do, so one name must mean one module."""
    first: dict[ModuleName, tuple[ModuleKey, Written]] = {}
    for each in written:
        for node in each.spec.nodes.values():
            key = each.spec.modules[node.module].key
            before, other = first.setdefault(node.module, (key, each))
            if before != key:
                raise each.wrong(
                    "modules" if each.at else f"modules.{node.module}",
                    problem=f"{node.module} is another module in {other.file}: {before} there, {key} here",
                    fix="rename one of the two",
                )
