"""The text of an input that a request needn't send: constant captions, or a constant question. Pure.

Owns the limits of lines, for such texts and for those that sensors send. Doesn't know tasks.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

MAX_LINES = 64
MAX_LINE_CHARACTERS = 2000
MAX_DEFAULT_BYTES = 64 * 1024  # of all defaults of a task together: its spec and its route carry them
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def _read(value: object) -> object:
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("string_type", "must be a text, or a list of lines")
    for number, line in enumerate(value):
        if not isinstance(line, str):
            raise PydanticCustomError("string_type", "must be a text", {"place": (number,), "value": line})
    return tuple(value)


def _checked(text: str | tuple[str, ...]) -> str | tuple[str, ...]:
    lines = [text] if isinstance(text, str) else text
    if not isinstance(text, str) and any("\n" in line or "\r" in line for line in lines):
        raise ValueError("has a line break in an entry: write each line as an entry of its own")
    found = [line for entry in lines for line in _LINE_BREAK.split(entry) if line.strip()]
    if not found:
        raise ValueError("has no words: write a text, or a list of lines, or remove it")
    if len(found) > MAX_LINES:
        raise ValueError(f"has {len(found)} lines, at most {MAX_LINES} are allowed: write fewer")
    if (longest := max(map(len, found))) > MAX_LINE_CHARACTERS:
        raise ValueError(f"has a line of {longest} characters, at most {MAX_LINE_CHARACTERS} are allowed: shorten it")
    if "\x00" in "".join(lines):
        raise ValueError("has a NUL character: remove it")
    return text


DefaultText = Annotated[str | tuple[str, ...], BeforeValidator(_read), AfterValidator(_checked)]
"""A text, or a list of lines."""


def bytes_of(text: str | tuple[str, ...]) -> bytes:
    """The text as a sensor would send it."""
    return (text if isinstance(text, str) else "\n".join(text)).encode()
