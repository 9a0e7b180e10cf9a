"""A request as a JSON object of named inputs: for clients that have no library for safetensors. Pure.

Owns the format and its limits. Doesn't know which inputs a task has beside their kinds.

- A text MUST be a string, or a list of strings, one a line, without line breaks. NULs at their ends are dropped.
- A picture or a sound MUST be a string: base64, or a data URL.
- An object MUST NOT have a name twice. NULs behind it are dropped: it may be a string of C, too.

Invariant: the work is bounded before it is done. Values and nesting are counted in the bytes, no number is converted,
and base64 is measured before it is decoded.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.media import SEEN_BYTES, Kind
from broker.protocol.sizes import show_sizes
from broker.protocol.tensors import MAX_NAME_SHOWN

MAX_JSON_VALUES = 100_000  # each has a comma or a bracket before it; a text of the most lines has less
MAX_HEAD_BYTES = 512  # of a data URL, before its data
_BLANKS = b" \t\r\n"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_SHAPE = '{"image": "base64 or a data URL", "text": ["a line", "another"]}'
Sent = tuple[bytes, str]
"""The bytes of an input, and its content type."""


class _Number:
    """Stands for any number: none is an input, and converting one of many digits takes long."""

    def __init__(self, digits: str) -> None:
        pass


def begins_like_json_object(data: bytes) -> bool:
    """Whether bytes begin like an object, behind blanks and a byte order mark."""
    return data[:SEEN_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip(_BLANKS).startswith(b"{")


def is_json_list(data: bytes) -> bool:
    """Whether bytes are a list in JSON, which nobody writes as a text."""
    if not data[:SEEN_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip(_BLANKS).startswith(b"["):
        return False
    text = data.removeprefix(b"\xef\xbb\xbf").strip(_BLANKS)
    if not (text.startswith(b"[") and text.endswith(b"]")) or text.count(b",") + text.count(b"[") > MAX_JSON_VALUES:
        return False
    try:
        json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_Number)
    except (ValueError, RecursionError):
        return False
    return True


def read_json(payload: bytes) -> dict[str, object]:
    """The named values of a request in JSON.

    Raises:
        RequestFailed: ``bad_input`` or ``too_large``.
    """
    parts = sum(map(payload.count, (b",", b"[", b"{")))
    if parts > MAX_JSON_VALUES:
        raise RequestFailed(
            ErrorCode.TOO_LARGE,
            f"the JSON has up to {parts} values, at most {MAX_JSON_VALUES} are allowed: send one value for each input",
        )
    try:
        value = json.loads(
            payload.decode("utf-8-sig").rstrip("\0"),
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_Number,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        text = f"the request begins like a JSON object, or its content type says so, and isn't one ({reason})"
        raise _bad(f"{text}: send all of {_SHAPE}, or a text as text/plain") from error
    if not isinstance(value, dict):
        raise _bad(f"a request in JSON is an object of named inputs, not {_named(value)}: send {_SHAPE}")
    return value


def bytes_of(name: str, value: object, kind: Kind, limit_bytes: int) -> Sent:
    """The bytes of an input, and its content type.

    Raises:
        RequestFailed: ``bad_input`` or ``too_large``.
    """
    if kind == "text":
        return _text_of(name, value), "text/plain"
    if not isinstance(value, str):
        raise _bad(f"the input {name} must be a string, base64 or a data URL, not {_named(value)}: send one")
    text = _utf8(name, value)
    if text[:5].lower() == b"data:":
        return _from_data_url(name, text, limit_bytes)
    return _from_base64(name, text, limit_bytes), ""


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1) if len(pairs) <= MAX_NAME_SHOWN else "a name"
        raise ValueError(f"it has {twice[:MAX_NAME_SHOWN]!r} twice")
    return found


def _text_of(name: str, value: object) -> bytes:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        wrong = "a list with other values" if isinstance(lines, list) else _named(value)
        raise _bad(f"the input {name} must be a string, or a list of strings, one a line, not {wrong}: send one")
    if isinstance(value, list) and any("\n" in line or "\r" in line for line in lines):
        raise _bad(f"a line of the input {name} has a line break in it: send each line as a string of its own")
    return _utf8(name, "\n".join(line.rstrip("\0") for line in lines))  # each may be a string of C


def _from_data_url(name: str, text: bytes, limit_bytes: int) -> Sent:
    head, comma, data = text[5:].partition(b",")
    if not comma or len(head) > MAX_HEAD_BYTES:
        raise _bad(f"the input {name} begins like a data URL and has no comma: send data:image/jpeg;base64,…")
    parts = [part.strip() for part in head.decode(errors="replace").split(";")]
    if parts[-1].lower() == "base64":
        return _from_base64(name, data, limit_bytes), parts[0]
    _check_size(name, len(data) // 3, limit_bytes)  # a byte is one or three characters
    return unquote_to_bytes(data), parts[0]


def _from_base64(name: str, text: bytes, limit_bytes: int) -> bytes:
    letters = text.translate(_URL_SAFE, _BLANKS).rstrip(b"=")
    _check_size(name, len(letters) * 3 // 4, limit_bytes)
    try:
        return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4), strict_mode=True)
    except binascii.Error as error:
        shown = text[:24].decode(errors="replace")
        raise _bad(
            f"the input {name} is not base64 (it begins with {shown!r}): send the file's own bytes as base64, or a "
            "data URL, no path or address"
        ) from error


def _check_size(name: str, size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        size, limit = show_sizes(size_bytes, limit_bytes)
        text = f"the input {name} has {size}, at most {limit} are allowed: send a smaller one"
        raise RequestFailed(ErrorCode.TOO_LARGE, text)


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise _bad(f"the input {name} has half of a surrogate pair: send text in UTF-8") from error


def _named(value: object) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "a number")


def _bad(sentence: str) -> RequestFailed:
    return RequestFailed(ErrorCode.BAD_INPUT, sentence)
