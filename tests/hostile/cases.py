"""Hostile inputs by name: the kinds that cost a reader much time or memory for few bytes.

Owns the list, and the kind of each. Doesn't know any limit: a test says what must come of each, and
``tests/hostile/measure.py`` what each costs.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from tests.hostile import jpegs, pngs, webps
from tests.media import wav

MIB = 2**20
SIDE = 7071  # 50 million pixels, the most that are taken


@dataclass(frozen=True)
class Case:
    """One input: its kind, and how it is made."""

    kind: str
    make: Callable[[], bytes]


def _jpegs() -> Mapping[str, Callable[[], bytes]]:
    p, s = partial, jpegs.segment
    return {
        "the most pixels, grey": p(jpegs.flat, 7064),
        "the most pixels, colour": p(jpegs.flat, 7064, jpegs.COLOUR),
        "the most pixels, colour, turned": p(jpegs.flat, 7064, jpegs.HALVED, head=jpegs.turned()),
        "the most pixels, inks": p(jpegs.flat, 7064, jpegs.INKS),
        "the most pixels, progressive": p(jpegs.progressive, 7064, 9, jpegs.COLOUR),
        "the most pixels, progressive inks": p(jpegs.progressive, 7064, 9, jpegs.INKS),
        "4,000 scans": p(jpegs.progressive, 7000, 4000),
        "60 scans": p(jpegs.progressive, 7000, 60),
        "100 scans of colour": p(jpegs.progressive, 5000, 100, jpegs.COLOUR),
        "400,000 scans of few pixels": p(jpegs.progressive, 8, 400_000),
        "a component 200 times": p(jpegs.sequential_again, 2400, 200),
        "each number of each block": p(jpegs.every_number, 2000),
        "each number refined": p(jpegs.refined, 1600, 20),
        "noise of 24 megapixels": p(jpegs.noise, 4900, 75),
        "noise of 16 megapixels, progressive": p(jpegs.noise, 4000, 75, progressive=True),
        "arithmetic": p(jpegs.flat, 7064, jpegs.COLOUR, jpegs.ARITHMETIC),
        "arithmetic, progressive": p(jpegs.flat, 7064, jpegs.COLOUR, jpegs.ARITHMETIC_PROGRESSIVE),
        "lossless": p(jpegs.flat, 7064, jpegs.COLOUR, jpegs.LOSSLESS),
        "12 bits": lambda: jpegs.flat(5000, kind=0xC1).replace(b"\xff\xc1\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"),
        "65,500 x 65,500": lambda: jpegs.SOI + jpegs.frame(0xC2, 65_500, jpegs.COLOUR) + jpegs.EOI,
        "two frames": lambda: jpegs.with_head(jpegs.frame(0xC2, 65_500, jpegs.COLOUR)),
        "a frame behind the scans": lambda: jpegs.flat(64)[:-2] + jpegs.flat(7064, jpegs.COLOUR)[2:],
        "samplings of 4 x 4": p(jpegs.flat, 7000, ((4, 2), (1, 1), (1, 1))),
        "a Huffman table 80,000 times": lambda: jpegs.with_head(jpegs.huffman(0, {16: list(range(80))}) * 80_000),
        "a quantisation 120,000 times": lambda: jpegs.with_head(s(0xDB, b"\0" + b"\1" * 64) * 120_000),
        "2,000,000 empty comments": lambda: jpegs.with_head(s(0xFE) * 2_000_000),
        "2,000,000 comments between scans": lambda: jpegs.with_middle(s(0xFE) * 2_000_000),
        "100 comments of 64 KiB": lambda: jpegs.with_head(s(0xFE, bytes(65_000)) * 100),
        "EXIF in 400,000 pieces": lambda: jpegs.with_head(jpegs.exif_pieces(bytes(4_100_000), 10)),
        "EXIF that names 6 MB 20,000 times": lambda: jpegs.with_head(jpegs.exif_bomb(6)),
        "EXIF that follows itself": lambda: jpegs.with_head(
            s(0xE1, b"Exif\0\0" + jpegs.exif(jpegs.entry(0x8769, 4, 1, 8), following=8))
        ),
        "8 MB of fill bytes": lambda: jpegs.with_head(b"\xff" * 8_000_000),
        "8 MB of other bytes between markers": lambda: jpegs.with_head(b"\1" * 8_000_000),
        "8 MB of fill bytes between scans": lambda: jpegs.with_middle(b"\xff" * 8_000_000),
        "8 MB of stuffed bytes": lambda: jpegs.with_middle(b"\xff\0" * 4_000_000),
        "a restart after each block": p(jpegs.restarts, 7000, stated=True),
        "restarts that nobody stated": p(jpegs.restarts, 7000, stated=False),
        "a colour profile in 255 pieces": lambda: jpegs.with_head(
            b"".join(s(0xE2, b"ICC_PROFILE\0" + bytes((n, 255)) + bytes(30_000)) for n in range(1, 256))
        ),
        "other pictures behind it": lambda: jpegs.flat(64) * 20_000,
        "Photoshop blocks": lambda: jpegs.with_head(
            s(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\0\0\0\0\0\0\0" * 5000) * 100
        ),
        "one row of 65,500": lambda: jpegs.flat(8).replace(b"\0\x08\0\x08\x01", b"\0\x01\xff\xdc\x01"),
    }


def _largest_jpegs() -> Mapping[str, Callable[[], bytes]]:
    """Files that are just taken, one for each way of decoding."""
    p, refining = partial(partial, jpegs.progressive), {"approximation": 0x10}
    return {
        "largest, colour, turned": partial(jpegs.flat, 5784, jpegs.COLOUR, head=jpegs.turned()),
        "largest, inks": partial(jpegs.flat, 5784, jpegs.INKS),
        "largest, progressive grey": p(7064, 19, **refining),
        "largest, progressive, halved colours": p(6160, 16, jpegs.HALVED, **refining),
        "largest, progressive colour": p(5160, 11, jpegs.COLOUR, **refining),
        "largest, progressive inks": p(4728, 10, jpegs.INKS, **refining),
        "largest, progressive, 500 scans": p(1400, 499, **refining),
        "largest, progressive, 7 MB of fill bytes": p(7064, 19, **refining, middle=b"\xff" * 7_000_000),
        "largest, each number": partial(jpegs.every_number, 5720),
        "largest, each number refined": partial(jpegs.refined, 3000, 5),
    }


def _pngs() -> Mapping[str, Callable[[], bytes]]:
    p, c, flat = partial, pngs.chunk, partial(pngs.flat, SIDE)
    big = zlib.compress(bytes(60 * MIB))
    text = c(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000)))
    return {
        "the most pixels, 16-bit grey": p(flat, 16, pngs.GREY),
        "the most pixels, 16-bit colour with alpha": p(flat, 16, pngs.RGBA),
        "the most pixels, 16-bit colour": p(flat, 16, pngs.RGB),
        "the most pixels, 16-bit grey with alpha": p(flat, 16, pngs.GREY_ALPHA),
        "the most pixels, colour": p(flat, 8, pngs.RGB),
        "the most pixels, colour with alpha": p(flat, 8, pngs.RGBA),
        "the most pixels, grey with alpha": p(flat, 8, pngs.GREY_ALPHA),
        "the most pixels, a transparent colour": p(flat, 8, pngs.RGB, before=c(b"tRNS", bytes(6))),
        "the most pixels, palette with alpha": p(flat, 8, pngs.PALETTE, before=c(b"tRNS", bytes(200))),
        "the most pixels, 1 bit": p(flat, 1, pngs.GREY),
        "the most pixels, turned": p(flat, 8, pngs.RGB, before=c(b"eXIf", jpegs.exif(jpegs.entry(0x112, 3, 1, 6)))),
        "interlaced, colour with alpha": p(flat, 8, pngs.RGBA, interlaced=True),
        "interlaced, 16-bit": p(flat, 16, pngs.RGBA, interlaced=True),
        "interlaced, 1 bit": p(flat, 1, pngs.GREY, interlaced=True),
        "50,000 x 50,000": lambda: pngs.MAGIC + pngs.header(50_000, 50_000, 1, 0) + c(b"IDAT", big[:1000]) + pngs.END,
        "2^31 - 1 wide": lambda: pngs.MAGIC + pngs.header(2**31 - 1, 1, 16, 6) + c(b"IDAT", big[:1000]) + pngs.END,
        "700,000 empty data chunks": lambda: pngs.flat(64, split=lambda d: c(b"IDAT") * 690_000 + c(b"IDAT", d)),
        "a data chunk for each byte": lambda: pngs.flat(
            2, split=lambda d: pngs.bytewise(pngs.empty_blocks(600_000) + d[2:])
        ),
        "600,000 empty deflate blocks": lambda: pngs.flat(64, split=lambda _: c(b"IDAT", pngs.empty_blocks(8_000_000))),
        "data beyond the last row": lambda: pngs.flat(64, split=lambda _: c(b"IDAT", big) * 100),
        "600,000 empty texts": lambda: pngs.flat(64, before=c(b"tEXt", b"k\0") * 550_000),
        "64 compressed texts of 1 MB": lambda: pngs.flat(64, before=text * 64),
        "4,000 compressed texts behind the data": lambda: pngs.flat(64, after=text * 4000),
        "a compressed text of 60 MB": lambda: pngs.flat(64, before=c(b"zTXt", b"k\0\0" + big)),
        "a colour profile of 60 MB": lambda: pngs.flat(64, before=c(b"iCCP", b"k\0\0" + big)),
        "4,000 colour profiles": lambda: pngs.flat(64, before=c(b"iCCP", text[8:-4]) * 4000),
        "4,000 translated texts": lambda: pngs.flat(64, before=c(b"iTXt", b"k\0\1\0\0\0" + text[11:-4]) * 4000),
        "EXIF that names 6 MB 20,000 times": lambda: pngs.flat(64, before=c(b"eXIf", _exif_bomb())),
        "EXIF in a text": lambda: pngs.flat(64, before=_profile(_exif_bomb()[:400_000])),
        "700,000 unknown chunks": lambda: pngs.flat(64, before=c(b"abCd") * 690_000),
        "700,000 unknown chunks behind the data": lambda: pngs.flat(64, after=c(b"abCd") * 690_000),
        "a palette of 8 MB": lambda: pngs.flat(64, before=c(b"PLTE", bytes(8_000_000))),
        "animated, 300 frames": _animated,
        "animated, a frame of 2^31": lambda: pngs.flat(
            64, before=c(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + _frame(0, 2**31 - 1)
        ),
        "two headers": lambda: pngs.flat(64, before=pngs.header(60_000, 60_000, 16, 6)),
        "a header behind the data": lambda: pngs.flat(64, after=pngs.header(60_000, 60_000, 16, 6)),
        "chunks of 2^31 bytes": lambda: pngs.flat(64, before=struct.pack(">I4s", 2**31 - 1, b"tEXt")),
    }


def _largest_pngs() -> Mapping[str, Callable[[], bytes]]:
    """Files that are just taken, one for each way of decoding."""
    p, c = partial(partial, pngs.flat), pngs.chunk
    exif = c(b"eXIf", jpegs.exif(jpegs.entry(0x112, 3, 1, 6)))
    return {
        "largest, 16-bit grey": p(6680, 16, pngs.GREY),
        "largest, 16-bit colour with alpha": p(4990, 16, pngs.RGBA),
        "largest, 16-bit colour with alpha, interlaced": p(4990, 16, pngs.RGBA, interlaced=True),
        "largest, 16-bit colour": p(5770, 16, pngs.RGB),
        "largest, 16-bit grey with alpha": p(5790, 16, pngs.GREY_ALPHA),
        "largest, colour with alpha": p(5790, 8, pngs.RGBA),
        "largest, colour with alpha, interlaced": p(5790, 8, pngs.RGBA, interlaced=True),
        "largest, colour, interlaced": p(SIDE, 8, pngs.RGB, interlaced=True),
        "largest, a transparent colour": p(5790, 8, pngs.RGB, before=c(b"tRNS", bytes(6))),
        "largest, colour, turned": p(5790, 8, pngs.RGB, before=exif),
        "largest, colour, behind 7 MB of empty deflate blocks": p(
            SIDE, 8, pngs.RGB, split=lambda d: c(b"IDAT", pngs.empty_blocks(7_000_000) + d[2:])
        ),
    }


def _profile(exif: bytes) -> bytes:
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    return pngs.chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def _exif_bomb() -> bytes:
    length = 6 * MIB
    entries = (jpegs.entry(0x8000 + number, 7, length, 16) for number in range(20_000))
    return jpegs.exif(*entries, tail=bytes(length))


def _frame(number: int, width: int) -> bytes:
    return pngs.chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, 64, 0, 0, 1, 1, 0, 0))


def _animated() -> bytes:
    data = pngs.deflated(pngs.rows(64, 64, 8, pngs.RGB))
    frames = b"".join(
        _frame(2 * n + 1, 64) + pngs.chunk(b"fdAT", struct.pack(">I", 2 * n + 2) + data) for n in range(300)
    )
    return pngs.flat(64, before=pngs.chunk(b"acTL", struct.pack(">II", 301, 0)) + _frame(0, 64), after=frames)


def _others() -> Mapping[str, Callable[[], bytes]]:
    def saved(kind: str, side: int, **options: object) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (side, side)).save(out, kind, **options)
        return out.getvalue()

    return {
        "WebP, animated": lambda: saved("WEBP", 64, save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]),
        "WebP of the largest size": lambda: webps.riff(webps.canvas(2**24, 2**24, 0x12), (b"ANMF", bytes(99))),
        "WebP, the most pixels": partial(saved, "WEBP", SIDE),
        "WebP, largest": partial(saved, "WEBP", 3660),
        "WebP, 65,536 codes": partial(webps.lossless, 1024),
        "WebP, largest, lossless, all the codes that there can be": partial(webps.lossless, 452),
        "WebP, 1,000,000 empty chunks": lambda: webps.riff(webps.canvas(64, 64), *[(b"abcd", b"")] * 1_000_000),
        "WebP, 400 pictures of 2^24 pixels": lambda: webps.riff(
            webps.canvas(4096, 4096, 0x02), (b"ANIM", bytes(6)), *[(b"ANMF", bytes(16) + b"VP8 " + bytes(20))] * 400
        ),
        "TIFF": partial(saved, "TIFF", 4000, compression="tiff_lzw"),
        "GIF": partial(saved, "GIF", 4000),
        "8 MB of zeros": lambda: bytes(8 * MIB - 1),
    }


def _sounds() -> Mapping[str, Callable[[], bytes]]:
    def seconds(length_s: float, rate_hz: int, channels: int = 1) -> bytes:
        drawn = np.random.default_rng(0).integers(-9999, 9999, int(length_s * rate_hz) * channels)
        return wav(drawn.astype("<i2"), rate_hz, channels)

    def chunks(name: bytes, size: int, count: int) -> bytes:
        sound = seconds(1, 16_000)
        each = struct.pack("<4sI", name, size) + bytes(size)
        whole = sound[:12] + each * count + sound[12:]
        return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]

    def stated(rate_hz: int, channels: int = 1, bits: int = 16) -> bytes:
        sound, frame = seconds(1, 16_000), channels * bits // 8
        fields = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * frame % 2**32, frame % 2**16, bits)
        return sound[:20] + fields + sound[36:]

    return {
        "43 s at 48 kHz, stereo": partial(seconds, 43, 48_000, 2),
        "60 s at 65,521 Hz": partial(seconds, 60, 65_521),
        "30 s at 95,989 Hz": partial(seconds, 30, 95_989),
        "60 s at 8,009 Hz": partial(seconds, 60, 8009),
        "500 s at 8 kHz": partial(seconds, 500, 8000),
        "1,000,000 empty chunks": partial(chunks, b"junk", 0, 1_000_000),
        "300,000 formats": partial(chunks, b"fmt ", 16, 300_000),
        "a chunk of 8 MB": partial(chunks, b"LIST", 8_000_000, 1),
        "1 Hz": partial(stated, 1),
        "2^31 Hz": partial(stated, 2**31),
        "2^32 - 1 Hz": partial(stated, 2**32 - 1),
        "65,535 channels": partial(stated, 16_000, 65_535),
        "no channel": partial(stated, 16_000, 0),
        "65,535 bits": partial(stated, 16_000, 1, 65_535),
        "a length of 4 GB": lambda: seconds(1, 16_000).replace(b"data\0\x7d\0\0", b"data\xff\xff\xff\xff"),
    }


def _texts() -> Mapping[str, Callable[[], bytes]]:
    def lines(what: str, count: int = 64, characters: int = 2000) -> bytes:
        return "\n".join([(what * (characters // len(what) + 1))[:characters]] * count).encode()

    return {
        "8 MB of line ends": lambda: b"\n" * (8 * MIB - 1),
        "8 MB of one line": lambda: b"a" * (8 * MIB - 1),
        "8 MB of blanks": lambda: b" " * (8 * MIB - 1),
        "one letter": partial(lines, "a"),
        "two letters in turn": partial(lines, "ab"),
        "words of a letter": partial(lines, "a "),
        "digits": partial(lines, "9"),
        "points": partial(lines, "."),
        "apostrophes": partial(lines, "'"),
        "combining marks": partial(lines, "a\u0301\u0316\u0300\u0323"),
        "only combining marks": partial(lines, "\u0323\u0301"),
        "a letter that becomes eighteen": partial(lines, "\ufdfa"),
        "Hangul": partial(lines, "\ud55c"),
        "Han": partial(lines, "\u6f22"),
        "joined people": partial(lines, "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        "flags": partial(lines, "\U0001f1e9\U0001f1ea"),
        "other blanks": partial(lines, "a\u2003\u3000"),
        "control characters": partial(lines, "a\x01\x02"),
        "a network's own tokens": partial(lines, "<|endoftext|></s>[SEP]<image>"),
        "beginnings of tokens": partial(lines, "<|endoftext<|"),
        "dotted capitals": partial(lines, "\u0130"),
        "no text": lambda: b"\xed\xa0\x80\xed\xb0\x80" * 1000,
        "64 different lines": lambda: "\n".join(
            "".join(chr(0x4E00 + (n * 7919 + i * 104_729) % 20_000) for i in range(2000)) for n in range(64)
        ).encode(),
    }


CASES: Mapping[str, Case] = {
    f"{kind}: {name}": Case(kind, make)
    for kind, made in (
        ("JPEG", {**_jpegs(), **_largest_jpegs()}),
        ("PNG", {**_pngs(), **_largest_pngs()}),
        ("other", _others()),
        ("sound", _sounds()),
        ("text", _texts()),
    )
    for name, make in made.items()
}
