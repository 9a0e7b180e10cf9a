"""The layout of a repository of weights: the names of its files, and its JSON files as objects.

Owns what can be said of a repository without reading a tensor. So it imports no engine.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.sizes import show_bytes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
_MAX_JSON_BYTES = 64 * 1024 * 1024
_LOOKED_AT = 512  # bytes of a file that can't be read
_LFS_POINTER = b"version https://git-lfs"
_MARKED_UP = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
_TEXT = frozenset((*range(32, 127), 9, 10, 13))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        ModuleRefused: it is not a JSON object, or too large.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModuleRefused(f"{path} has more than {show_bytes(_MAX_JSON_BYTES)}: it is not what its name says")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModuleRefused(f"{path} is not JSON ({first_line(error)}): fetch it again") from error
    if not isinstance(content, dict):
        raise ModuleRefused(f"{path} is not a JSON object: fetch it again")
    return content


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file.

    Raises:
        ModuleRefused: it is damaged, or not a safetensors file.
    """
    try:
        with safe_open(path, "numpy") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        check_pointer(path)
        raise ModuleRefused(_why_unreadable(path, error)) from error


def check_pointer(path: Path) -> None:
    """Raise ModuleRefused for a pointer of Git LFS in place of a file."""
    if _head(path).startswith(_LFS_POINTER):
        raise ModuleRefused(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository, and copy it again"
        )


def _head(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(_LOOKED_AT)
    return b""


def _why_unreadable(path: Path, error: Exception) -> str:
    """The sentence for a file without safetensors: it names what the file is, if its first bytes say."""
    head = _head(path)
    if _MARKED_UP.match(head):
        return f"{path} is an HTML page, no safetensors file: download the file itself, not the page about it"
    if head and all(byte in _TEXT for byte in head):
        return f"{path} is a text file, no safetensors file: fetch the weights again"
    return f"{path} is not a complete safetensors file ({first_line(error)}): fetch it again"
