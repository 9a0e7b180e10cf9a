"""Named arrays to bytes and back, as safetensors documents.

Owns the byte format of tensors on the wire and its limits. Knows nothing of requests, nodes or topics. Lengths are
checked before anything is parsed or allocated, and nothing is ever unpickled.

A document (the safetensors format, narrowed):
- MUST begin with the header's length, 8 bytes, little-endian, at most ``MAX_HEADER_BYTES``;
- MUST go on with a JSON object of that length, then the arrays' bytes, without holes or overlaps;
- MAY hold ``__metadata__``, an object of strings;
- MUST NOT hold more than ``MAX_TENSORS`` arrays, nor one of more than ``MAX_RANK`` dimensions;
- MUST NOT use a dtype outside ``DTYPES``;
- MAY hold no array at all, and arrays of no elements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load, save

from broker.protocol.errors import LocalProtocolError, RemoteProtocolError

Array = NDArray[Any]
Tensors = Mapping[str, Array]

MAX_HEADER_BYTES = 256 * 1024  # a plan of 100 nodes with its timings stays well below
MAX_TENSORS = 256
MAX_RANK = 8
DTYPES = {"BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "F32", "F64"}
_LENGTH_BYTES = 8


def narrowed(tensors: Tensors, wire: Literal["float32", "float16"]) -> dict[str, Array]:
    """Arrays as one node gives them to another: float32 rounded to ``wire``, everything else as it is.

    Raises:
        LocalProtocolError: a number is too large for float16, or none.
    """
    if wire == "float32":
        return dict(tensors)
    given = {}
    for name, array in tensors.items():
        given[name] = array
        if array.dtype == np.float32:
            with np.errstate(over="ignore"):
                given[name] = array.astype(np.float16)
            if not np.isfinite(given[name]).all():
                raise LocalProtocolError(
                    f"{name} has numbers beyond float16's {np.finfo(np.float16).max}: set the task's wire to float32"
                )
    return given


def widened(tensors: Tensors) -> dict[str, Array]:
    """Arrays as modules take them: what was rounded to float16 is float32 again."""
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in tensors.items()}


def pack(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write arrays of any shape, and strings, as one document.

    Raises:
        LocalProtocolError: what a reader would refuse: a dtype, rank, count, or too much metadata.
    """
    try:
        contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
        document = bytes(save(contiguous, metadata=dict(metadata) if metadata else None))
        _checked_header(document)
    except (RemoteProtocolError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LocalProtocolError(f"these arrays can't be written: {error}") from error
    return document


def unpack(document: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Read a document from an untrusted sender: its arrays and its metadata.

    Raises:
        RemoteProtocolError: the document is truncated, malformed or beyond a limit.
    """
    metadata = _checked_header(document)
    try:
        return dict(sorted(load(document).items())), metadata  # by name: the library's order changes from run to run
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise RemoteProtocolError(f"not a safetensors document: {error}") from error


def _checked_header(document: bytes) -> dict[str, str]:
    if len(document) < _LENGTH_BYTES:
        raise RemoteProtocolError(f"a safetensors document of {len(document)} bytes is truncated")
    length = int.from_bytes(document[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"a header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if len(document) < _LENGTH_BYTES + length:
        raise RemoteProtocolError("a safetensors document is truncated inside its header")
    try:
        header = json.loads(document[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("a safetensors header is not JSON") from error
    if not isinstance(header, dict):
        raise RemoteProtocolError("a safetensors header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise RemoteProtocolError("the metadata of a safetensors document are not strings")
    if len(header) > MAX_TENSORS:
        raise RemoteProtocolError(f"{len(header)} arrays in one document, at most {MAX_TENSORS} are allowed")
    for name, entry in header.items():
        _check_entry(name, entry)
    return metadata


def _check_entry(name: str, entry: object) -> None:
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(dtype, str) or dtype not in DTYPES:
        raise RemoteProtocolError(f"array {name!r} has a dtype outside {', '.join(sorted(DTYPES))}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise RemoteProtocolError(f"array {name!r} has no shape, or more than {MAX_RANK} dimensions")
