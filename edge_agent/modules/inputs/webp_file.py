"""WebP files, read chunk by chunk, without decoding.

Owns which chunks make pixels, and the most memory that libwebp takes for them. An animation is its first picture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from edge_agent.modules.inputs.limits import MAX_CHUNKS
from edge_agent.modules.inputs.picture_file import PictureFile, Unreadable, orientation_of, too_large

_RIFF, _WEBP, _FIRST_CHUNK = b"RIFF", b"WEBP", 12
_LOSSY, _LOSSLESS, _EXTENDED, _ALPHA, _ANIMATION, _FRAME = b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"
_EXIF, _XMP = b"EXIF", b"XMP "
_LOSSY_START, _LOSSLESS_START = b"\x9d\x01\x2a", 0x2F
_SIDE = 0x3FFF  # the bits of a side
_IS_ANIMATED, _HAS_ALPHA = 0x02, 0x10
_EXTENDED_BYTES, _FRAME_HEAD_BYTES = 10, 16
_PACKED = 1  # of transparency: lossless
# Pillow decodes as if each file were an animation: two canvases, the bytes of the picture, and a copy without them.
_BUFFERED_BYTES = 16  # a pixel, beside the picture
# A lossless picture may have other Huffman codes for each 4 x 4 pixels, up to 2^16: libwebp's tables of five codes, the
# first with a colour cache of 2^11, have 5,004 entries of 4 bytes, beside 568.
_MAX_CODES, _CODE_PIXELS, _CODE_BYTES = 2**16, 4, 5004 * 4 + 568


def is_webp(data: bytes) -> bool:
    """Whether a file begins as a WebP does."""
    return data.startswith(_RIFF) and data[8:12] == _WEBP


def read(data: bytes) -> PictureFile:
    """The picture in a WebP file, from its chunks.

    Raises:
        Unreadable: it is damaged or truncated, or this machine's Pillow reads no WebP.
        RequestFailed: ``too_large``: it has too many chunks.
    """
    from PIL import WebPImagePlugin  # noqa: PLC0415 - libwebp, which other pictures don't need

    if not WebPImagePlugin.SUPPORTED:
        raise Unreadable("a WebP picture, which the Pillow of this device doesn't decode")
    found: dict[bytes, bytes] = {}  # the data of chunks, of each kind the first
    for kind, body in _chunks(data, _FIRST_CHUNK):
        found.setdefault(kind, body)
        if kind in {_LOSSY, _LOSSLESS} and _EXTENDED not in found:
            break  # what follows makes no picture
    if _EXTENDED in found:
        width, height, kept = _extended(found)
        shown = dict(_chunks(kept[_FRAME], _FRAME_HEAD_BYTES)) if _FRAME in kept else kept
    else:
        kept = shown = {kind: found[kind] for kind in (_LOSSY, _LOSSLESS) if kind in found}
        width, height = _size(kept)
    is_packed = _LOSSLESS in shown or shown.get(_ALPHA, b"\0")[0] & 3 == _PACKED
    codes = min(_MAX_CODES, -(-width // _CODE_PIXELS) * -(-height // _CODE_PIXELS)) if is_packed else 0
    return PictureFile(
        kind="WEBP",
        width=width,
        height=height,
        data=_file(kept),
        orientation=orientation_of(found.get(_EXIF, b""), found.get(_XMP, b"")),
        decoded="WebP with lossless parts" if is_packed else "WebP",
        pixel_bytes=4,
        buffered_bytes=width * height * _BUFFERED_BYTES + codes * _CODE_BYTES,
        is_rgb=False,
    )


def _extended(found: dict[bytes, bytes]) -> tuple[int, int, dict[bytes, bytes]]:
    """The size of the canvas, and the chunks that make the first picture."""
    head = found[_EXTENDED]
    if len(head) < _EXTENDED_BYTES:
        raise Unreadable("damaged")
    width, height = 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    names = (_ANIMATION, _FRAME) if head[0] & _IS_ANIMATED else (_ALPHA, _LOSSY, _LOSSLESS)
    kept = {name: found[name] for name in names if name in found}
    if not kept:
        raise Unreadable("truncated")
    flags = bytes((head[0] & (_IS_ANIMATED | _HAS_ALPHA),))
    return width, height, {_EXTENDED: flags + head[1:_EXTENDED_BYTES], **kept}


def _size(found: dict[bytes, bytes]) -> tuple[int, int]:
    """The size of a picture without a canvas, from its own head."""
    lossy, lossless = found.get(_LOSSY, b""), found.get(_LOSSLESS, b"")
    if lossy[3:6] == _LOSSY_START and len(lossy) >= 10:  # noqa: PLR2004 - the bytes of its head
        width, height = struct.unpack_from("<HH", lossy, 6)
        return width & _SIDE, height & _SIDE
    if lossless[:1] == bytes((_LOSSLESS_START,)) and len(lossless) >= 5:  # noqa: PLR2004 - the bytes of its head
        bits = int.from_bytes(lossless[1:5], "little")
        return 1 + (bits & _SIDE), 1 + (bits >> 14 & _SIDE)
    raise Unreadable("damaged" if found else "truncated")


def _chunks(data: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """The kind of each chunk from a place on, and its data."""
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + length]
        if len(body) < length:
            if kind in {_EXIF, _XMP}:  # metadata behind the pixels
                return
            raise Unreadable("truncated")
        yield kind, body
        at += 8 + length + length % 2
    raise too_large(f"this WebP has more than {MAX_CHUNKS} chunks: save it again without its metadata")


def _file(kept: dict[bytes, bytes]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in kept.items()
    )
    return _RIFF + struct.pack("<I", 4 + len(body)) + _WEBP + body
