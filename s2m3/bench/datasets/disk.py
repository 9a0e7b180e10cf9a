"""Reading for all formats, each step with one clear error: bytes, media, text, lines of names, JSON.

Owns those errors: a function raises BadFile when what it reads is missing, unreadable or not of its kind. Knows no
format.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.text_lines import lines_of

PICTURES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
SOUNDS = {".wav": "audio/wav"}
AGAIN = "unpack the published archive again"
OBJECTS = "write one object a line"
_MAGIC = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG\r\n\x1a\n", "audio/wav": b"RIFF"}


def damaged(file: Path, problem: str, *, field: str = "", line: int | None = None) -> BadFile:
    """The error of a published file that is not as published."""
    return BadFile(file=str(file), line=line, field=field, problem=problem, fix=AGAIN)


def contents(path: Path) -> bytes:
    """A file's bytes."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise damaged(path, error.strerror or "can't be read") from error


def media(path: Path) -> RawInput:
    """A picture or a sound as a sensor would send it: the file itself, whose first bytes must fit its name."""
    content_type = media_type(path)
    data = contents(path)
    actual = next((kind for kind, magic in _MAGIC.items() if data.startswith(magic)), None)
    if actual is None or actual.split("/")[0] != content_type.split("/")[0]:
        raise damaged(path, "is empty" if not data else f"is not {content_type}, whatever its name says")
    return RawInput(data, actual)  # Food-101 and others name a few pictures wrongly: the first bytes decide


def media_type(path: Path) -> str:
    """The content type that a file's name says."""
    content_type = (PICTURES | SOUNDS).get(path.suffix.lower())
    if content_type is None:
        raise BadFile(file=str(path), problem="has no name of a JPEG, PNG or WAV file", fix="convert it, or remove it")
    return content_type


def png(pixels: NDArray[np.uint8]) -> RawInput:
    """Raw pixels (height, width) or (height, width, 3) as a PNG file, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return RawInput(buffer.getvalue(), "image/png")


def text(path: Path) -> str:
    """A text file in UTF-8."""
    try:
        return contents(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise damaged(path, "is not UTF-8 text") from error


def names(path: Path) -> tuple[str, ...]:
    """The names in a file, each once, one a line; empty lines are skipped."""
    found = tuple(line.strip() for line in lines_of(text(path)) if line.strip())
    if twice := [name for at, name in enumerate(found) if name in found[:at]]:
        raise damaged(path, f"names {twice[0]} twice", line=found.index(twice[0]) + 1)
    return found


@dataclass(frozen=True)
class Entry:
    """A JSON object of an index, and where it is in its file. Its fields are read with their types checked."""

    found: Any  # anything that isn't an object has no fields
    file: Path
    field: str = ""  # its place in the index, such as images.3
    line: int | None = None  # in a file of lines

    def error(self, name: str, problem: str, fix: str = AGAIN) -> BadFile:
        """The error of one field."""
        return BadFile(file=str(self.file), line=self.line, field=self._place(name), problem=problem, fix=fix)

    def text(self, name: str) -> str:
        """A field that is a text."""
        return str(self._typed(name, str, "a text"))

    def number(self, name: str) -> int:
        """A field that is a whole number."""
        return int(self._typed(name, int, "a whole number"))

    def items(self, name: str) -> list[Any]:
        """A field that is a list."""
        return list(self._typed(name, list, "a list"))

    def entries(self, name: str) -> list[Entry]:
        """A field that is a list of objects."""
        return [Entry(each, self.file, f"{self._place(name)}.{at}") for at, each in enumerate(self.items(name))]

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a list of texts, as ``checked`` gives them."""
        return self.checked(name, self.items(name))

    def checked(self, name: str, values: Sequence[object]) -> tuple[str, ...]:
        """Values, at least one, that must be texts with words; each with single blanks between its words."""
        if not values:
            raise self.error(name, "is empty", "write at least one text")
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise self.error(name, f"holds {value!r:.60}", "write only texts")
        return tuple(" ".join(str(value).split()) for value in values)

    def path(self, directory: Path, name: str, suffix: str = "") -> Path:
        """A file that a field names, below a directory; the name must not lead outside."""
        path = Path(self.text(name) + suffix)
        if path.is_absolute() or ".." in path.parts:
            raise self.error(name, f"leads outside: {path}", "name a file below")
        return directory / path

    def _typed(self, name: str, kind: type, wanted: str) -> Any:  # noqa: ANN401 - JSON
        if not isinstance(self.found, Mapping) or name not in self.found:
            raise self.error(name, "is missing", f"add it, or {AGAIN}")
        value = self.found[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(name, f"is not {wanted}: {value!r:.60}", "correct it")
        return value

    def _place(self, name: str) -> str:
        return f"{self.field}.{name}" if self.field else name


def index(path: Path) -> Entry:
    """A file that holds one JSON object."""
    try:
        found = json.loads(text(path))
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
        raise damaged(path, f"is not JSON ({reason})", line=line) from error
    if not isinstance(found, dict):
        raise damaged(path, "is not a JSON object")
    return Entry(found, path)


def lines(path: Path, fields: Sequence[str]) -> Iterator[Entry]:
    """The objects of a file of JSON lines, at least one, with no other fields than these; empty lines are skipped."""
    empty = True
    for line, content in enumerate(lines_of(text(path)), start=1):
        if not content.strip():
            continue
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise BadFile(file=str(path), line=line, problem="is not JSON", fix=OBJECTS) from error
        if not isinstance(found, dict):
            raise BadFile(file=str(path), line=line, problem="is not an object", fix=OBJECTS)
        entry = Entry(found, path, line=line)
        if strange := sorted(found.keys() - set(fields)):
            fix = f"remove it or correct its spelling; known: {', '.join(fields)}"
            raise entry.error(strange[0], "is not a known field", fix)
        empty = False
        yield entry
    if empty:
        raise BadFile(file=str(path), problem="is empty", fix=OBJECTS)
