"""PNG files, read chunk by chunk, without decoding.

Owns which chunks make pixels. An animation is its first picture.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from broker.protocol.sizes import show_sizes
from edge_agent.modules.inputs.limits import MAX_CHUNKS, MAX_METADATA_BYTES, MAX_PIXELS, MAX_ROW_BYTES
from edge_agent.modules.inputs.picture_file import PictureFile, Unreadable, orientation_of, too_large

MAGIC = b"\x89PNG\r\n\x1a\n"
_HEADER, _PALETTE, _TRANSPARENCY, _PIXELS, _EXIF = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf"
_KEPT, _METADATA = {_HEADER, _PALETTE, _TRANSPARENCY}, {_EXIF, b"tEXt", b"zTXt", b"iTXt"}
_EXIF_TEXT, _XMP_TEXT, _LONGEST_KEY = b"Raw profile type exif", b"XML:com.adobe.xmp", 80
_HEADER_BYTES = 8 + 13 + 4
_GREY, _RGB, _DEEP_BITS = 0, 2, 16
_COLOURS = {
    _GREY: ("grey", 1, 1),
    _RGB: ("colour", 3, 4),
    3: ("a palette", 1, 1),
    4: ("grey with transparency", 2, 4),
    6: ("colour with transparency", 4, 4),
}  # by colour type: its name, its channels, and the bytes of a pixel in Pillow


def read(data: bytes) -> PictureFile:
    """The picture in a PNG file, from its chunks.

    Raises:
        Unreadable: it is damaged.
        RequestFailed: ``too_large``: it has too many chunks, or too much data in its rows.
    """
    kept: dict[bytes, bytes] = {}  # whole chunks, by kind
    pixels: list[bytes] = []
    metadata: dict[bytes, bytes] = {}
    is_over = False  # what follows the pixels makes none
    for kind, whole, body in _chunks(data):
        is_over |= bool(pixels) and kind != _PIXELS
        if kind == _PIXELS and not is_over:
            pixels.append(body)
        elif kind == _HEADER and (kept or pixels):
            raise Unreadable("damaged")
        elif kind in _KEPT and not is_over:
            kept[kind] = whole
        elif kind in _METADATA:
            _note(metadata, kind, body)
    if len(kept.get(_HEADER, b"")) != _HEADER_BYTES or not pixels:
        raise Unreadable("unknown format")
    exif = metadata.get(_EXIF) or _raw_profile(metadata.get(_EXIF_TEXT, b""))
    orientation = orientation_of(exif, metadata.get(_XMP_TEXT, b""))
    if _TRANSPARENCY in kept:
        kept[_TRANSPARENCY] = _as_decoded(kept[_HEADER], kept[_TRANSPARENCY])
    file = [MAGIC, *kept.values(), chunk(_PIXELS, b"".join(pixels)), chunk(b"IEND", b"")]
    return _picture(kept[_HEADER], b"".join(file), orientation, has_transparency=_TRANSPARENCY in kept)


def _picture(header: bytes, data: bytes, orientation: int, *, has_transparency: bool) -> PictureFile:
    width, height, bits, colour = struct.unpack_from(">IIBB", header, 8)
    if colour not in _COLOURS or not width or not height:
        raise Unreadable("damaged")
    colours, channels, pixel_bytes = _COLOURS[colour]
    pixel_bits, is_deep = bits * channels, bits == _DEEP_BITS
    row_bytes = height * (1 + (width * pixel_bits + 7) // 8)
    if row_bytes > MAX_ROW_BYTES and width * height <= MAX_PIXELS:  # else its number of pixels is the reason
        rows, limit = show_sizes(row_bytes, MAX_ROW_BYTES)
        raise too_large(
            f"the rows of this PNG have {rows} ({width} x {height} pixels of {pixel_bits} bits), "
            f"at most {limit} are allowed: send one with fewer pixels, or with 8 bits a channel"
        )
    return PictureFile(
        kind="PNG",
        width=width,
        height=height,
        data=data,
        orientation=orientation,
        decoded=f"16-bit {colours}" if is_deep else colours,
        pixel_bytes=max(pixel_bytes, 2) if is_deep else pixel_bytes,
        buffered_bytes=0,
        is_rgb=colour == _RGB and not has_transparency,
    )


def _as_decoded(header: bytes, transparency: bytes) -> bytes:
    """The chunk of a transparent colour, as Pillow compares it: with the pixels that it decoded, of 8 bits a channel.

    Of 16-bit colours Pillow decodes the upper bytes, so the transparent colour is that of the upper bytes, too.
    """
    bits, colour = header[16:18]
    values = [int.from_bytes(transparency[at : at + 2], "big") for at in range(8, len(transparency) - 4, 2)]
    if colour not in {_GREY, _RGB} or bits == 1 or (bits == _DEEP_BITS and colour == _GREY):
        return transparency
    most = 2**bits - 1
    scaled = [value >> 8 if bits == _DEEP_BITS else (value & most) * 255 // most for value in values]
    return chunk(_TRANSPARENCY, struct.pack(f">{len(scaled)}H", *scaled))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The kind of each chunk, all of it, and its data; the last may be truncated."""
    at = len(MAGIC)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at : at + 12 + length], data[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        at += 12 + length
    raise too_large(f"this PNG has more than {MAX_CHUNKS} chunks: save it again without its metadata")


def _note(metadata: dict[bytes, bytes], kind: bytes, body: bytes) -> None:
    """Keep what may say how the picture is turned; of each kind the first."""
    if kind == _EXIF:
        metadata.setdefault(kind, body)
    elif (key := body[:_LONGEST_KEY].partition(b"\0")[0]) in {_EXIF_TEXT, _XMP_TEXT} and key not in metadata:
        metadata[key] = _text(kind, body[len(key) + 1 :])


def _text(kind: bytes, rest: bytes) -> bytes:
    """The text of a chunk, behind its keyword: at most so much of it as is looked at."""
    if kind == b"iTXt":
        is_packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    else:
        is_packed, rest = kind == b"zTXt", rest[kind == b"zTXt" :]
    if not is_packed:
        return rest[:MAX_METADATA_BYTES]
    try:
        return zlib.decompressobj().decompress(rest, MAX_METADATA_BYTES)
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """An EXIF block that ImageMagick wrote as a text of hexadecimal digits, behind three lines."""
    try:
        return bytes.fromhex(text.split(b"\n", 3)[-1].decode("ascii"))
    except ValueError:
        return b""


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file, with its length and its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
