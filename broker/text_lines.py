"""The lines of a text, the same wherever this product splits one.

Owns what ends a line: a line feed, a carriage return, or both. ``str.splitlines`` ends lines at eight other characters,
too, such as U+2028, which stand inside captions, labels and JSON.
"""

from __future__ import annotations

import re

_END = re.compile(r"\r\n|\n|\r")


def lines_of(text: str) -> list[str]:
    """The lines without their ends; the end of the last one begins no further line."""
    found = _END.split(text)
    return found if found[-1] else found[:-1]
