"""Pictures as cameras, phones and programs write them: each has the pixels of the same picture made in another way."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps, WebPImagePlugin

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from edge_agent.modules.inputs import decoding, limits
from tests.hostile import jpegs, pngs
from tests.media import picture_bytes

SIZE = (45, 37)
Pixels = NDArray[np.uint8]


def drawn(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    numbers = np.random.default_rng(5).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    image = Image.fromarray(numbers)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def read(data: bytes) -> Pixels:
    return np.asarray(decoding.picture(RawInput(data)))


def decoded(data: bytes) -> Pixels:
    """The first picture of a file, as Pillow alone reads it, upright and over white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def refused(data: bytes) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        read(data)
    assert "\n" not in caught.value.message
    return caught.value


# --- JPEGs that end too early ---

KINDS: list[dict[str, object]] = [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_blocks": 3}]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_jpeg_that_lacks_only_its_end_is_the_whole_picture(mode: str, options: dict[str, object]) -> None:
    whole = picture_bytes(drawn(mode), "JPEG", **options)
    for data in (whole[:-2], whole[:-1], whole[:-2] + bytes(4096), whole[:-2] + b"\xff" * 9):
        assert (read(data) == read(whole)).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_jpeg_that_lacks_pixels_is_refused_wherever_it_ends(mode: str, options: dict[str, object]) -> None:
    whole = picture_bytes(drawn(mode), "JPEG", quality=30, **options)
    expected, refusals = read(whole), 0
    ends = [b"", bytes(4096)] if "progressive" in options else [b"", bytes(4096), jpegs.EOI]
    for at in range(2, len(whole) - 2, 7):
        for end in ends:
            try:
                found = decoding.picture(RawInput(whole[:at] + end))
            except RequestFailed as failed:
                refusals += 1
                assert failed.code == ErrorCode.BAD_INPUT  # noqa: PT017 - a refusal or all pixels, nothing else
            else:
                same = (np.asarray(found) == expected).all(axis=2)
                if end == jpegs.EOI:  # of the last unit a part may be missing
                    same[-16:, -16:] = True
                assert same.all()
    assert refusals > len(ends) * (len(whole) // 7 - 20)
    assert "(truncated): send a JPEG, PNG or WebP" in refused(whole[: len(whole) * 3 // 4]).message


@pytest.mark.parametrize("level", [64, 127, 128, 129, 192])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_picture_that_is_as_grey_as_missing_pixels_is_read(level: int, mode: str) -> None:
    grey = Image.new("L", (100, 80), level).convert("RGB").convert(mode)
    for options in KINDS:
        whole = picture_bytes(grey, "JPEG", **options)
        for data in (whole, whole[:-2]):
            assert (read(data) == decoded(whole)).all()


def test_a_progressive_jpeg_without_its_last_scans_and_its_end_is_refused() -> None:
    whole = picture_bytes(drawn(), "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", whole)]
    for at in scans[1:]:
        assert "truncated" in refused(whole[:at]).message


def test_a_file_without_its_end_may_have_half_the_scans_for_it_is_decoded_twice() -> None:
    whole = jpegs.progressive(2000, 200)
    assert "201 scans, at most 256" not in whole.decode("latin-1")
    assert read(whole).shape == (2000, 2000, 3)
    assert refused(whole[:-2]).code == ErrorCode.TOO_LARGE


# --- colours ---


def test_inks_of_which_zero_is_all_are_those_of_adobe_and_others_are_plain() -> None:
    inks = np.random.default_rng(1).integers(0, 256, (6, 6, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    adobe = picture_bytes(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    at = adobe.index(b"\xff\xee")
    assert adobe[at + 4 : at + 9] == b"Adobe"
    plain = picture_bytes(Image.fromarray(255 - inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    plain = plain[:at] + plain[at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big") :]
    assert b"Adobe" not in plain
    light = 255 - inks.astype(float)
    expected = light[:, :, :3] * light[:, :, 3:] / 255
    for data in (adobe, plain):
        assert np.abs(read(data) - expected).max() <= 3


def png(values: NDArray[np.integer], bits: int, colour: int, more: bytes = b"") -> bytes:
    """A PNG of values (h, w, channels), written by hand."""
    height, width, channels = values.shape
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        spread = np.unpackbits(values.astype(np.uint8)[:, :, :, None], axis=3)[:, :, :, 8 - bits :]
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in spread.reshape(height, width * channels * bits)]
    data = pngs.deflated(*((b"\0" + row, 1) for row in rows))
    return pngs.MAGIC + pngs.header(width, height, bits, colour) + more + pngs.chunk(b"IDAT", data) + pngs.END


def over_white(colour: NDArray[np.float64], alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    return colour * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("colour", [pngs.GREY, pngs.RGB, pngs.GREY_ALPHA, pngs.RGBA])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_of_8_and_16_bits_has_the_upper_eight_over_white(colour: int, bits: int) -> None:
    channels = pngs.CHANNELS[colour]
    values = np.random.default_rng(2).integers(0, 2**bits, (11, 9, channels))
    upper = (values >> (bits - 8)).astype(float)
    expected = upper[:, :, : channels - (channels % 2 == 0)]
    if channels % 2 == 0:
        expected = over_white(expected, upper[:, :, -1:] / 255)
    found = read(png(values, bits, colour))
    assert np.abs(found - np.broadcast_to(expected, found.shape)).max() <= (1 if channels % 2 == 0 else 0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_png_of_any_depth_with_a_transparent_level_has_that_white(bits: int) -> None:
    values = np.random.default_rng(3).integers(0, 2**bits - 1, (12, 10, 1), endpoint=True)
    clear = int(values[3, 3, 0])
    transparency = pngs.chunk(b"tRNS", struct.pack(">H", clear))
    levels = values >> 8 if bits == 16 else values * 255 // (2**bits - 1)
    for more, expected in ((b"", levels), (transparency, np.where(values == clear, 255, levels))):
        assert (read(png(values, bits, pngs.GREY, more)) == expected).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_colour_png_with_a_transparent_colour_has_that_white(bits: int) -> None:
    values = np.random.default_rng(4).integers(0, 2**bits, (12, 10, 3))
    values[2:5, 2:5] = values[2, 2]
    transparency = pngs.chunk(b"tRNS", struct.pack(">HHH", *values[2, 2].tolist()))
    clear = (values == values[2, 2]).all(axis=2, keepdims=True)
    assert clear.sum() == 9
    assert (read(png(values, bits, pngs.RGB, transparency)) == np.where(clear, 255, values >> (bits - 8))).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_of_any_depth_with_transparency_lies_over_white(bits: int) -> None:
    numbers = np.random.default_rng(6)
    values = numbers.integers(0, 2**bits, (12, 10, 1))
    colours = numbers.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    alphas = numbers.integers(0, 256, 2**bits, dtype=np.uint8)
    palette = pngs.chunk(b"PLTE", colours.tobytes())
    of_pixels = colours[values[:, :, 0]].astype(float)
    assert (read(png(values, bits, pngs.PALETTE, palette)) == of_pixels).all()
    found = read(png(values, bits, pngs.PALETTE, palette + pngs.chunk(b"tRNS", alphas.tobytes())))
    assert np.abs(found - over_white(of_pixels, alphas[values] / 255)).max() <= 1


@pytest.mark.parametrize("at", range(20, 700, 40))
def test_a_png_that_lacks_only_what_follows_its_pixels_is_whole_and_any_other_cut_is_refused(at: int) -> None:
    whole = picture_bytes(drawn("L", (20, 20)))
    assert (read(whole[:-12]) == read(whole)).all()
    assert refused(whole[: min(at, len(whole) - 30)]).code == ErrorCode.BAD_INPUT


# --- animations, WebP, orientation ---


def animated(kind: str, **options: object) -> bytes:
    frames = [drawn(size=(32, 24)), Image.new("RGB", (32, 24), "red"), Image.new("RGB", (32, 24), "blue")]
    return picture_bytes(frames[0], kind, save_all=True, append_images=frames[1:], duration=90, **options)


def test_of_an_animation_the_first_picture_counts() -> None:
    first = np.asarray(drawn(size=(32, 24)))
    assert (read(animated("PNG")) == first).all()
    assert (read(animated("WEBP", lossless=True)) == first).all()
    assert (read(animated("WEBP")) == decoded(animated("WEBP"))).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"quality": 30, "alpha_quality": 40}, {"exact": True}], ids=str
)
def test_a_webp_has_the_pixels_that_pillow_decodes(mode: str, options: dict[str, object]) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", 6
    data = picture_bytes(drawn(mode), "WEBP", **options)
    assert (read(data) == decoded(data)).all()
    turned = picture_bytes(drawn(mode), "WEBP", exif=exif, icc_profile=bytes(3000), xmp=b"<x/>", **options)
    assert (read(turned) == np.rot90(read(data), -1)).all()
    if options == {"lossless": True} and mode == "RGB":
        assert (read(data) == np.asarray(drawn())).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("around", ["nothing", "a rational of -1/0", "no end", "wrong offsets"])
def test_a_picture_is_turned_by_its_tag_whatever_stands_around_it(orientation: int, kind: str, around: str) -> None:
    """The expected pixels are moved by numpy; the tag is written by hand."""
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = picture_bytes(drawn(size=(24, 16)), kind, **options)
    entries = [jpegs.entry(0x112, 3, 1, orientation)]
    entries += {
        "nothing": [],
        "a rational of -1/0": [jpegs.entry(0x11A, 10, 1, 38)],
        "no end": [],
        "wrong offsets": [
            jpegs.entry(0x8769, 4, 1, 2**32 - 9),
            jpegs.entry(0x10F, 2, 2**31, 2**31),
            jpegs.entry(0, 77, 1, 1),
        ],
    }[around]
    exif = jpegs.exif(*entries, tail=struct.pack("<iI", -1, 0))
    exif = exif[:22] if around == "no end" else exif
    pixels = read(plain)
    moved = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels),
    }[orientation]
    data = {
        "JPEG": lambda: plain[:2] + jpegs.segment(0xE1, b"Exif\0\0" + exif) + plain[2:],
        "PNG": lambda: plain[:33] + pngs.chunk(b"eXIf", exif) + plain[33:],
        "WEBP": lambda: with_exif(plain, exif, (24, 16)),
    }[kind]()
    assert (read(data) == moved).all()


def riff(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xEE, b"Adobe"),
        (0xEE, b"Adobe\0\x64\0\0\0\0"),
        (0xEE, b""),
        (0xEE, b"another program's"),
        (0xE0, b"JFIF\0"),
        (0xE0, b"JFXX\0\x10 a thumbnail"),
        (0xE2, b"ICC_PROFILE\0\5\2" + bytes(90)),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
        (0xFE, b""),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_segments_that_say_nothing_of_the_pixels_change_none(mode: str, marker: int, content: bytes) -> None:
    plain = picture_bytes(drawn(mode), "JPEG")
    assert (read(plain[:2] + jpegs.segment(marker, content) + plain[2:]) == read(plain)).all()


def with_exif(webp: bytes, exif: bytes, size: tuple[int, int]) -> bytes:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
    return riff(b"RIFF", b"WEBP" + riff(b"VP8X", b"\x08\0\0\0" + sides) + webp[12:] + riff(b"EXIF", exif))


def test_metadata_cost_a_picture_nothing() -> None:
    plain = picture_bytes(drawn(), "PNG")
    texts = pngs.chunk(b"tEXt", b"Comment\0" + bytes(2 * 2**20)) + pngs.chunk(b"iCCP", b"no profile")
    assert (read(plain[:33] + texts + plain[33:]) == np.asarray(drawn())).all()


@given(
    st.integers(0, 3000), st.binary(min_size=1, max_size=6), st.sampled_from([{}, {"lossless": True}]), st.booleans()
)
def test_damage_anywhere_in_a_webp_ends_in_a_picture_or_a_refusal(
    at: int,
    damage: bytes,
    options: dict[str, bool],
    is_moving: bool,  # noqa: FBT001 - drawn
) -> None:

    whole = animated("WEBP", **options) if is_moving else picture_bytes(drawn("RGBA"), "WEBP", **options)
    at %= len(whole)
    for data in (whole[:at] + damage + whole[at + len(damage) :], whole[:at] + damage + whole[at:], whole[:at]):
        try:
            assert decoding.picture(RawInput(data)).mode == "RGB"
        except RequestFailed as failed:
            assert failed.code in {ErrorCode.BAD_INPUT, ErrorCode.TOO_LARGE}  # noqa: PT017 - nothing else is fine


def test_a_webp_that_is_cut_is_refused() -> None:
    whole = picture_bytes(drawn(), "WEBP")
    for at in range(len(whole) - 2, 12, -31):
        assert refused(whole[:at]).code == ErrorCode.BAD_INPUT


def test_a_webp_that_may_take_more_memory_than_is_allowed_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = (picture_bytes(Image.new("RGB", (side, side)), "WEBP", lossless=True) for side in (448, 480))
    assert read(small).shape == (448, 448, 3)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("it is decoded"))
    for data in (
        large,
        riff(b"RIFF", b"WEBP" + riff(b"VP8X", b"\2" + bytes(3) + b"\xff\x0f\0" * 2) + riff(b"ANMF", bytes(40))),
    ):
        failed = refused(data)
        assert failed.code == ErrorCode.TOO_LARGE
        assert f"at most {limits.MAX_PICTURE_BYTES // 2**20} MiB are allowed" in failed.message


def test_a_device_without_libwebp_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)
    assert (
        "a WebP picture, which the Pillow of this device doesn't decode"
        in refused(picture_bytes(drawn(), "WEBP")).message
    )


# --- what isn't taken ---


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"GIF89a", "a GIF picture"),
        (b"GIF87a", "a GIF picture"),
        (b"BM\x36\0\0\0\0\0\0\0", "a BMP picture"),
        (b"II*\0", "a TIFF picture"),
        (b"MM\0*", "a TIFF picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "an AVIF picture"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "an AVIF picture"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "an MP4 video"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "a QuickTime video"),
        (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
        (b"RIFF\0\0\1\0AVI LIST", "an AVI video"),
        (b"\0\0\0\1\x67\x42", "a raw H.264 or H.265 video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg xmlns="http://www.w3.org/2000/svg">', "an SVG picture"),
        (b"<!DOCTYPE html><html><body>404", "an HTML page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"RIFF\0\0\1\0WAVEfmt ", "a wav file"),
        (b"PK\3\4", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_what_is_not_taken_is_named(start: bytes, kind: str) -> None:
    failed = refused(start + bytes(100))
    assert failed.code == ErrorCode.BAD_INPUT
    assert failed.message == f"this is {kind}: send a JPEG, PNG or WebP"


@pytest.mark.parametrize(("kind", "name"), [("GIF", "a GIF"), ("BMP", "a BMP"), ("TIFF", "a TIFF"), ("ICO", "an icon")])
def test_a_file_that_pillow_writes_in_another_format_is_named(kind: str, name: str) -> None:
    assert refused(picture_bytes(drawn(), kind)).message.startswith(f"this is {name}")
