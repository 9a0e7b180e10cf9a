"""What all readers take from a disk, each with its one clear error: bytes, media, JSON, lines, names.

Owns those errors. Knows no format.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile

PICTURES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
SOUNDS = {".wav": "audio/wav"}
AGAIN = "unpack the published archive again"


def contents(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        BadFile: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(file=str(path), problem=error.strerror or "can't be read", fix=AGAIN) from error


def media(path: Path) -> RawInput:
    """A picture or a sound as a sensor would send it: the file itself.

    Raises:
        BadFile: it is missing, empty, or begins like another kind of file.
    """
    content_type = (PICTURES | SOUNDS).get(path.suffix.lower())
    if content_type is None:
        raise BadFile(file=str(path), problem="is no JPEG, PNG or WAV by its name", fix="convert it, or remove it")
    data = contents(path)
    begins = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG\r\n\x1a\n", "audio/wav": b"RIFF"}
    actual = next((kind for kind, magic in begins.items() if data.startswith(magic)), None)
    if actual is None or actual.split("/")[0] != content_type.split("/")[0]:
        problem = "is empty" if not data else f"is not {content_type}, whatever its name says"
        raise BadFile(file=str(path), problem=problem, fix=AGAIN)
    return RawInput(data, actual)  # Food-101 and others name a few pictures wrongly: what it begins with counts


def png(pixels: NDArray[np.uint8]) -> RawInput:
    """Raw pixels (height, width) or (height, width, 3) as a PNG file, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return RawInput(buffer.getvalue(), "image/png")


def text(path: Path) -> str:
    """A text file.

    Raises:
        BadFile: it can't be read, or isn't UTF-8.
    """
    try:
        return contents(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(file=str(path), problem="is not UTF-8 text", fix=AGAIN) from error


def names(path: Path) -> tuple[str, ...]:
    """A file of names, one a line, without the empty ones at its end.

    Raises:
        BadFile: it can't be read, or names one twice.
    """
    found = tuple(line.strip() for line in text(path).splitlines() if line.strip())
    if twice := [name for at, name in enumerate(found) if name in found[:at]]:
        raise BadFile(file=str(path), line=found.index(twice[0]) + 1, problem=f"names {twice[0]} twice", fix=AGAIN)
    return found


def json_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        BadFile: it can't be read, or holds none.
    """
    try:
        found = json.loads(text(path))
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
        raise BadFile(file=str(path), line=line, problem=f"is not JSON ({reason})", fix=AGAIN) from error
    if not isinstance(found, dict):
        raise BadFile(file=str(path), problem="is not a JSON object", fix=AGAIN)
    return found


def entry(
    where: Mapping[str, Any], name: str, kind: type, *, file: Path, field: str = "", line: int | None = None
) -> Any:  # noqa: ANN401 - JSON
    """One field of a JSON object, of a type.

    Raises:
        BadFile: it is missing, or of another type.
    """
    place = f"{field}.{name}" if field else name
    if not isinstance(where, Mapping) or name not in where:
        raise BadFile(file=str(file), line=line, field=place, problem="is missing", fix=f"add it, or {AGAIN}")
    value = where[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}[kind]
        raise BadFile(
            file=str(file), line=line, field=place, problem=f"is not {wanted}: {value!r:.60}", fix="correct it"
        )
    return value


def texts(value: Sequence[object], *, file: Path, field: str, line: int | None = None) -> tuple[str, ...]:
    """A list of texts that aren't blank, at least one.

    Raises:
        BadFile: it is empty, or holds something else.
    """
    if not value:
        raise BadFile(file=str(file), line=line, field=field, problem="is empty", fix="write at least one text")
    for item in value:
        if not isinstance(item, str) or not item.strip():
            raise BadFile(file=str(file), line=line, field=field, problem=f"holds {item!r:.60}", fix="write only texts")
    return tuple(" ".join(str(item).split()) for item in value)


def inside(directory: Path, name: str, *, file: Path, field: str, line: int | None = None) -> Path:
    """A file that an index names, inside the data's directory.

    Raises:
        BadFile: the name leads outside.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadFile(file=str(file), line=line, field=field, problem=f"leads outside: {name}", fix="name a file below")
    return directory / path
