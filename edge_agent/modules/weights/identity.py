"""A module's identity by content: one SHA-256 over its weights and what of its configuration changes its output.

Owns the bytes that are hashed, so that the same content has the same digest whatever file, repository, prefix or order
it came from. Knows no family. The bytes:
- the configuration as canonical JSON (empty when the code fixes it), then a zero byte;
- each tensor in order of its canonical name: name, zero byte, dtype as safetensors call it, zero byte, lengths joined
  by commas, zero byte, then its elements, row-major and little-endian.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from broker.protocol.tensors import Array

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def digest(tensors: Mapping[str, Tensor] | Mapping[str, Array], config: Mapping[str, JsonValue] | None = None) -> str:
    """The digest of a module.

    Args:
        tensors: The weights, torch's or NumPy's, by canonical name, in the dtype in which they are held; asked for one
            by one, so that a mapping that reads them from a file holds no two of them.
        config: What of the configuration changes the output; None when the family's code fixes all of it.
    """
    content = hashlib.sha256(canonical_json(dict(config)) if config else b"")
    content.update(b"\0")
    for name in sorted(tensors):
        tensor = tensors[name]
        lengths = ",".join(map(str, tensor.shape))
        content.update(f"{name}\0{_DTYPES[str(tensor.dtype).removeprefix('torch.')]}\0{lengths}\0".encode())
        flat = _bytes_of(tensor)
        content.update(flat.data if sys.byteorder == "little" else _swapped(flat, tensor.itemsize))
    return f"sha256:{content.hexdigest()}"


def _bytes_of(tensor: Tensor | Array) -> Any:  # noqa: ANN401 - an array of bytes
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    from torch import uint8  # noqa: PLC0415 - an agent without torch has no tensor of torch's

    return tensor.detach().contiguous().reshape(-1).view(uint8).numpy()


def canonical_json(value: JsonValue) -> bytes:
    """One spelling of a JSON value: keys sorted, no blanks, ASCII; 1.0 is written as 1."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def fingerprint(value: JsonValue) -> str:
    """The SHA-256 of a JSON value, for the identity of what is too large to stand in one, such as a vocabulary."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _swapped(flat: Any, itemsize: int) -> bytes:  # noqa: ANN401 - an array of bytes
    return bytes(flat.reshape(-1, itemsize)[:, ::-1].tobytes())
