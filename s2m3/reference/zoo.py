"""The published models of the catalogue as data: configurations, counts, and checkpoints of random weights.

Owns ``edge_agent/catalog/hub/configs/ORG--NAME.json``, one a repository, with the fields
- ``repository``, ``revision``: its name, and the revision that the catalogue's tasks pin;
- ``weights``: what that revision holds, ``safetensors`` or only a ``pickle``, where public sources say so; null where
  none was found (``edge_agent/catalog/hub/README.md`` has what that means for who deploys it);
- ``architecture``: transformers' class of the whole model; null for what nobody publishes (``local/...``), which
  then has ``families``: those that its parts belong to;
- ``parameters``: the published count, when known, which a test holds equal to ours;
- ``tokenizer``: the kind of tokenizer (``s2m3.reference.tokenizers``), or null;
- ``frozen``: another repository of which this one holds unchanged copies, and its prefixes for those of the other:
  random weights are copied too, so that what is shared in the published weights is shared in those;
- ``buffer_bytes``: of parts that store more than parameters, such as running means: how many bytes;
- ``files``: its JSON files by name, ``config.json`` among them, with the fields that matter.

Counts need no weights: parts are built on the meta device. Knows no family.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, cast

from broker.protocol.errors import BadFile
from broker.protocol.specs import ModuleName, ModuleSpec, Source, TaskSpec
from edge_agent import catalog
from edge_agent.modules import FAMILIES
from edge_agent.modules.weights import hub, model_parts, precision
from edge_agent.modules.weights.checkpoint import Checkpoint
from s2m3.catalogue import config_path, entry, load_task


@dataclass(frozen=True)
class Published:
    """What the catalogue knows of one repository."""

    repository: str
    revision: str | None
    weights: str | None
    architecture: str | None
    families: tuple[str, ...]
    parameters: int | None
    tokenizer: str | None
    frozen: Mapping[str, Any] | None
    files: Mapping[str, dict[str, Any]]

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return self.files["config.json"]


def hub_names() -> tuple[str, ...]:
    """The catalogue's tasks whose weights are published on the hub."""
    return tuple(name for name in catalog.names() if name.startswith("hub/"))


@cache
def published(repository: str) -> Published:
    """What the catalogue knows of a repository.

    Raises:
        BadFile: nothing, or the file is wrong.
    """
    path = config_path(repository)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Published(
            repository=content["repository"],
            revision=content.get("revision"),
            weights=content.get("weights"),
            architecture=content.get("architecture"),
            families=tuple(content.get("families", ())),
            parameters=content.get("parameters"),
            tokenizer=content.get("tokenizer"),
            frozen=content.get("frozen"),
            files=content["files"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(
            file=str(path), problem=f"can't be read ({error})", fix="write the repository's fields"
        ) from error


def part_of(module: ModuleSpec) -> model_parts.AnyPart:
    """The part that a module of a hub source is.

    Raises:
        BadFile: its family has no such part.
    """
    return _part(module.family, module.source.part if module.source else "")


@cache
def _part(family: str, name: str) -> model_parts.AnyPart:
    file = importlib.import_module(FAMILIES[family]) if family in FAMILIES else None
    parts = cast("model_parts.Parts", getattr(file, "PARTS", {}))
    if name not in parts:
        known = ", ".join(sorted(parts)) or "no parts, or there is no such family"
        raise BadFile(file=family, field="part", problem=f"has no part {name}", fix=f"it has {known}")
    return parts[name]


def count(task: TaskSpec, name: ModuleName) -> model_parts.Count:
    """What a module of a task costs, from the catalogue's configuration, or from the spec for pip's packages.

    Raises:
        BadFile: the catalogue doesn't know its repository, or nodes use it in several ways.
        ModuleRefused: the configuration makes no network.
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
def _count(family: str, part: str, repository: str, use: str | None, dtype: str) -> model_parts.Count:
    return model_parts.count(_part(family, part), published(repository).config, use=use, dtype=dtype)


def memory_bytes(task: TaskSpec, name: ModuleName, dtype: str) -> int | None:
    """Bytes of a module's weights in a dtype; None when its family computes in no such dtype.

    Raises:
        BadFile: as ``count`` does.
        ModuleRefused: the configuration makes no network, or can't be had.
    """
    module = task.modules[name].model_copy(update={"dtype": dtype})
    if module.source is not None and module.source.hub is not None:
        return _hub_bytes(module.family, module.source, dtype)
    file = importlib.import_module(FAMILIES[module.family]) if module.family in FAMILIES else None
    if module.source is None or not hasattr(file, "memory_bytes"):
        return module.memory_bytes if dtype == task.modules[name].dtype else None
    return cast("int", cast("Any", file).memory_bytes(module))


def _hub_bytes(family: str, source: Source, dtype: str) -> int:
    """By the catalogue's configuration, or by the repository's own when the catalogue doesn't know it."""
    part = _part(family, source.part)
    if config_path(source.hub or "").is_file():
        return model_parts.weight_bytes(part, published(source.hub or "").config, dtype)
    return model_parts.weight_bytes(part, Checkpoint(hub.repository(source)).config, dtype)


def inventory(name: str) -> dict[str, Any]:
    """A model's entry as in ``s2m3 models list``, with numbers that are counted.

    Raises:
        BadFile: no such task, or its catalogue files are wrong.
    """
    task = load_task(name)
    return entry(name, task, {module: asdict(count(task, module)) for module in task.modules})


def details(name: str) -> dict[str, Any]:
    """``s2m3 models inspect``: the inventory, and for each module where it comes from, how it is used, how counted.

    Raises:
        BadFile: no such task, or its catalogue files are wrong.
    """
    task, found = load_task(name), inventory(name)
    for each in found["modules"]:
        module = task.modules[each["module"]]
        nodes = {node: spec for node, spec in task.nodes.items() if spec.module == each["module"]}
        published_there = module.source is not None and module.source.hub is not None
        in_dtypes = {dtype: memory_bytes(task, each["module"], dtype) for dtype in precision.DTYPES}
        each |= {
            "source": str(module.source) if module.source else None,
            "weights": _kind_of_weights(module),
            "dtype": module.dtype,
            "uses": sorted({spec.use or "ordinary" for spec in nodes.values()}),
            "needs": {node: list(spec.needs) for node, spec in nodes.items()},
            "bytes_by_dtype": {dtype: size_bytes for dtype, size_bytes in in_dtypes.items() if size_bytes is not None},
            "typical": _first_line(part_of(module).forwards[None].sample.__doc__)
            if published_there
            else "see the task's file",
        }
    return found | {"description": task.description}


def _kind_of_weights(module: ModuleSpec) -> str | None:
    """What the pinned revision of a hub source holds, when that is known."""
    source = module.source
    if source is None or source.hub is None or not config_path(source.hub).is_file():
        return None
    return published(source.hub).weights


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
