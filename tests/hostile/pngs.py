"""PNGs that cost their reader much: written by hand, without an encoder, so that each field can be as it never is.

Owns their format. Doesn't know any limit. Equal arguments make equal bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
PAETH = 4  # the slowest filter of rows
_BLOCK_BYTES = 2**18
END = b"\0\0\0\0IEND\xaeB`\x82"


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, bits: int, colour: int, *, interlaced: bool = False) -> bytes:
    """The first chunk."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))


def deflated(*parts: tuple[bytes, int]) -> bytes:
    """A deflate stream of rows, each so many times in turn: quick, because equal rows are compressed once."""
    stream, check = b"\x78\x01", 1
    for row, count in parts:
        together = max(1, min(count, _BLOCK_BYTES // len(row)))
        for rows_, times in ((row * together, count // together), (row, count % together)):
            packer = zlib.compressobj(6, wbits=-15)
            stream += (packer.compress(rows_) + packer.flush(zlib.Z_FULL_FLUSH)) * times
            for _ in range(times):
                check = zlib.adler32(rows_, check)
    return stream + b"\x03\0" + check.to_bytes(4, "big")


def rows(width: int, height: int, bits: int, colour: int, filter_: int = PAETH) -> tuple[bytes, int]:
    """A row without a difference to its neighbours, with its filter, and how often it comes."""
    return bytes((filter_,)) + bytes((width * CHANNELS[colour] * bits + 7) // 8), height


def passes(side: int, bits: int, colour: int, filter_: int = PAETH) -> list[tuple[bytes, int]]:
    """The rows of the seven passes of an interlaced picture."""
    steps = (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
    )  # fmt: skip
    return [
        rows(-(-(side - left) // right), -(-(side - top) // down), bits, colour, filter_)
        for left, top, right, down in steps
    ]


def flat(
    side: int,
    bits: int = 8,
    colour: int = RGB,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    split: Callable[[bytes], bytes] = lambda data: chunk(b"IDAT", data),
) -> bytes:
    """One colour; ``before`` and ``after`` its data stand other chunks, ``split`` makes chunks of the data."""
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == PALETTE else b""
    lines = passes(side, bits, colour) if interlaced else [rows(side, side, bits, colour)]
    data = split(deflated(*lines))
    return MAGIC + header(side, side, bits, colour, interlaced=interlaced) + palette + before + data + after + END


def bytewise(data: bytes) -> bytes:
    """A chunk for each byte."""
    return b"".join(chunk(b"IDAT", data[at : at + 1]) for at in range(len(data)))


def empty_blocks(size: int) -> bytes:
    """A deflate stream of about so many bytes: blocks that hold nothing, each with Huffman tables of its own."""
    code_lengths = dict.fromkeys((1, 2, 3, 4, 5, 6), 3) | dict.fromkeys((7, 8, 9, 18), 4)
    codes = _canonical(code_lengths)
    bits = "0" + "01" + _number(0, 5) + _number(0, 5) + _number(14, 4)  # dynamic: 257 literals, 1 distance, 18 lengths
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1):
        bits += _number(code_lengths.get(symbol, 0), 3)
    literals = {**{number: number + 1 for number in range(9)}, 256: 9}
    for number in range(9):
        bits += codes[literals[number]]
    for zeros in (138, 109):
        bits += codes[18] + _number(zeros - 11, 7)
    bits += codes[9] + codes[1] + _canonical(literals)[256]
    eight = int((bits * 8)[::-1], 2).to_bytes(len(bits), "little")
    return b"\x78\x01" + eight * (size // len(eight))


def _number(value: int, bits: int) -> str:
    """A number as deflate writes it: the lowest bit first."""
    return f"{value:0{bits}b}"[::-1]


def _canonical(lengths: dict[int, int]) -> dict[int, str]:
    """The code of each symbol, in the order of length and symbol."""
    codes, code, before = {}, 0, 0
    for symbol, length in sorted(lengths.items(), key=lambda each: (each[1], each[0])):
        code <<= length - before
        codes[symbol], before = f"{code:0{length}b}", length
        code += 1
    return codes
