"""The kinds of inputs, by content type and by first bytes. Pure.

Owns the table of known beginnings, and how media types are compared. Decodes nothing: whether a format can be read is
decided where it is read.
"""

from __future__ import annotations

import binascii
import codecs
import re
from typing import Literal, NamedTuple

Kind = Literal["image", "text", "audio"]
KINDS: tuple[Kind, ...] = ("image", "text", "audio")
CALLED: dict[Kind, str] = {"image": "a picture", "text": "a text", "audio": "a sound"}
"""The kinds, for sentences."""
SEEN_BYTES = 64  # of a beginning that may be text: enough for the decoded beginning of any format below
_BASE64_LETTERS = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_HEX_LETTERS = re.compile(rb"[0-9A-Fa-f]+")
_DATA_URL = re.compile(rb"data:(?:(image|audio)/|[a-z0-9.+/;=-]*;base64,([A-Za-z0-9+/=_-]*))", re.IGNORECASE)
_BYTES_SHOWN = re.compile(rb"b['\"]|0x", re.IGNORECASE)  # as Python and C write bytes
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # the other one begins like the first
_AUDIO_BRANDS = (b"M4A ", b"M4B ")
_IMAGE_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}


class Format(NamedTuple):
    """A file format: its name for people, its media type, and the kind of input that it is; None: of no input."""

    name: str
    media_type: str
    kind: Kind | None


_BEGINNINGS: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", Format("JPEG", "image/jpeg", "image")),
    (b"\x89PNG\r\n\x1a\n", Format("PNG", "image/png", "image")),
    (b"GIF87a", Format("GIF", "image/gif", "image")),
    (b"GIF89a", Format("GIF", "image/gif", "image")),
    (b"II*\x00", Format("TIFF", "image/tiff", "image")),
    (b"MM\x00*", Format("TIFF", "image/tiff", "image")),
    (b"\x00\x00\x00\x0cjP  ", Format("JPEG 2000", "image/jp2", "image")),
    (b"fLaC\x00", Format("FLAC", "audio/flac", "audio")),
    (b"OggS\x00", Format("Ogg", "audio/ogg", "audio")),
    (b"ID3\x02", Format("MP3", "audio/mpeg", "audio")),
    (b"ID3\x03", Format("MP3", "audio/mpeg", "audio")),
    (b"ID3\x04", Format("MP3", "audio/mpeg", "audio")),
    (b"\xff\xfb", Format("MP3", "audio/mpeg", "audio")),
    (b"\xff\xf3", Format("MP3", "audio/mpeg", "audio")),
    (b"\x1aE\xdf\xa3", Format("Matroska or WebM", "video/x-matroska", None)),
    (b"\x1f\x8b", Format("gzip", "application/gzip", None)),
    (b"PK\x03\x04", Format("zip", "application/zip", None)),
    (b"%PDF-", Format("PDF", "application/pdf", None)),
)
_WEBP = Format("WebP", "image/webp", "image")
_WAV = Format("WAV", "audio/wav", "audio")


def media_type(content_type: str) -> str:
    """A content type without its parameters, in lower case: types are equal in capitals."""
    return content_type.split(";", maxsplit=1)[0].strip().lower()


def kind_of(content_type: str) -> Kind | None:
    """The kind of input that a content type names; None for all other types."""
    first = media_type(content_type).split("/", maxsplit=1)[0]
    return first if first in KINDS else None


def format_of(data: bytes) -> Format | None:
    """The format of a file, by its first bytes; None for text, and for what isn't known."""
    for beginning, known in _BEGINNINGS:
        if data.startswith(beginning):
            return known
    if data[:4] in {b"RIFF", b"RF64"}:
        return {b"WEBP": _WEBP, b"WAVE": _WAV}.get(data[8:12])
    if data[4:8] == b"ftyp":
        return _format_of_brand(data[8:12])
    is_bitmap = data.startswith(b"BM") and data[6:10] == bytes(4)
    return Format("BMP", "image/bmp", "image") if is_bitmap else None


def wrong_kind(who: str, takes: str, sent: str) -> str:
    """The sentence about an input of another kind, the same for all that check it."""
    return f"{who} takes {takes}, not {sent}"


def _format_of_brand(brand: bytes) -> Format:
    if brand in _IMAGE_BRANDS:
        name = _IMAGE_BRANDS[brand]
        return Format(name, f"image/{name.lower()}", "image")
    return Format("M4A", "audio/mp4", "audio") if brand in _AUDIO_BRANDS else Format("MP4", "video/mp4", None)


def encoded_format_of(data: bytes) -> tuple[str, Format] | None:
    """How a picture or a sound is written as text, and its format: ``base64``, ``a data URL``, ``hexadecimal``.

    None for all other bytes. Only the beginning is read.
    """
    beginning = data[:SEEN_BYTES].removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n\"'")
    if found := _DATA_URL.match(beginning):
        if found[1] is None:
            known = format_of(_from_base64(found[2]))
            return ("a data URL", known) if known is not None and known.kind is not None else None
        kind: Kind = "image" if found[1].lower() == b"image" else "audio"
        return "a data URL", Format("data URL", f"{kind}/…", kind)
    shown = _BYTES_SHOWN.match(beginning)
    text = b"".join(beginning[shown.end() if shown else 0 :].split())
    for name, letters, decode in (("hexadecimal", _HEX_LETTERS, _from_hex), ("base64", _BASE64_LETTERS, _from_base64)):
        known = format_of(decode(text)) if letters.fullmatch(text) else None
        if known is not None and known.kind is not None:
            return name, known
    return None


def _from_hex(letters: bytes) -> bytes:
    return binascii.unhexlify(letters[: len(letters) // 2 * 2])


def _from_base64(letters: bytes) -> bytes:
    standard = letters.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    return binascii.a2b_base64(standard[: len(standard) // 4 * 4])


def is_text(data: bytes) -> bool:
    """Whether bytes can be a text: in UTF-8, or with the mark of UTF-16 or UTF-32.

    NULs at its end are a C string's, and others aren't in a text.
    """
    if data.startswith(_WIDE_MARKS):
        return True
    try:
        return "\x00" not in data.decode("utf-8").rstrip("\x00")
    except UnicodeDecodeError:
        return False
