"""A folder of weights by their digests, for devices without Internet: ``DIR/sha256/DIGEST``.

Owns how it is filled. Each file of a repository, a head or an export lies there under its SHA-256, and so does the list
of them (``file_list``), whose digest a task file names. Any web server can serve the folder. Nothing in it ever
changes: other files have other names.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.specs import Source
from edge_agent.modules.weights.file_list import MAX_FILES, FileList, ListedFile
from edge_agent.modules.weights.layout import PICKLES, check_pointer, tensor_names
from edge_agent.modules.weights.stored import FILES

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CTRANSLATE2 = "model.bin"
_PART_BYTES = 1024 * 1024


def store(folder: Path, path: Path, base: str) -> dict[str, Any]:
    """Store the files of a directory, or one file, and return what a task file says of them.

    Args:
        folder: Where; made if it is missing.
        path: A repository's, head's or export's directory, or a file of safetensors or ONNX.
        base: The URL at which devices reach the folder.

    Raises:
        BadFile: there are no weights, they are no safetensors, or something can't be read or written.
    """
    chosen, left_out = _chosen(path)
    place = folder / "sha256"
    try:
        for each in chosen.values():
            _check(each)
        place.mkdir(parents=True, exist_ok=True)
        listed = FileList(files={name: _copied(each, place) for name, each in chosen.items()})
        digest = _written(listed.encoded(), place)
    except OSError as error:
        problem = f"{error.filename or folder}: {error.strerror or error}"
        fix = "free some room there, or correct its rights, and store it again"
        raise BadFile(file=str(path), problem=problem, fix=fix) from error
    url = f"{base.rstrip('/')}/sha256/{digest}"
    try:
        Source(url=url, digest=f"sha256:{digest}", part="any")
    except ValidationError as error:
        problem, fix = "is not the beginning of a URL", "write http(s)://host:port/, without login, %, ? and #"
        raise BadFile(file="--url", problem=problem, fix=fix) from error
    found = {"path": str(path), "files": len(chosen), "bytes": listed.size_bytes, "left_out": left_out}
    return found | {"url": url, "digest": f"sha256:{digest}"}


def _chosen(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The files to store, by the name that devices see, and the names of the others."""
    if path.is_file():
        if path.suffix not in FILES:
            problem, fix = "is neither safetensors nor ONNX", f"name a directory, or a file with {' or '.join(FILES)}"
            raise BadFile(file=str(path), problem=problem, fix=fix)
        return {FILES[path.suffix]: path}, []
    try:
        found = {each.name: each for each in sorted(path.iterdir()) if each.is_file()}
    except OSError as error:
        fix = "name a repository's, head's or export's directory, or a file of weights"
        raise BadFile(file=str(path), problem=error.strerror or str(error), fix=fix) from error
    has_weights = any(name.endswith(tuple(FILES)) for name in found)
    kept = {
        name: each
        for name, each in found.items()
        if _NAME.fullmatch(name) and (not name.endswith(PICKLES) or (name == _CTRANSLATE2 and not has_weights))
    }
    if not has_weights and _CTRANSLATE2 not in kept:
        problem = "has no safetensors, ONNX or CTranslate2 files"
        raise BadFile(
            file=str(path), problem=problem, fix="name the directory that has the weights, such as DIR/org/name"
        )
    if len(kept) > MAX_FILES:
        problem, fix = f"has {len(kept)} files, at most {MAX_FILES} are allowed", "remove those that no device needs"
        raise BadFile(file=str(path), problem=problem, fix=fix)
    return kept, sorted(found.keys() - kept.keys())


def _check(path: Path) -> None:
    """Raise BadFile for a pointer of Git LFS in place of weights, and for a damaged safetensors file."""
    path.open("rb").close()  # an OSError says more than the reader of safetensors
    try:
        check_pointer(path)
        if path.suffix == ".safetensors":
            tensor_names(path)
    except ModuleRefused as error:
        problem, _, fix = str(error).removeprefix(f"{path} ").partition(": ")
        raise BadFile(file=str(path), problem=problem, fix=fix) from error


def _copied(path: Path, place: Path) -> ListedFile:
    """Copy a file under its SHA-256."""
    fresh, content, size = place / f".{os.getpid()}", hashlib.sha256(), 0
    try:
        with path.open("rb") as source, fresh.open("wb") as target:
            while part := source.read(_PART_BYTES):
                content.update(part)
                target.write(part)
                size += len(part)
            target.flush()
            os.fsync(target.fileno())
        fresh.replace(place / content.hexdigest())
    finally:
        fresh.unlink(missing_ok=True)
    return ListedFile(sha256=content.hexdigest(), bytes=size)


def _written(content: bytes, place: Path) -> str:
    digest = hashlib.sha256(content).hexdigest()
    fresh = place / f".{os.getpid()}"
    try:
        fresh.write_bytes(content)
        fresh.replace(place / digest)
    finally:
        fresh.unlink(missing_ok=True)
    return digest
