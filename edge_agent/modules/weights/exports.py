"""Exports: a module as ONNX files in a directory of its own, which ``export.json`` describes.

Owns the form of that file, and the one way to read it. Knows no engine and no steps. ``s2m3 models export`` writes
exports; they lie in the models directory, as ``DIR/<module name, / as -->/export.json``, one level above repositories.

Invariants: an export that was read names only files in its own directory. A file's SHA-256 is checked before it is used
(``checked``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import Field, JsonValue, StringConstraints, ValidationError

from broker.files import is_left_behind
from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.preparation import FileName
from broker.protocol.sentences import describe, described
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import (
    MAX_EXPORTS,
    Bytes,
    ModuleKey,
    ModuleName,
    NotNegative,
)
from broker.protocol.values import Spec

MANIFEST = "export.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024  # the labels of a classifier stand in it
Precision = Literal["float32", "int8"]
Sha256 = Annotated[str, described(r"^[0-9a-f]{64}$", "must be 64 digits of 0-9 and a-f")]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
log = structlog.get_logger()
_Length = Annotated[int, Field(ge=1)] | None


class ExportedUse(Spec):
    """One use of a module.

    Args:
        file: The ONNX file, and its ``sha256``.
        inputs: The shapes of the arrays that it takes, by name; null is a length that may differ each time.
        optional: Those that a request may lack: their first length is 0 then.
        outputs: The names of the arrays that it gives.
        steps: The description of the steps of a request (``inputs.steps.described``).
        largest_difference: The largest difference of any number that it gave from torch's, when it was written.
    """

    file: FileName
    sha256: Sha256
    inputs: Annotated[dict[_Name, tuple[_Length, ...]], Field(min_length=1, max_length=64)]
    optional: Annotated[tuple[_Name, ...], Field(max_length=64)] = ()
    outputs: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=64)]
    steps: JsonValue
    largest_difference: NotNegative


class Export(Spec):
    """The content of ``export.json``.

    Args:
        module: The module's name in the task that it was exported for.
        key: Its identity (``ModuleSpec.key``), which is that of its own weights.
        memory_bytes: The memory that its weights need in all uses together.
        uses: By name; the ordinary one is "".
        files: The other files that the steps need, with their SHA-256.
    """

    format: Literal[1] = 1
    module: ModuleName
    key: ModuleKey
    family: str
    precision: Precision = "float32"
    memory_bytes: Bytes
    opset: Annotated[int, Field(ge=1)]
    uses: Annotated[Mapping[str, ExportedUse], Field(min_length=1, max_length=64)]
    files: Annotated[Mapping[FileName, Sha256], Field(max_length=64)] = {}


def directory_name(module: ModuleName) -> str:
    """The name of the directory of a module's export."""
    return module.replace("/", "--")


def read(directory: Path) -> Export:
    """The description of the export in a directory.

    Raises:
        ModuleRefused: it isn't there, or is wrong.
    """
    path = directory / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ModuleRefused(f"{path} has more than {show_bytes(MAX_MANIFEST_BYTES)}: export the module again")
        return Export.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModuleRefused(f"{path} can't be read ({error.strerror}): export the module again") from error
    except ValidationError as error:
        field, sentence = describe(error.errors()[0])
        raise ModuleRefused(f"{path}: {field or 'the file'} {sentence}: export the module again") from error


def checked(directory: Path, name: str, sha256: str) -> Path:
    """A file of an export, if its content is the described one.

    Raises:
        ModuleRefused: it isn't.
    """
    path = directory / name
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ModuleRefused(f"{path} can't be read ({first_line(error)}): export the module again") from error
    if found != sha256:
        raise ModuleRefused(f"{path} has the SHA-256 {found}, and {MANIFEST} says {sha256}: export the module again")
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, which is read in parts.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def found_in(models: Path) -> Iterator[Path]:
    """The directories of a models directory that hold an export, by name."""
    return iter(sorted(path.parent for path in models.glob(f"*/{MANIFEST}") if not is_left_behind(path.parent.name)))


def readable(models: Path | None) -> list[tuple[Path, Export]]:
    """The exports of a models directory, each with its own, by name. A wrong one is left out and logged."""
    found = []
    for directory in found_in(models) if models is not None and models.is_dir() else ():
        if not (directory / MANIFEST).is_file():
            continue  # a pipe would never end
        try:
            found.append((directory, read(directory)))
        except ModuleRefused as error:
            log.warning("export_refused", error=str(error))
    return found


def sizes(models: Path | None) -> dict[ModuleKey, int]:
    """The exports of a models directory: module -> the bytes that it needs. Of two of one module, the first counts."""
    found = {export.key: export.memory_bytes for _, export in reversed(readable(models))}
    return dict(list(reversed(found.items()))[:MAX_EXPORTS])
