"""Finds task specs by name: the catalogue that is installed, files, directories, and lists of them.

Owns how a person names tasks, and remembers where each was written, so that what is wrong between two files can be
shown. Knows nothing of what a spec means.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from broker.files import bad_field, load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import DeviceId, Positive, Spec, TaskSpec
from edge_agent import catalog

_SUFFIXES = (".yaml", ".yml", ".json")


class TaskUse(Spec):
    """One line of a list: a task by catalogue name or file (beside the list), and what is different about it here."""

    task: Annotated[str, Field(min_length=1)]
    source: DeviceId | None = None
    weight: Positive | None = None

    def applied(self, spec: TaskSpec) -> TaskSpec:
        """The task's spec with what is different."""
        return spec.model_copy(update=self.model_dump(include={"source", "weight"}, exclude_none=True))


class TaskList(Spec):
    """A file that lists tasks."""

    tasks: Annotated[tuple[TaskUse, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Written:
    """A task spec and where a person wrote it."""

    spec: TaskSpec
    file: str
    at: tuple[int | str, ...] = ()  # inside a list; the file is a task spec itself when this is empty

    def wrong(self, field: str, *, problem: str, fix: str) -> BadFile:
        """The error that shows one of this task's fields."""
        return bad_field(self.file, (*self.at, field), problem=problem, fix=fix)


def load_task(name: str) -> TaskSpec:
    """Read a task spec by catalogue name (``pocket/classify``) or by path (``mine.yaml``).

    Raises:
        BadFile: neither, or the file is wrong.
    """
    return load_spec(_file_of(name), TaskSpec)


def load_tasks(name: str | Path) -> list[Written]:
    """Read the tasks of a catalogue name, a file, a list of tasks, or all files of a directory, by name.

    Raises:
        BadFile: it is none of these, or a file is wrong.
    """
    if Path(name).is_dir():
        files = sorted(path for path in Path(name).iterdir() if path.suffix in _SUFFIXES)
        if not files:
            raise BadFile(file=str(name), problem="holds no task files", fix=f"put in some {', '.join(_SUFFIXES)}")
        return [written for path in files for written in load_tasks(path)]
    path = _file_of(str(name))
    if not _is_list(path):
        return [Written(load_spec(path, TaskSpec), str(path))]
    found = []
    for position, use in enumerate(load_spec(path, TaskList).tasks):
        beside = path.parent / use.task
        spec = load_task(str(beside) if beside.is_file() else use.task)
        found.append(Written(use.applied(spec), str(path), ("tasks", position)))
    return found


def _file_of(name: str) -> Path:
    if name in catalog.names():
        return catalog.path(name)
    if name.endswith(_SUFFIXES) or Path(name).is_file():
        return Path(name)
    known = ", ".join(catalog.names())
    raise BadFile(file=name, problem="is neither in the catalogue nor a file", fix=f"name a file, or one of: {known}")


def _is_list(path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False  # reading it as a spec says what is wrong
    return isinstance(content, dict) and "tasks" in content
