"""JPEGs that cost their reader much: written by hand, without an encoder, so that each field can be as it never is.

Owns their format. Doesn't know any limit. Equal arguments make equal bytes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
BASELINE, PROGRESSIVE, ARITHMETIC, ARITHMETIC_PROGRESSIVE, LOSSLESS = 0xC0, 0xC2, 0xC9, 0xCA, 0xC3
GREY, COLOUR, HALVED, INKS = ((1, 1),), ((1, 1),) * 3, ((2, 2), (1, 1), (1, 1)), ((1, 1),) * 4  # samplings


def segment(marker: int, data: bytes = b"") -> bytes:
    """A marker with its length and data."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def frame(kind: int, side: int, samplings: Sequence[tuple[int, int]], bits: int = 8) -> bytes:
    """A start of frame, of a square picture."""
    each = b"".join(bytes((number + 1, h << 4 | v, 0)) for number, (h, v) in enumerate(samplings))
    return segment(kind, struct.pack(">BHHB", bits, side, side, len(samplings)) + each)


def tables() -> bytes:
    """Quantisation by 1; DC code 0 is "no difference"; AC code 0 is "no more", 10 is "no more in 2^14 blocks"."""
    return segment(0xDB, b"\0" + b"\x01" * 64) + huffman(0x00, {1: [0]}) + huffman(0x10, {1: [0], 2: [0xE0]})


def huffman(place: int, symbols: dict[int, list[int]]) -> bytes:
    """A table of symbols by the length of their codes."""
    counts = bytes(len(symbols.get(length, ())) for length in range(1, 17))
    return segment(0xC4, bytes((place,)) + counts + bytes(symbol for each in symbols.values() for symbol in each))


def scan(components: Sequence[int], spectrum: tuple[int, int], approximation: int, data: bytes) -> bytes:
    """A start of scan and its entropy-coded data; ``components`` count from 1."""
    each = b"".join(bytes((number, 0)) for number in components)
    return segment(0xDA, bytes((len(components),)) + each + bytes((*spectrum, approximation))) + data


def blocks(side: int, samplings: Sequence[tuple[int, int]]) -> int:
    """How many blocks of 64 numbers the picture has."""
    most = max(h for h, _ in samplings), max(v for _, v in samplings)
    return sum(-(-side * h // (8 * most[0])) * -(-side * v // (8 * most[1])) for h, v in samplings)


def flat(side: int, samplings: Sequence[tuple[int, int]] = GREY, kind: int = BASELINE, head: bytes = b"") -> bytes:
    """One colour in one scan: two bits a block."""
    count = blocks(side, samplings) * 2
    whole = scan(range(1, len(samplings) + 1), (0, 63), 0, bytes(count // 8 + 64))
    return SOI + head + tables() + frame(kind, side, samplings) + whole + EOI


def empty_runs(side: int) -> bytes:
    """The data of a scan of one component without any number: "no more in 32,767 blocks", again and again."""
    runs = -(-((-(-side // 8)) ** 2) // 32_767)
    bits = "10" + "1" * 14
    data = int(bits * runs, 2).to_bytes(2 * runs, "big")
    return data.replace(b"\xff", b"\xff\0")


def progressive(
    side: int,
    scans: int,
    samplings: Sequence[tuple[int, int]] = GREY,
    *,
    approximation: int = 0,
    head: bytes = b"",
    middle: bytes = b"",
) -> bytes:
    """Progressive, with so many scans after the first, each over all blocks of one component and without a number.

    With ``approximation`` 0x10 each scan refines what there is; ``middle`` stands before them.
    """
    first = scan(range(1, len(samplings) + 1), (0, 0), 0, bytes(blocks(side, samplings) // 8 + 64))
    more = b"".join(
        scan([1 + number % len(samplings)], (1, 63), approximation, empty_runs(side)) for number in range(scans)
    )
    return SOI + head + tables() + frame(PROGRESSIVE, side, samplings) + first + middle + more + EOI


def refined(side: int, scans: int) -> bytes:
    """Progressive grey whose every number isn't 0, and is then refined so many times, a bit a number."""
    count = blocks(side, GREY)
    every = huffman(0x10, {1: [0x01]})  # code 0: the next number is 1 or -1, by the next bit
    first = scan([1], (0, 0), 0, bytes(count // 8 + 64)) + every
    values = scan([1], (1, 63), 0x0D, bytes(count * 63 * 2 // 8 + 64))
    more = b"".join(scan([1], (1, 63), 0xD0 | 0x0C, bytes(count * 64 // 8 + 64)) for _ in range(scans))
    return SOI + tables() + frame(PROGRESSIVE, side, GREY) + first + values + tables() + more + EOI


def sequential_again(side: int, scans: int) -> bytes:
    """Not progressive, and yet the one component comes so many times."""
    data = bytes(blocks(side, GREY) * 2 // 8 + 64)
    return SOI + tables() + frame(BASELINE, side, GREY) + scan([1], (0, 63), 0, data) * scans + EOI


def every_number(side: int) -> bytes:
    """Baseline grey, each number of each block with its code."""
    count = blocks(side, GREY)
    head = segment(0xDB, b"\0" + b"\x01" * 64) + huffman(0x00, {1: [0]}) + huffman(0x10, {1: [0x01], 2: [0]})
    return SOI + head + frame(BASELINE, side, GREY) + scan([1], (0, 63), 0, bytes(count * 127 // 8 + 64)) + EOI


def restarts(side: int, *, stated: bool) -> bytes:
    """A restart marker after each block; ``stated`` in the header, or not."""
    count = blocks(side, GREY)
    data = b"".join(b"\x3f\xff" + bytes((0xD0 | number % 8,)) for number in range(count))
    head = segment(0xDD, b"\0\x01") if stated else b""
    return SOI + head + tables() + frame(BASELINE, side, GREY) + scan([1], (0, 63), 0, data) + EOI


def with_head(head: bytes, side: int = 64) -> bytes:
    """A small picture behind these bytes."""
    return flat(side, head=head)


def with_middle(middle: bytes, side: int = 64) -> bytes:
    """A small progressive picture with these bytes between two of its scans."""
    return progressive(side, 1)[:-2] + middle + scan([1], (1, 63), 0, empty_runs(side)) + EOI


def exif(*entries: bytes, tail: bytes = b"", following: int = 0) -> bytes:
    """An EXIF block with these entries of its first directory, and the bytes behind it."""
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", following) + tail
    )


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    """An entry of a directory: its value, or where that stands."""
    return struct.pack("<HHII", tag, kind, count, value)


def turned(orientation: int = 6) -> bytes:
    """A segment that says how the picture is turned."""
    return segment(0xE1, b"Exif\0\0" + exif(entry(0x0112, 3, 1, orientation)))


def exif_bomb(megabytes: int, entries: int = 20_000) -> bytes:
    """Segments of one EXIF block whose many entries all name the same megabytes."""
    length = megabytes * 2**20 - 200_000 - entries * 12
    whole = exif(*(entry(0x8000 + number, 7, length, 16) for number in range(entries)), tail=bytes(length))
    return exif_pieces(whole, 65_000)


def exif_pieces(whole: bytes, size: int) -> bytes:
    """An EXIF block in segments of so many bytes."""
    starts = range(0, len(whole), size)
    return b"".join(segment(0xE1, b"Exif\0\0" + whole[start : start + size]) for start in starts)


def noise(side: int, quality: int = 60, **options: object) -> bytes:
    """An ordinary JPEG of random grains, as an encoder writes it."""
    grains = np.random.default_rng(0).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(grains).resize((side, side)).save(out, "JPEG", quality=quality, **options)
    return out.getvalue()
