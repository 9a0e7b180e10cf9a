"""A picture's file before it is decoded: its size, what decoding takes, and the bytes that the decoder needs.

Owns the question how a picture is turned (EXIF, XMP), for all formats. ``jpeg_file``, ``png_file`` and
``webp_file`` read the files.

Invariants:
- The decoder gets nothing but what makes pixels. Metadata, comments, other pictures in the file and animations never
  reach it, so they cost nothing there.
- Whatever the bytes are, reading them takes time in proportion to their number.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Literal

from broker.protocol.errors import ErrorCode, RequestFailed

UPRIGHT = 1
_ORIENTATION_TAG = 0x0112
_WHOLE = {1: "B", 3: "H", 4: "I"}  # types of EXIF that are whole numbers
_HEAD_BYTES, _ENTRY_BYTES = 8, 12
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class Unreadable(ValueError):
    """A file can't be read as a picture of its format; the reason in a few words."""


@dataclass(frozen=True)
class Doubt:
    """Whether the pixels of a file end too early, which its decoder doesn't say."""

    padded: bytes  # the file with other bytes behind its pixels: they make other pixels where some are missing
    last: (
        tuple[int, int] | None
    )  # the size of the last pixels; where these aren't flat none are missing. None: decode both


@dataclass(frozen=True)
class PictureFile:
    """A picture that isn't decoded yet."""

    kind: Literal["JPEG", "PNG", "WEBP"]
    width: int
    height: int
    data: bytes  # the file without what makes no pixels
    orientation: int  # as EXIF counts: 1 is upright
    decoded: str  # its pixels, for a sentence
    pixel_bytes: int  # of a decoded pixel
    buffered_bytes: int  # that the decoder needs besides
    is_rgb: bool  # decoded as RGB, without transparency
    has_plain_inks: bool = False  # four inks, 255 is all of one; in Adobe's files 0 is
    doubt: Doubt | None = None  # whether it has all of its rows, which shows only when it is decoded

    @property
    def memory_bytes(self) -> int:
        """The most memory that it takes until it is upright and RGB.

        The decoder's buffers are gone when it is turned, and the turned picture replaces the first one.
        """
        pixels = self.width * self.height
        decoded = pixels * self.pixel_bytes
        turned = decoded if self.orientation != UPRIGHT else 0
        converted = 0 if self.is_rgb else 4 * pixels
        return decoded + max(self.buffered_bytes, turned, converted)


def too_large(sentence: str) -> RequestFailed:
    """The error about an input that takes too much work or memory."""
    return RequestFailed(ErrorCode.TOO_LARGE, sentence)


def exif_orientation(exif: bytes) -> int | None:
    """How a picture is turned, by the first directory of its EXIF block; None when it doesn't say."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < _HEAD_BYTES:
        return None
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    if at + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(f"{order}H", exif, at)
    found = None
    for start in range(at + 2, min(at + 2 + count * _ENTRY_BYTES, len(exif) - _ENTRY_BYTES + 1), _ENTRY_BYTES):
        tag, kind, length = struct.unpack_from(f"{order}HHI", exif, start)
        if tag == _ORIENTATION_TAG and kind in _WHOLE and length == 1:
            (found,) = struct.unpack_from(f"{order}{_WHOLE[kind]}", exif, start + 8)
    return found


def xmp_orientation(xmp: bytes) -> int | None:
    """How a picture is turned, by its XMP; None when it doesn't say."""
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else None


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """How a picture is turned: 1 to 8; EXIF goes before XMP, and anything else is upright."""
    found = exif_orientation(exif)
    if found is None:
        found = xmp_orientation(xmp)
    return UPRIGHT if found not in range(1, 9) or found is None else found
