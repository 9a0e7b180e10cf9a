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

numpy is imported by the functions that need it: it takes 12 MB of a process, and many see no document with arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import safetensors
from pydantic import JsonValue
from pydantic_core import from_json, to_json

from broker.protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, RequestFailed
from broker.protocol.sizes import show_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any
Tensors = Mapping[str, Array]

MAX_HEADER_BYTES = 256 * 1024  # a plan of 100 nodes with its timings needs much less
MAX_TENSORS = 256
MAX_RANK = 8
MAX_ANSWERED = 60_000  # numbers of an answer in JSON: each has at most 16 characters there, and all at most 1 MiB
MAX_NAME_SHOWN = 64  # characters of an array's name in an error: a sender chooses it
_NUMPY = {
    "I64": "<i8",
    "F64": "<f8",
    "F32": "<f4",
    "I32": "<i4",
    "F16": "<f2",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}  # in the order in which the arrays of a document stand: each begins at a multiple of its elements' size
_NAMES = {dtype: name for name, dtype in _NUMPY.items()}
_PLACES = {dtype: place for place, dtype in enumerate(_NAMES)}
DTYPES = frozenset(_NUMPY)
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_ALIGNED_BYTES = 8  # the bytes of the first array begin at a multiple of it


def narrowed(tensors: Tensors, wire: Literal["float32", "float16"]) -> dict[str, Array]:
    """The arrays that a node sends to another: float32 rounded to ``wire``, other dtypes unchanged.

    Raises:
        LocalProtocolError: a number is too large for float16, or NaN.
    """
    import numpy as np  # noqa: PLC0415 - see above

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
    import numpy as np  # noqa: PLC0415 - see above

    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in tensors.items()}


def embeddings(tensors: Tensors, form: Literal["embeddings", "unit-embeddings"]) -> dict[str, JsonValue]:
    """An output's one array float32 (n, width) as an answer: ``embeddings``, a list of numbers for each row.

    A number has the fewest digits that give the same float32 again. With ``unit-embeddings``, rows have length 1; a row
    of zeros stays as it is.

    Raises:
        RequestFailed: ``module_failed``: the output is anything else; ``too_large``: it has too many numbers.
    """
    import numpy as np  # noqa: PLC0415 - see above

    rows: Array = next(iter(tensors.values())) if len(tensors) == 1 else np.zeros(0)
    if rows.ndim != 2 or rows.dtype != np.float32 or not np.isfinite(rows).all():  # noqa: PLR2004 - rows of numbers
        given = ", ".join(f"{each} ({array.dtype} {list(array.shape)})" for each, array in tensors.items()) or "nothing"
        raise RequestFailed(
            ErrorCode.MODULE_FAILED,
            f"the output is {given}, and answer: {form} needs one array of finite float32 numbers (n, width): correct "
            "the task's answer or output",
        )
    if rows.size > MAX_ANSWERED:
        raise RequestFailed(
            ErrorCode.TOO_LARGE,
            f"{len(rows)} embeddings have {rows.size} numbers, at most {MAX_ANSWERED} are allowed in one answer: send "
            "fewer texts at once",
        )
    if form == "unit-embeddings":
        wide = rows.astype(np.float64)
        lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        rows = (wide / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    return {"embeddings": [[float(str(number)) for number in row] for row in rows]}


def pack(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write arrays and strings as one document, with the bytes that the safetensors library writes.

    Nothing that was written is parsed again, and each array is copied once.

    Raises:
        LocalProtocolError: a reader would refuse a dtype, the rank, the number of arrays, or the size of the metadata.
    """
    import numpy as np  # noqa: PLC0415 - see above

    try:
        native = {name: np.asarray(array, dtype=array.dtype.newbyteorder("<")) for name, array in tensors.items()}
        dtypes = {name: array.dtype.str for name, array in native.items()}  # numpy makes each ``dtype.name`` in Python
        names = sorted(native, key=lambda name: (_PLACES.get(dtypes[name], 0), name))
        header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
        end = 0
        for name in names:
            begin, end = end, end + native[name].nbytes
            dtype, shape = _NAMES.get(dtypes[name]), list(native[name].shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        _check_header(header)
        text = to_json(header)
        text += b" " * (-len(text) % _ALIGNED_BYTES)
        _check_length(len(text))
    except (RemoteProtocolError, TypeError, ValueError) as error:
        raise LocalProtocolError(f"these arrays can't be written: {error}") from error
    arrays = (np.ascontiguousarray(native[name]).reshape(-1).data for name in names)
    return b"".join((len(text).to_bytes(_LENGTH_BYTES, "little"), text, *arrays))


def unpack(document: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Read the arrays and the metadata of a document from an untrusted sender.

    Raises:
        RemoteProtocolError: the document is truncated, malformed, or exceeds a limit.
    """
    from safetensors.numpy import load  # noqa: PLC0415 - see above

    metadata = _metadata_of(document)
    try:
        return dict(sorted(load(document).items())), metadata  # by name: the library's order changes from run to run
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise RemoteProtocolError(f"not a safetensors document: {error}") from error


def array_of(data: bytes) -> Array:
    """Bytes as an array of them."""
    import numpy as np  # noqa: PLC0415 - see above

    return np.frombuffer(data, np.uint8)


def begins_like_document(data: bytes) -> bool:
    """Whether bytes begin like a document: a header's length, and its brace. No text and no picture does."""
    is_header = data[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"
    return is_header and int.from_bytes(data[:_LENGTH_BYTES], "little") <= MAX_HEADER_BYTES


def _metadata_of(document: bytes) -> dict[str, str]:
    if len(document) < _LENGTH_BYTES:
        raise RemoteProtocolError(f"a safetensors document of {len(document)} bytes is truncated")
    length = int.from_bytes(document[:_LENGTH_BYTES], "little")
    _check_length(length)
    if len(document) < _LENGTH_BYTES + length:
        raise RemoteProtocolError("a safetensors document is truncated inside its header")
    try:
        header = from_json(document[_LENGTH_BYTES : _LENGTH_BYTES + length], allow_inf_nan=False)
    except ValueError as error:
        raise RemoteProtocolError("a safetensors header is not JSON") from error
    if not isinstance(header, dict):
        raise RemoteProtocolError("a safetensors header is not an object")
    return _check_header(header)


def _check_length(length: int) -> None:
    if length > MAX_HEADER_BYTES:
        size, limit = show_sizes(length, MAX_HEADER_BYTES)
        raise RemoteProtocolError(f"a header of {size}, at most {limit} are allowed")


def _check_header(header: Mapping[str, object]) -> dict[str, str]:
    """The metadata of a header in which all is allowed."""
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not set(map(type, metadata.values())) <= {str}:
        raise RemoteProtocolError("the metadata of a safetensors document are not strings")
    arrays = {name: entry for name, entry in header.items() if name != _METADATA}
    if len(arrays) > MAX_TENSORS:
        raise RemoteProtocolError(f"{len(arrays)} arrays in one document, at most {MAX_TENSORS} are allowed")
    for name, entry in arrays.items():
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
