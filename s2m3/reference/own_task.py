"""A task file for a person's own checkpoint: ``s2m3 models task``.

Owns which tasks a checkpoint can serve: those of the catalogue whose modules all are in it. Its configuration gives the
numbers, as for the catalogue's own. The names and shapes of its tensors are read; the weights only for their digests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.sentences import describe
from broker.protocol.specs import ModuleSpec, TaskSpec
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint
from edge_agent.modules.weights.hub import Repository
from s2m3.catalogue import kind_of, load_task
from s2m3.reference import scan, zoo

_CACHED = re.compile(r".*/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})")
_FIX = "name a folder that lies as MODELS/ORG/NAME, or one of the hub's own cache"


def task_of(
    directory: Path, head: str | None = None, dtype: str | None = None, *, digest: bool = False
) -> tuple[str, tuple[str, ...]]:
    """The text of a task file for a checkpoint, and all heads that it could have.

    Args:
        directory: MODELS/ORG/NAME, or a folder of the hub's own cache.
        head: the kind of task; by default the one with the most modules.
        dtype: of the weights; by default that of the catalogue's task.
        digest: whether it states the digests of the weights, which are read for that.

    Raises:
        BadFile: the directory has no checkpoint that a task of the catalogue could be about, or not this head.
    """
    directory = directory.resolve()
    source, place = _source(directory)
    checkpoint = Checkpoint(Repository(str(directory), None, directory))
    try:
        found = scan.families_of(checkpoint)
    except ModuleRefused as error:
        raise BadFile(file=str(directory), problem=str(error), fix="name the folder of a checkpoint") from error
    templates = _templates(found)
    if not templates:
        known = ", ".join(sorted(found)) or "no part that a family knows"
        problem = f"no task of the catalogue runs on what it has: {known}"
        raise BadFile(file=str(directory), problem=problem, fix="see `s2m3 models list`; an encoder: `s2m3 head train`")
    heads = tuple(templates)
    if head is not None and head not in templates:
        raise BadFile(file="--head", problem=f"this checkpoint can't be {head}", fix=f"it can be {', '.join(heads)}")
    template = templates[head or heads[0]]
    slug = re.sub("[^a-z0-9-]+", "-", source["hub"].rpartition("/")[2].lower()).strip("-")
    try:
        spec = _filled(template, head or heads[0], slug, source, checkpoint, dtype)
        spec = _with_digests(spec, checkpoint) if digest else spec
    except ModuleRefused as error:
        raise BadFile(file=str(directory), problem=str(error), fix="correct its config.json") from error
    except ValidationError as error:
        field, problem = describe(error.errors()[0])
        raise BadFile(file=str(directory), field=field, problem=problem, fix=_FIX) from error
    content = spec.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    for module in content["modules"].values():
        module["flops"] = round(module["flops"])
    others = f"; it could also be {', '.join(each for each in heads if each != (head or heads[0]))}" * (len(heads) > 1)
    text = f"# {spec.description}{others}. The numbers are counted from its configuration.\n# {place}\n"
    return text + yaml.safe_dump(content, sort_keys=False, width=200), heads


def _source(directory: Path) -> tuple[dict[str, Any], str]:
    """The source of the checkpoint without its part, and a sentence about where agents find it."""
    if cached := _CACHED.fullmatch(str(directory)):
        size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        source = {"hub": f"{cached[1]}/{cached[2]}", "revision": cached[3], "download_bytes": 2 * size + 2**26}
        return source, "Agents fetch it from the hub."
    if directory.is_file():
        fix = "name its folder; for an ONNX file see docs/how-to/own-onnx-model.md"
        raise BadFile(file=str(directory), problem="is a file", fix=fix)
    if len(directory.parts) < 4 or not directory.is_dir():  # noqa: PLR2004 - the root, MODELS, ORG and NAME
        raise BadFile(file=str(directory), problem="is not a folder with a checkpoint", fix=_FIX)
    models, name = directory.parents[1], "/".join(directory.parts[-2:])
    return {"hub": name}, f"Agents with `models: {models}` in their file find it there."


def _templates(families: frozenset[str]) -> dict[str, TaskSpec]:
    """Kind of task -> a task of the catalogue whose modules all have these families; that with the most comes first."""
    found: dict[str, TaskSpec] = {}
    for name in zoo.hub_names():
        task = load_task(name)
        if all(module.family in families and module.source for module in task.modules.values()):
            found.setdefault(kind_of(name), task)
    return dict(sorted(found.items(), key=lambda each: -len(each[1].modules)))


def _filled(  # noqa: PLR0917 - the parts of one sentence
    template: TaskSpec, kind: str, slug: str, source: dict[str, Any], checkpoint: Checkpoint, dtype: str | None
) -> TaskSpec:
    names = {name: f"{slug}/{name.rpartition('/')[2]}" for name in template.modules}
    uses = {node.module: node.use for node in template.nodes.values()}
    modules: dict[str, object] = {}
    for name, module in template.modules.items():
        counted = _counted(module, uses[name], checkpoint, dtype or module.dtype)
        part = module.source.part if module.source else ""
        modules[names[name]] = {
            "family": module.family,
            "source": {**source, "part": part},
            "dtype": dtype or module.dtype,
            "memory_bytes": counted.memory_bytes,
            "flops": counted.flops or 1,
            "output_bytes": counted.output_bytes or 1,
        }
    content = template.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    nodes = {name: node | {"module": names[node["module"]]} for name, node in content["nodes"].items()}
    about = template.description.rpartition(" (")[0] or template.description
    named = {"task": f"{kind}-{slug}"[:63].strip("-"), "description": f"{about} ({source['hub']})"}
    return TaskSpec.model_validate(content | named | {"nodes": nodes, "modules": modules})


def _with_digests(spec: TaskSpec, checkpoint: Checkpoint) -> TaskSpec:
    """The spec in which each module states the digest of its weights."""
    modules = {}
    for name, module in spec.modules.items():
        part = zoo.part(module.family, module.source.part if module.source else "")
        modules[name] = module.model_copy(update={"digest": scan.digest_of(module, part, checkpoint)})
    return spec.model_copy(update={"modules": modules})


def _counted(module: ModuleSpec, use: str | None, checkpoint: Checkpoint, dtype: str) -> model_parts.Count:
    part = zoo.part(module.family, module.source.part if module.source else "")
    return model_parts.count(part, checkpoint.config, use=use, dtype=dtype)
