"""Sizes as people write them, and as all output shows them. Pure.

The rule: K, M, G and T count in thousands, also as KB to TB; Ki, Mi, Gi and Ti count in 1,024s, also as KiB to TiB.
Output counts in 1,024s: KiB, MiB, GiB. A number without a unit is bytes.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress

SMALLEST_MEMORY_BYTES = 2**20
"""Under ``memory:`` a smaller number without a unit is a mistake: no device and no module has so little."""
_SIZE = re.compile(
    r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|\.[0-9]+(?:e[+-]?[0-9]+)?)\s*(?:([kmgt])(i?)b?|b)?\s*",
    re.IGNORECASE,
)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
_SHOWN = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def parse_bytes(value: object) -> object:
    """Turn ``300MiB``, ``300M``, ``"1.0e9"`` or ``1.0e9`` into a whole number of bytes; leave other numbers alone.

    Raises:
        ValueError: the value is a text that isn't a size, or a truth value.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        base = 1024 if match[3] else 1000
        with suppress(ValueError, OverflowError):
            return round(float(match[1]) * base ** _POWERS.get((match[2] or "").lower(), 0))
    if isinstance(value, (str, bool)):
        raise ValueError("is not a valid size: write a number of bytes, or 300MiB, or 1.5GB")  # noqa: TRY004 - pydantic's rule
    return value


def mebibytes(size_bytes: float) -> str:
    """A size in MiB with one digit after the point, without its unit: for a column of a table."""
    return f"{size_bytes / 2**20:,.1f}"


def _unit_of(size_bytes: float) -> tuple[str, int]:
    return next((each for each in _SHOWN if abs(size_bytes) >= each[1]), ("bytes", 1))


def show_bytes(size_bytes: float, *, digits: int = 1, up: bool = False) -> str:
    """A size with its unit, for a sentence: the largest unit of which it has at least one.

    Args:
        size_bytes: the size.
        digits: after the point.
        up: round up, for a size that is missing: who adds what the sentence says adds enough.
    """
    unit, factor = _unit_of(size_bytes)
    if size_bytes == 1:
        return "1 byte"
    if factor == 1 or size_bytes % factor == 0:
        return f"{size_bytes / factor:,.0f} {unit}"
    scale = 10**digits
    counted = math.ceil(size_bytes / factor * scale) / scale if up else size_bytes / factor
    return f"{counted:,.{digits}f} {unit}"


def show_count(number: int, noun: str) -> str:
    """A number with its noun, for a sentence: ``1 device``, ``2 devices``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show_sizes(*sizes_bytes: float) -> tuple[str, ...]:
    """Sizes for a sentence that compares them: different sizes look different, if need be in bytes."""
    different = set(sizes_bytes)
    for digits in (1, 2, 3):
        rounded = {(unit, round(size / factor, digits)) for size in different for unit, factor in [_unit_of(size)]}
        if len(rounded) == len(different):
            return tuple(show_bytes(size, digits=digits) for size in sizes_bytes)
    return tuple("1 byte" if size == 1 else f"{size:,.0f} bytes" for size in sizes_bytes)
