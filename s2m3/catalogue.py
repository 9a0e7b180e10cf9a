"""Task specs by name: of the installed catalogue, files, directories, and lists of them; and the catalogue's numbers.

Owns how a person names tasks, and remembers where each was written, so that an error between two files can show the
place. Imports no torch: the sizes of a model are read, not counted.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from broker.files import bad_field, inside, keys_of, load_spec
from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.specs import (
    COMMIT,
    DeviceId,
    ModuleName,
    ModuleSpec,
    Positive,
    TaskSpec,
)
from broker.protocol.values import Spec
from edge_agent import catalog

KINDS = (
    "retrieval",
    "segmentation",
    "encoder-vqa",
    "decoder-vqa",
    "captioning",
    "alignment",
    "classification",
    "speech",
    "embed-image",
    "embed-text",
)
"""The tasks of the catalogue; a file in edge_agent/catalog/hub is named KIND-MODEL.yaml."""

_NEAR, _LIKE = 3, 0.8  # names that an error shows in place of a wrong one, and how like it they are

_SUFFIXES = (".yaml", ".yml", ".json")
AUTO = "auto"
"""The word of a task file in place of a number that this machine can count."""
NUMBERS = ("memory_bytes", "flops", "output_bytes")
TYPICAL_BYTES = {"image": 150_000, "text": 100, "audio": 160_000}
"""Of an input by its kind, as in the catalogue: a frame of a camera, a few captions, five seconds of sound."""
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of one parameter


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


Count = Callable[[ModuleSpec, str | None], Mapping[str, int]]
"""Finds the ``NUMBERS`` of a module in one of its uses, or raises ModuleRefused (``reference.auto_numbers``)."""


def not_counted(_: ModuleSpec, __: str | None) -> Mapping[str, int]:
    """Refuse to count, in a command that reads numbers only."""
    raise ModuleRefused("only `s2m3 deploy` and `s2m3 plan` count")


@dataclass(frozen=True)
class Written:
    """A task spec and where a person wrote it."""

    spec: TaskSpec
    file: str
    at: tuple[int | str, ...] = ()  # inside a list; the file is a task spec itself when this is empty

    def wrong(self, field: str, *, problem: str, fix: str) -> BadFile:
        """The error that shows one of this task's fields."""
        return bad_field(self.file, (*self.at, field), problem=problem, fix=fix)


def load_task(name: str, count: Count = not_counted) -> TaskSpec:
    """Read a task spec by catalogue name (``pocket/classify``) or by path (``mine.yaml``).

    ``count`` finds the numbers that a file leaves out by ``auto``; without it such a file is refused.

    Raises:
        BadFile: neither, or the file is wrong.
    """
    return _load(_file_of(name), count)


def load_tasks(name: str | Path, count: Count = not_counted) -> list[Written]:
    """Read the tasks of a catalogue name, a file, a list of tasks, or all files of a directory, by name.

    Raises:
        BadFile: there is nothing of that name, or a file is wrong.
    """
    if Path(name).is_dir():
        files = [path for path in inside(Path(name)) if path.suffix in _SUFFIXES]
        if not files:
            raise BadFile(file=str(name), problem="holds no task files", fix=f"put in some {', '.join(_SUFFIXES)}")
        return [written for path in files for written in load_tasks(path, count)]
    path = _file_of(str(name))
    if "tasks" not in keys_of(path):
        return [Written(_load(path, count), str(path))]
    found = []
    for position, use in enumerate(load_spec(path, TaskList).tasks):
        beside = path.parent / use.task
        spec = load_task(str(beside) if beside.is_file() else use.task, count)
        found.append(Written(use.applied(spec), str(path), ("tasks", position)))
    return found


def kind_of(name: str) -> str:
    """The kind of task of a catalogue name: the beginning of the last part for hub/, all of the last part elsewhere."""
    last = name.rpartition("/")[2]
    return next((kind for kind in KINDS if name.startswith("hub/") and last.startswith(f"{kind}-")), last)


def models() -> list[dict[str, Any]]:
    """The entries of ``s2m3 models list``: the catalogue's models with the numbers that its files have.

    Raises:
        BadFile: a file of the catalogue is wrong.
    """
    tasks = {name: load_task(name) for name in catalog.names()}
    return [
        entry(name, task, {module: numbers(spec) for module, spec in task.modules.items()})
        for name, task in tasks.items()
    ]


def entry(name: str, task: TaskSpec, numbers: Mapping[ModuleName, Mapping[str, Any]]) -> dict[str, Any]:
    """A model's entry in ``s2m3 models list``, with the numbers that ``numbers`` gives of each module."""
    sizes = [found["memory_bytes"] for found in numbers.values()]
    return {
        "name": name,
        "task": kind_of(name),
        "modules": [
            {"module": module, "family": task.modules[module].family, **found} for module, found in numbers.items()
        ],
        "unsplit_bytes": sum(sizes),
        "largest_module_bytes": max(sizes),
    }


def numbers(spec: ModuleSpec) -> dict[str, Any]:
    """Parameters, memory_bytes, flops and output_bytes of a module of the catalogue."""
    weights_bytes = spec.memory_bytes - _buffer_bytes(spec) if spec.source else 0
    return {
        "parameters": weights_bytes // _BYTES[spec.dtype],
        "memory_bytes": spec.memory_bytes,
        "flops": round(spec.flops),
        "output_bytes": spec.output_bytes,
    }


def _buffer_bytes(spec: ModuleSpec) -> int:
    """The bytes of a module beside its parameters, such as running means, by the catalogue's file of its repository."""
    if spec.source is None or spec.source.hub is None:
        return 0
    content = json.loads(config_path(spec.source.hub).read_text(encoding="utf-8"))
    return int(content.get("buffer_bytes", {}).get(spec.source.part, 0))


def config_path(repository: str) -> Path:
    """The catalogue's file about a repository of the hub."""
    return catalog.DIRECTORY / "hub" / "configs" / f"{repository.replace('/', '--')}.json"


def _load(path: Path, count: Count = not_counted) -> TaskSpec:
    spec = load_spec(path, TaskSpec, partial(_without_auto, path, count))
    for name, module in spec.modules.items():
        source = module.source
        if source is not None and source.hub and source.revision and not COMMIT.fullmatch(source.revision):
            raise bad_field(
                path,
                ("modules", name, "source", "revision"),
                problem=f"is {source.revision!r}, which may mean other weights tomorrow",
                fix="write a commit's 40 hexadecimal digits, or remove it for a repository in the models directory",
            )
    return spec


def _without_auto(path: Path, count: Count, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a task file in which numbers stand where it says ``auto``.

    Raises:
        BadFile: one can't be found on this machine.
    """
    filled = dict(content)
    for group, fill in (("inputs", _typical), ("modules", partial(_counted, path, count, content))):
        named = content.get(group)
        if isinstance(named, dict):
            filled[group] = {
                name: fill(name, each) if isinstance(each, dict) and AUTO in each.values() else each
                for name, each in named.items()
            }
    return filled


def _typical(_: str, given: dict[str, Any]) -> dict[str, Any]:
    typical = TYPICAL_BYTES.get(str(given.get("kind")))
    return {**given, "bytes": typical} if given.get("bytes") == AUTO and typical else given


def _counted(path: Path, count: Count, content: dict[str, Any], name: str, module: dict[str, Any]) -> dict[str, Any]:
    """A module of a task file with its numbers; an unsound one gets some, and is refused for what is wrong with it."""
    wanted = [field for field in NUMBERS if module.get(field) == AUTO]
    module = {**module, **dict.fromkeys(wanted, 1)}
    nodes = content.get("nodes")
    uses = {
        node.get("use")
        for node in (nodes.values() if isinstance(nodes, dict) else ())
        if isinstance(node, dict) and node.get("module") == name
    }
    if not wanted or not all(use is None or isinstance(use, str) for use in uses):
        return module
    try:
        spec = ModuleSpec.model_validate(module)
    except ValidationError:
        return module
    try:
        found = [count(spec, use) for use in sorted(uses or {None}, key=str)]
    except ModuleRefused as error:
        problem = f"is {AUTO}, and {error}"
        raise bad_field(path, ("modules", name, wanted[0]), problem=problem, fix="write the number") from error
    return {**module, **{field: max(each[field] for each in found) for field in wanted}}


def _file_of(name: str) -> Path:
    if name in catalog.names():
        return catalog.path(name)
    if name.endswith(_SUFFIXES) or Path(name).is_file():
        return Path(name)
    names = catalog.names()
    near = [known for known in names if known.rpartition("/")[2] == name]
    near = near or difflib.get_close_matches(name, names, n=_NEAR, cutoff=_LIKE)
    near = near or [known for known in names if name.lower() in known][:_NEAR]
    if near:
        fix = f"did you mean {' or '.join(near)}?"
    else:
        small = ", ".join(known for known in names if known.startswith("pocket/"))
        fix = f"name a file, or a model that `s2m3 models list` has, such as {small}"
    raise BadFile(file=name, problem="is neither in the catalogue nor a file", fix=fix)
