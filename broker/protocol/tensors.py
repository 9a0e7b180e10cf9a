"""Named arrays and their bytes, as safetensors documents.

Owns the byte format of sent arrays, and its limits. Doesn't know requests, nodes or topics. Lengths are checked before
anything is parsed or allocated; nothing is unpickled.

A document is in the safetensors format with limits:
- It MUST begin with the header's length: 8 bytes, little-endian, at most ``MAX_HEADER_BYTES``.
- A JSON object of this length MUST follow, then the bytes of the arrays, without holes or overlaps.
- It MAY have ``__metadata__``, an object of strings.
- It MUST NOT have more than ``MAX_TENSORS`` arrays, nor an array of more than ``MAX_RANK`` dimensions.
- It MUST NOT have a dtype outside ``DTYPES``.
- It MAY have no array, and arrays without elements.
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

MAX_HEADER_BYTES = 256 * 1024  # a plan of 100 nodes with its timings needs much less
MAX_TENSORS = 256
MAX_RANK = 8
MAX_NAME_SHOWN = 64  # characters of an array's name in an error: a sender chooses it
DTYPES = {"BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "F32", "F64"}
_LENGTH_BYTES = 8


def narrowed(tensors: Tensors, wire: Literal["float32", "float16"]) -> dict[str, Array]:
    """The arrays that a node sends to another: float32 rounded to ``wire``, other dtypes unchanged.

    Raises:
        LocalProtocolError: a number is too large for float16, or NaN.
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
    """The arrays that modules take: float16 is converted to float32."""
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in tensors.items()}


def pack(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write arrays and strings as one document.

    Raises:
        LocalProtocolError: a reader would refuse a dtype, the rank, the number of arrays, or the size of the metadata.
    """
    try:
        contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
        document = bytes(save(contiguous, metadata=dict(metadata) if metadata else None))
        _checked_header(document)
    except (RemoteProtocolError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LocalProtocolError(f"these arrays can't be written: {error}") from error
    return document


def unpack(document: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Read the arrays and the metadata of a document from an untrusted sender.

    Raises:
        RemoteProtocolError: the document is truncated, malformed, or exceeds a limit.
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
    name = name[:MAX_NAME_SHOWN]
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(dtype, str) or dtype not in DTYPES:
        raise RemoteProtocolError(f"array {name!r} has a dtype outside {', '.join(sorted(DTYPES))}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise RemoteProtocolError(f"array {name!r} has no shape, or more than {MAX_RANK} dimensions")
