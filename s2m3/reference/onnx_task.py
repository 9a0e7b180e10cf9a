"""A task file for a person's own ONNX file: ``s2m3 models task FILE.onnx``.

Owns what follows from the file (inputs, sizes, operations, outputs) and what a person must say (labels, and how an
input is prepared where the file's shapes don't tell). The file is loaded and tried as an agent does it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from broker.protocol.errors import BadFile, ModuleRefused, first_line
from broker.protocol.sentences import describe
from broker.protocol.specs import ModuleSpec, TaskSpec
from edge_agent.modules.families import onnx
from edge_agent.modules.weights import digests, onnx_file
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from edge_agent.modules.weights.onnx_file import Signature, show_shape
from s2m3.catalogue import TYPICAL_BYTES
from s2m3.reference.onnx_cost import cost

LABELS = "labels.txt"
_KINDS = {"picture": "image", "text": "text", "sound": "audio"}
UNCOUNTED = {"memory_bytes": 2**60, "flops": 1, "output_bytes": 1}
"""The numbers with which a file is loaded to count its own."""
_PAGE = "docs/how-to/own-onnx-model.md"
_EXAMPLE = "--prepare 'picture: {size: [224, 224]}'"


def task_of(path: Path, labels: str | None = None, prepare: str | None = None, *, digest: bool = False) -> str:
    """The text of a task file for an ONNX file.

    Args:
        path: MODELS/ORG/NAME/model.onnx, or its folder.
        labels: of a classifier: separated by commas, or the name of a file beside it. ``labels.txt`` is taken where it
            is there; a file without labels is an encoder.
        prepare: how its input is made, in YAML; by default what its shapes tell.
        digest: whether it states the digest of the file.

    Raises:
        BadFile: the file can't be a module, or something must be said.
    """
    directory = (path.parent if path.suffix == onnx_file.SUFFIX else path).resolve()  # the file may be a link
    file = directory / onnx.FILE
    if path.suffix == onnx_file.SUFFIX and path.name != onnx.FILE:
        problem, fix = f"must be called {onnx.FILE}", f"rename it, or link it: MODELS/ORG/NAME/{onnx.FILE}"
        raise BadFile(file=str(path), problem=problem, fix=fix)
    if not file.is_file() or len(directory.parts) < 4:  # noqa: PLR2004 - the root, MODELS, ORG and NAME
        raise BadFile(file=str(file), problem="is not there", fix=f"put it at MODELS/ORG/NAME/{onnx.FILE}")
    with _refusals_of(file), models_directory_at(directory.parents[1]):
        onnx_file.check(file)
        signature = onnx_file.signature(file)
        said = _labels(directory, labels)
        how = _said(prepare) if prepare is not None else _told_by(file, signature, is_classifier=bool(said))
        part = "classifier" if said else "encoder"
        name = "/".join(directory.parts[-2:])
        fields = {"family": f"onnx.{part}", "source": {"hub": name, "part": part}, **UNCOUNTED, "prepare": how}
        module = _spec_of(fields | ({"labels": said} if said else {}))
        counted, found = measured(module)
    module = module.model_copy(update=counted | ({"digest": found} if digest else {}))
    kind = _KINDS[next(iter(how))]
    slug = re.sub("[^a-z0-9-]+", "-", directory.name.lower()).strip("-")[:63].strip("-") or "own"
    written = module.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    content: dict[str, Any] = {
        "task": slug,
        "inputs": {kind: {"kind": kind, "bytes": TYPICAL_BYTES[kind]}},
        "nodes": {part: {"module": f"{slug}/{part}", "needs": [kind]}},
        "output": part,
        **({} if said else {"answer": "embeddings"}),
        "modules": {f"{slug}/{part}": written | {"flops": round(module.flops)}},
    }
    TaskSpec.model_validate(content)
    lines = [f"{name} as {'a classifier' if said else 'an encoder; with --labels it would be a classifier'}."]
    lines.append(f"Agents with `models: {directory.parents[1]}` in their file find it there. Its numbers are counted.")
    if prepare is None:
        lines.append(f"CHECK prepare: the shapes alone told it{_TO_CHECK[kind]}; --prepare says another ({_PAGE}).")
    return "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(
        content, sort_keys=False, width=140, default_flow_style=None, allow_unicode=True
    )


_TO_CHECK = {"image": ": pixels are 0 to 1, and no mean is subtracted", "text": "", "audio": ""}


def measured(spec: ModuleSpec) -> tuple[dict[str, int], str]:
    """The numbers of a module whose file is on this machine, as a task file has them, and its digest.

    Raises:
        ModuleRefused: it can't be loaded, as an agent says.
    """
    with digests.comparing_with(None) as compared:
        module = onnx.load(spec.model_copy(update={"digest": None, "memory_bytes": UNCOUNTED["memory_bytes"]}))
    each = module.passes[None]
    run, arrays = cast("onnx.Run", each.forward), each.steps.prepare(each.steps.sample() or ()).arrays
    dtypes = {name: dtype for name, (_, dtype) in run.session.inputs.items()}
    counted = cost(run.path, {name: array.astype(dtypes[name]) for name, array in run.given(arrays).items()})
    numbers = {
        "memory_bytes": run.path.stat().st_size,
        "flops": max(1, counted.flops),
        "output_bytes": max(1, counted.output_bytes),
    }
    return numbers, str(compared.found)


@contextmanager
def models_directory_at(models: Path) -> Iterator[None]:
    """Let repositories be found in this directory for a while."""
    before = os.environ.get(DIRECTORY_VARIABLE)
    os.environ[DIRECTORY_VARIABLE] = str(models)
    try:
        yield
    finally:
        if before is None:
            del os.environ[DIRECTORY_VARIABLE]
        else:
            os.environ[DIRECTORY_VARIABLE] = before


@contextmanager
def _refusals_of(file: Path) -> Iterator[None]:
    """An agent's refusals are those of a file that a person named."""
    try:
        yield
    except ModuleRefused as error:
        problem = str(error).removeprefix(f"{file} ").removeprefix(f"{file}: ")
        raise BadFile(file=str(file), problem=problem, fix=f"see {_PAGE}") from error


def _spec_of(fields: Mapping[str, object]) -> ModuleSpec:
    try:
        return ModuleSpec.model_validate(fields)
    except ValidationError as error:
        place, problem = describe(error.errors()[0])
        option = "--labels" if place.startswith("labels") else "--prepare"
        raise BadFile(file=option, field=place, problem=problem, fix=f"see {_PAGE}") from error


def _labels(directory: Path, said: str | None) -> list[str] | str | None:
    """The labels of a classifier; None for an encoder."""
    if said is None:
        return LABELS if (directory / LABELS).is_file() else None
    listed = [each.strip() for each in said.split(",")]
    if len(listed) > 1:
        return listed
    if not (directory / said).is_file() or Path(said).name != said:
        fix = "write them with commas between, or name a file beside the ONNX file that has one a line"
        raise BadFile(file="--labels", problem=f"{said} is not there beside {onnx.FILE}", fix=fix)
    return said


def _said(prepare: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(prepare)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = f"is not YAML ({first_line(error)})"
        raise BadFile(file="--prepare", problem=problem, fix=f"write {_EXAMPLE}") from error
    if not isinstance(content, dict) or len(content) != 1 or next(iter(content)) not in _KINDS:
        raise BadFile(file="--prepare", problem="is one of picture, text and sound", fix=f"write {_EXAMPLE}")
    return content


def _told_by(file: Path, signature: Signature, *, is_classifier: bool) -> dict[str, Any]:
    """The preparation that follows from a file's inputs."""
    if "input_ids" in signature.inputs or "ids" in signature.inputs:
        return {"text": _tokens_of(file, signature)}
    shape, dtype = next(iter(signature.inputs.values()))
    match shape:
        case (_, 3, int(height), int(width)) | (_, int(height), int(width), 3) if len(signature.inputs) == 1:
            return {"picture": {"size": [height, width]} | ({"scale": 1.0} if dtype == "uint8" else {})}
        case (_, int(width)) if is_classifier:
            problem = f"takes rows of {width} numbers, as another node gives them, and not what a sensor sends"
            fix = f"add it to the task file of its encoder by hand ({_PAGE})"
            raise BadFile(file=str(file), problem=problem, fix=fix)
        case (_, width) if dtype.startswith("float") and len(signature.inputs) == 1:
            taken = "numbers" if width is None else f"{width} numbers"
            problem = f"takes rows of {taken}, and no picture, text or sound that a sensor sends becomes that"
            fix = f"use a network that takes pixels, tokens, or the mel bands of a sound ({_PAGE})"
            raise BadFile(file=str(file), problem=problem, fix=fix)
    taken = ", ".join(f"{name} {dtype} {show_shape(each)}" for name, (each, dtype) in signature.inputs.items())
    if len(signature.inputs) > 1:
        problem = f"takes {taken}, and a picture or a sound is one array"
        raise BadFile(file=str(file), problem=problem, fix=f"export it with one input ({_PAGE})")
    problem = f"takes {taken}, and its shapes don't tell how a picture, a text or a sound becomes that"
    raise BadFile(file=str(file), problem=problem, fix=f"say it, such as {_example(shape, dtype)} ({_PAGE})")


def _example(shape: tuple[int | None, ...], dtype: str) -> str:
    match shape:
        case (_, 1, int(height), int(width)) | (_, int(height), int(width), 1):
            scale = ", scale: 1" if dtype == "uint8" else ""
            return f"--prepare 'picture: {{size: [{height}, {width}]{scale}}}'"
    return _EXAMPLE


def _tokens_of(file: Path, signature: Signature) -> dict[str, Any]:
    """The preparation of texts: of the length that the file takes, or that its tokenizer names."""
    if not (file.parent / "tokenizer.json").is_file():
        problem = "takes tokens, and no tokenizer.json lies beside it"
        fix = "put it there, or name another: --prepare 'text: {tokenizer: …, longest: …}'"
        raise BadFile(file=str(file), problem=problem, fix=fix)
    shape, _ = signature.inputs.get("input_ids") or signature.inputs["ids"]
    if len(shape) == 2 and shape[1] is not None:  # noqa: PLR2004 - texts, and tokens of each
        return {"longest": shape[1], "padded": True}
    for name, field in (("tokenizer.json", "truncation"), ("tokenizer_config.json", "model_max_length")):
        with_field = _read(file.parent / name).get(field)
        longest = with_field.get("max_length") if isinstance(with_field, dict) else with_field
        if isinstance(longest, int) and 1 <= longest <= 8192:  # noqa: PLR2004 - some name no end by a huge number
            return {"longest": longest}
    fix = "say the longest: --prepare 'text: {longest: 128}'"
    raise BadFile(file=str(file), problem="takes texts of any length", fix=fix)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
