"""The published models of the catalogue as data: configurations and counts.

Owns ``edge_agent/catalog/hub/configs/ORG--NAME.json``, one file for each repository, whose fields are those of
``Published``, and the numbers in the catalogue's task files, which follow from them. Counts need no weights: parts are
built on the meta device. Knows no family.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from broker.protocol.errors import BadFile, first_line
from broker.protocol.specs import ModuleName, TaskSpec
from broker.protocol.values import Spec
from edge_agent import catalog
from edge_agent.modules import FAMILIES
from edge_agent.modules.weights import hub, model_parts, precision
from edge_agent.modules.weights.checkpoint import Checkpoint
from s2m3.catalogue import config_path, entry, load_task

_NUMBERS = ("memory_bytes", "flops", "output_bytes")


class Published(Spec):
    """The catalogue's file about one repository."""

    repository: str
    revision: str | None = None  # the one that the catalogue's tasks pin
    weights: str | None = None  # the kind that this revision has, safetensors or only a pickle, where a source says so
    architecture: str | None = (
        None  # transformers' class of the whole model; None for what nobody publishes (local/...)
    )
    families: tuple[str, ...] = ()  # without an architecture: the families of its parts
    parameters: int | None = None  # the published count, when known; a test holds it equal to ours
    tokenizer: str | None = None  # the kind of tokenizer, one of ``s2m3.reference.tokenizers``
    # Another repository of which this one has unchanged copies, with its prefixes for those of the other. Random
    # weights are copied too, so that shared weights are shared there as in the published ones.
    frozen: Mapping[str, Any] | None = None
    buffer_bytes: Mapping[str, int] = {}  # part -> bytes beside its parameters, such as running means
    files: Mapping[str, dict[str, Any]]  # its JSON files by name, with the fields that matter; config.json is one

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return self.files["config.json"]


def hub_names() -> tuple[str, ...]:
    """The catalogue's tasks whose weights are published on the hub."""
    return tuple(name for name in catalog.names() if name.startswith("hub/"))


@cache
def published(repository: str) -> Published:
    """The catalogue's knowledge of a repository.

    Raises:
        BadFile: its file is missing or wrong.
    """
    path = config_path(repository)
    try:
        return Published.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = f"can't be read ({first_line(error)})"
        raise BadFile(file=str(path), problem=problem, fix="write the repository's fields") from error


@cache
def part(family: str, name: str) -> model_parts.AnyPart:
    """A part of a family by its name in a hub source.

    Raises:
        BadFile: the family has no such part.
    """
    file = importlib.import_module(FAMILIES[family]) if family in FAMILIES else None
    parts = cast("model_parts.Parts", getattr(file, "PARTS", {}))
    if name not in parts:
        known = ", ".join(sorted(parts)) or "no parts, or there is no such family"
        raise BadFile(file=family, field="part", problem=f"has no part {name}", fix=f"it has {known}")
    return parts[name]


def count(task: TaskSpec, name: ModuleName) -> model_parts.Count:
    """The costs of a module of a task, from the catalogue's configuration, or from the spec for pip's packages.

    Raises:
        BadFile: the catalogue doesn't know its repository, or nodes use the module in several ways.
        ModuleRefused: the configuration is not valid for the part.
    """
    module = task.modules[name]
    if module.source is None or module.source.hub is None:
        itemsize_bytes = precision.FLOATS[module.dtype].itemsize
        return model_parts.Count(
            parameters=module.memory_bytes // itemsize_bytes if module.source else 0,
            memory_bytes=module.memory_bytes,
            flops=round(module.flops),
            output_bytes=module.output_bytes,
        )
    uses = {node.use for node in task.nodes.values() if node.module == name}
    if len(uses) != 1:
        raise BadFile(file=task.task, field=name, problem="has several uses in one task", fix="name the module twice")
    return _count(module.family, module.source.part, module.source.hub, next(iter(uses)), module.dtype)


@cache
def _count(family: str, name: str, repository: str, use: str | None, dtype: str) -> model_parts.Count:
    return model_parts.count(part(family, name), published(repository).config, use=use, dtype=dtype)


def memory_bytes(task: TaskSpec, name: ModuleName, dtype: str) -> int | None:
    """Bytes of a module's weights in a dtype; None if its family doesn't compute in it.

    A repository that the catalogue doesn't know has its own configuration.

    Raises:
        BadFile: as ``count`` does.
        ModuleRefused: the configuration is missing, or not valid for the part.
    """
    module = task.modules[name].model_copy(update={"dtype": dtype})
    if module.source is not None and module.source.hub is not None:
        known = config_path(module.source.hub).is_file()
        config = published(module.source.hub).config if known else Checkpoint(hub.repository(module.source)).config
        return model_parts.weight_bytes(part(module.family, module.source.part), config, dtype)
    file = importlib.import_module(FAMILIES[module.family]) if module.family in FAMILIES else None
    if module.source is None or not hasattr(file, "memory_bytes"):
        return module.memory_bytes if dtype == task.modules[name].dtype else None
    return cast("int", cast("Any", file).memory_bytes(module))


def inventory(name: str) -> dict[str, Any]:
    """A model's entry as in ``s2m3 models list``, with numbers that are counted.

    Raises:
        BadFile: no such task, or its catalogue files are wrong.
    """
    task = load_task(name)
    return entry(name, task, {module: asdict(count(task, module)) for module in task.modules})


def details(name: str) -> dict[str, Any]:
    """The document of ``s2m3 models inspect``: the inventory, and each module's source, uses and typical pass.

    Raises:
        BadFile: no such task, or its catalogue files are wrong.
    """
    task, found = load_task(name), inventory(name)
    for each in found["modules"]:
        module = task.modules[each["module"]]
        nodes = {node: spec for node, spec in task.nodes.items() if spec.module == each["module"]}
        weights, typical = None, "see the task's file"
        if module.source is not None and module.source.hub is not None:
            known = config_path(module.source.hub).is_file()
            weights = published(module.source.hub).weights if known else None
            typical = part(module.family, module.source.part).forwards[None].typical
        in_dtypes = {dtype: memory_bytes(task, each["module"], dtype) for dtype in precision.DTYPES}
        each |= {
            "source": str(module.source) if module.source else None,
            "weights": weights,
            "dtype": module.dtype,
            "uses": sorted({spec.use or "ordinary" for spec in nodes.values()}),
            "needs": {node: list(spec.needs) for node, spec in nodes.items()},
            "bytes_by_dtype": {dtype: size_bytes for dtype, size_bytes in in_dtypes.items() if size_bytes is not None},
            "typical": typical,
        }
    return found | {"description": task.description}


def compare_numbers(*, write: bool) -> list[dict[str, Any]]:
    """Every number of a hub task that differs from what its configuration gives; ``write`` corrects the files.

    Raises:
        BadFile: a file of the catalogue is wrong.
    """
    differences = []
    for name in hub_names():
        task, path = load_task(name), catalog.path(name)
        for module, spec in task.modules.items():
            counted = count(task, module)
            for field in _NUMBERS:
                written, real = getattr(spec, field), getattr(counted, field) or 1
                if written != real:
                    found = {"name": name, "module": module, "field": field, "written": written, "counted": real}
                    differences.append(found)
                    if write:
                        _replace_number(path, module, field, real)
    return differences


def _replace_number(path: Path, module: str, field: str, value: int) -> None:
    """Replace one number of one module in a task file, and nothing else.

    Raises:
        BadFile: the number doesn't stand on a line of its own.
    """
    text = path.read_text(encoding="utf-8")
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for step in ("modules", module, field):
        node = next((each for key, each in getattr(node, "value", []) if key.value == step), None)
        if node is None:
            raise BadFile(file=str(path), field=f"modules.{module}.{field}", problem="is missing", fix="write 1 there")
    lines = text.splitlines(keepends=True)
    line = node.start_mark.line
    lines[line] = re.sub(rf"({field}:\s*)[^\s,}}#]+", rf"\g<1>{value}", lines[line], count=1)
    path.write_text("".join(lines), encoding="utf-8")
