"""WebPs that cost their reader much: written by hand, without an encoder, so that each field can be as it never is.

Owns their format. Doesn't know any limit. Equal arguments make equal bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)  # in which lengths of code lengths stand
_CACHE_BITS = 11
_ONE_SYMBOL = "1000"  # a code of the symbol 0, which takes no bit


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A file of chunks."""
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """The chunk of a canvas."""
    return b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def lossless(side: int) -> bytes:
    """A square lossless picture in which each 4 x 4 pixels have Huffman codes of their own, as many as there can be."""
    return riff((b"VP8L", b"\x2f" + packed("".join(_lossless(side)))))


def packed(bits: str) -> bytes:
    """Bits as bytes, the lowest first."""
    bits += "0" * (-len(bits) % 8)
    return int(bits[::-1], 2).to_bytes(len(bits) // 8, "little")


def _lossless(side: int) -> Iterator[str]:
    blocks = (-(-side // 4)) ** 2
    yield _number(side - 1, 14) * 2 + "0" + "000"  # no transparency, version 0
    yield "0" + "1" + _number(_CACHE_BITS, 4)  # no transform; a colour cache
    yield "1" + "000" + "0"  # codes by blocks of 4 x 4, in a picture without a cache
    yield _equal_lengths(8, 256) + _equal_lengths(8) + _ONE_SYMBOL * 3
    yield from (f"{index & 255:08b}{index >> 8 & 255:08b}" for index in range(blocks))  # green, red: its codes' number
    yield (_equal_lengths(_CACHE_BITS, 2**_CACHE_BITS) + _equal_lengths(8) * 3 + _ONE_SYMBOL) * min(blocks, 2**16)
    yield "0" * (side * side * (_CACHE_BITS + 3 * 8))


def _equal_lengths(length: int, symbols: int | None = None) -> str:
    """A code of so many symbols (None: of all), all of this length."""
    place = _ORDER.index(length)
    limit = "0" if symbols is None else "1" + _number(5, 3) + _number(symbols - 2, 12)
    return "0" + _number(place - 3, 4) + "000" * place + "100" + limit


def _number(value: int, bits: int) -> str:
    """A number, the lowest bit first."""
    return f"{value:0{bits}b}"[::-1]
