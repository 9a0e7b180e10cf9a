"""JPEG files, read marker by marker as libjpeg does, without decoding.

Owns which JPEGs are taken: baseline and progressive ones of 8 bits, with Huffman codes. Others are rare, and some of
them (arithmetic codes) may take any time for few bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from edge_agent.modules.inputs.limits import MAX_BLOCK_VISITS, MAX_MARKERS, MAX_PIXELS, MAX_SCANS
from edge_agent.modules.inputs.picture_file import Doubt, PictureFile, Unreadable, orientation_of, too_large

MAGIC = b"\xff\xd8\xff"
_SOI, _EOI, _SOS, _METADATA, _PROGRESSIVE = 0xD8, 0xD9, 0xDA, 0xE1, 0xC2
_FRAMES = {0xC0, 0xC1, _PROGRESSIVE}
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
# What makes pixels: the frame, Huffman and quantisation tables, the restart interval, the scans, and what JFIF and
# Adobe say of the colours.
_JFIF, _COLOURS = 0xE0, 0xEE
_PIXELS = {*_FRAMES, 0xC4, 0xDB, 0xDD, _SOS, _JFIF, _COLOURS}
_OF_COLOURS = {_JFIF: (b"JFIF\0", 14), _COLOURS: (b"Adobe", 12)}  # how it begins, and its least bytes: libjpeg's rule
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
# A marker with a length, or the end: not a stuffed zero, a restart between two blocks, or a fill byte.
_NEXT = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_GREY, _RGB, _INKS = 1, 3, 4  # components
_DECODED = {_GREY: ("grey", 1), _RGB: ("colour", 4), _INKS: ("four inks", 4)}  # bytes of a pixel in Pillow
_BITS = 8
_SAMPLINGS = range(1, 5)
_FRAME = struct.Struct(">BHHB")
_END = bytes((0xFF, _EOI))
# What stands behind the pixels of a file that may lack some. Its first bit isn't the zero by which a decoder goes on,
# and it goes on behind each restart that the decoder may wait for.
_NOISE = b"\xaa" + bytes((number * 97 + 31) % 255 for number in range(500))
_PADDING = _NOISE + b"".join(bytes((0xFF, 0xD0 + number)) + _NOISE for number in range(8))
_BUFFER_ZEROS = 16  # so many at the end of a file without its end are the rest of a buffer, no pixels
_BLOCK_BYTES = 64 * 2  # of the decoder's numbers


@dataclass(frozen=True)
class _Scan:
    components: bytes  # their names
    numbers: range  # of each block, 0 to 63
    is_last: bool  # nothing refines these numbers


@dataclass(frozen=True)
class _Frame:
    is_progressive: bool
    width: int
    height: int
    components: bytes  # their names
    samplings: tuple[tuple[int, int], ...]  # of each component, across and down

    @property
    def unit(self) -> tuple[int, int]:
        """The size in pixels of what is coded together."""
        return 8 * max(h for h, _ in self.samplings), 8 * max(v for _, v in self.samplings)

    @property
    def blocks(self) -> int:
        """The blocks of all components, of 8 x 8 numbers each."""
        across, down = self.unit
        units = -(-self.width // across) * -(-self.height // down)
        return units * sum(h * v for h, v in self.samplings)


def read(data: bytes) -> PictureFile:
    """The picture in a JPEG file, from its markers. A file that lacks only its end is whole.

    Raises:
        Unreadable: it is damaged or truncated, or a kind of JPEG that isn't taken.
        RequestFailed: ``too_large``: it has too many markers or scans.
    """
    kept, scans = [data[:2]], list[_Scan]()
    frame: _Frame | None = None
    metadata: dict[bytes, bytes] = {}
    is_adobe, is_ended, over = False, False, 0
    for marker, segment in _segments(data):
        if marker in _OTHER_FRAMES or (marker in _FRAMES and frame):
            raise Unreadable("damaged" if frame else "a JPEG with arithmetic codes, a lossless or a hierarchical one")
        if marker == _EOI:
            is_ended = True
        elif marker in _PIXELS and _counts(marker, segment):
            kept.append(segment)
        if marker in _FRAMES:
            frame = _frame(marker, segment[4:])
        elif marker == _SOS:
            scans.append(_scan(segment))
            over = len(kept)  # what follows the last scan makes no pixels
        elif marker == _METADATA:
            metadata.setdefault(_EXIF if segment.startswith(_EXIF, 4) else segment[4 : 4 + len(_XMP)], segment[4:])
        is_adobe |= marker == _COLOURS and _counts(marker, segment)
    if not frame or not scans or not (is_ended or _are_all(scans, frame)):
        raise Unreadable("truncated")
    del kept[over:]
    if not is_ended and len(kept[-1]) - len(stripped := kept[-1].rstrip(b"\0")) >= _BUFFER_ZEROS:
        kept[-1] = stripped
    orientation = orientation_of(metadata.get(_EXIF, b""), metadata.get(_XMP, b""))
    picture = _picture(frame, scans, b"".join(kept), orientation, is_ended=is_ended)
    return replace(picture, has_plain_inks=len(frame.samplings) == _INKS and not is_adobe)


def _counts(marker: int, segment: bytes) -> bool:
    """Whether a segment makes pixels. One of JFIF or Adobe that is too short, or another program's, says nothing."""
    begins, least_bytes = _OF_COLOURS.get(marker, (b"", 0))
    return segment.startswith(begins, 4) and len(segment) - 4 >= least_bytes


def _picture(frame: _Frame, scans: list[_Scan], data: bytes, orientation: int, *, is_ended: bool) -> PictureFile:
    components = len(frame.samplings)
    is_buffered = (
        frame.is_progressive or len(scans[0].components) != components
    )  # it keeps all blocks until the last scan
    twice = 2 if is_buffered and not is_ended else 1  # it is decoded twice
    most = min(MAX_SCANS, max(components, MAX_BLOCK_VISITS // (twice * frame.blocks)))
    if len(scans) > most and frame.width * frame.height <= MAX_PIXELS:  # else its number of pixels is the reason
        raise too_large(
            f"this JPEG has {len(scans)} scans, at most {most} are allowed for {frame.width} x {frame.height} pixels: "
            "save it again, not progressive"
        )
    colours, pixel_bytes = _DECODED[components]
    doubt = None
    if not (is_buffered and is_ended):
        last = frame.unit if is_ended and components != _INKS else None  # inks blend with those of their neighbours
        doubt = Doubt(data + _PADDING + _END, last)
    return PictureFile(
        kind="JPEG",
        width=frame.width,
        height=frame.height,
        data=data + _END,
        orientation=orientation,
        decoded=f"{colours}, progressive" if is_buffered else colours,
        pixel_bytes=pixel_bytes,
        buffered_bytes=frame.blocks * _BLOCK_BYTES if is_buffered else 0,
        is_rgb=components == _RGB,
        doubt=doubt,
    )


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each marker and its segment, which begins with it: its data, and behind a start of scan the coded pixels.

    The last one is that of the picture's end, if there is one. Fill bytes belong to no segment.
    """
    found, count = _NEXT.search(data, 2), 0
    while found:
        at, marker = found.start(), data[found.start() + 1]
        count += 1
        if count > MAX_MARKERS:
            raise too_large(f"this JPEG has more than {MAX_MARKERS} markers: save it again without its metadata")
        if marker == _EOI:
            yield marker, data[at : at + 2]
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if end > len(data):
            raise Unreadable("truncated")
        if marker == _SOI or length < (3 if marker == _SOS else 2):
            raise Unreadable("damaged")
        found = _NEXT.search(data, end)
        if marker == _SOS:
            end = found.start() if found else len(data)
        yield marker, data[at:end].rstrip(b"\xff") if marker == _SOS else data[at:end]


def _scan(segment: bytes) -> _Scan:
    """A start of scan: its components, and which of their numbers it has."""
    count = segment[4]
    first, last, approximation = segment[5 + 2 * count : 8 + 2 * count].ljust(3, b"\0")
    return _Scan(segment[5 : 5 + 2 * count : 2], range(first, last + 1), approximation & 15 == 0)


def _are_all(scans: list[_Scan], frame: _Frame) -> bool:
    """Whether no further scan is needed for the whole picture."""
    missing = {(name, number) for name in frame.components for number in (range(64) if frame.is_progressive else [0])}
    for scan in scans:
        for name in scan.components:
            numbers = {(name, number) for number in (scan.numbers if frame.is_progressive else [0])}
            missing = missing - numbers if scan.is_last or not frame.is_progressive else missing | numbers
    return not missing


def _frame(marker: int, body: bytes) -> _Frame:
    if len(body) < _FRAME.size:
        raise Unreadable("damaged")
    bits, height, width, count = _FRAME.unpack_from(body)
    samplings = tuple((each >> 4, each & 15) for each in body[_FRAME.size + 1 :: 3])
    if bits != _BITS:
        raise Unreadable(f"a JPEG of {bits} bits a sample")
    is_whole = count in _DECODED and len(body) == _FRAME.size + 3 * count
    if not is_whole or not width or not height or not all(h in _SAMPLINGS and v in _SAMPLINGS for h, v in samplings):
        raise Unreadable("damaged")
    return _Frame(marker == _PROGRESSIVE, width, height, body[_FRAME.size :: 3], samplings)
