"""The kind of a file by its first bytes, for the sentence that refuses it.

Owns the kinds that sensors send where this product takes none of them. Reads no file, and chooses nothing: a wrong
guess costs a wrong word in a refusal. ``broker.protocol.media`` chooses the input of a payload, and refuses base64.
"""

from __future__ import annotations

import re

_LOOKED_AT = 1024  # bytes
_FIRST: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"II+\0", "a TIFF picture"),
    (b"MM\0+", "a TIFF picture"),
    (b"8BPS", "a Photoshop picture"),
    (b"\0\0\1\0", "an icon"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"qoif", "a QOI picture"),
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\0\0\1\xba", "an MPEG video"),
    (b"\0\0\1\xb3", "an MPEG video"),
    (b"\0\0\0\1", "a raw H.264 or H.265 video"),
    (b"FLV\1", "a Flash video"),
    (b"ID3", "an MP3 sound"),
    (b"fLaC", "a FLAC sound"),
    (b".snd", "an AU sound"),
    (b"#!AMR", "an AMR sound"),
    (b"caff", "a Core Audio sound"),
    (b"MThd", "a MIDI file"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_RIFF = {b"WEBP": "a WebP picture", b"WAVE": "a wav file", b"AVI ": "an AVI video"}
_FORM = {b"AIFF": "an AIFF sound", b"AIFC": "an AIFF sound"}
_BRANDS = (  # of the family of MP4, the first that its head names
    (("avif", "avis"), "an AVIF picture"),
    (("heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1"), "a HEIC picture"),
    (("M4A ", "M4B "), "an M4A sound"),
    (("qt  ",), "a QuickTime video"),
    (("3gp", "3g2"), "a 3GP video"),
)
_MARKED_UP = re.compile(rb"<(svg|!doctype html|html)\b", re.IGNORECASE)
_AAC, _MP3 = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), re.compile(rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd]")
_BMP_RESERVED = slice(6, 10)
_TRANSPORT, _PACKET_BYTES = 0x47, 188  # of an MPEG transport stream


def kind_of(data: bytes) -> str | None:
    """The kind of a file, with its article; None if its first bytes don't say."""
    head = data[:_LOOKED_AT]
    for start, kind in _FIRST:
        if head.startswith(start):
            return kind
    match head[:4]:
        case b"RIFF":
            return _RIFF.get(head[8:12])
        case b"RF64" | b"BW64":
            return "a wav file" if head[8:12] == b"WAVE" else None
        case b"FORM":
            return _FORM.get(head[8:12])
        case b"OggS":
            return "an Ogg video" if b"theora" in head else "an Ogg sound"
        case _:
            return _by_its_head(head)


def _by_its_head(head: bytes) -> str | None:
    """A file whose first bytes alone don't say what it is."""
    if head[4:8] == b"ftyp":
        named = head[8 : max(8, int.from_bytes(head[:4], "big"))].decode("latin-1")
        return next((kind for brands, kind in _BRANDS if any(brand in named for brand in brands)), "an MP4 video")
    if head.startswith(b"BM") and head[_BMP_RESERVED] == bytes(4):
        return "a BMP picture"
    if found := _MARKED_UP.search(head):
        return "an SVG picture" if found[1].lower() == b"svg" else "an HTML page"
    if len(head) > _PACKET_BYTES and head[0] == head[_PACKET_BYTES] == _TRANSPORT:
        return "an MPEG video"
    if _AAC.match(head):
        return "an AAC sound"
    return "an MP3 sound" if _MP3.match(head) else None
