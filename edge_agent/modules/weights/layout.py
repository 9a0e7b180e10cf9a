"""The layout of a repository of weights: the names of its files, and its JSON files as objects.

Owns what can be said of a repository without reading a tensor. So it imports no engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.sizes import show_bytes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
_MAX_JSON_BYTES = 64 * 1024 * 1024


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
