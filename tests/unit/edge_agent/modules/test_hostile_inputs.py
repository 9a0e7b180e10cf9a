"""Inputs that would cost their reader much are refused before that, and what is taken stays within its budget."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    EfficientNetImageProcessorPil,
    Idefics3ImageProcessorPil,
    SiglipImageProcessorPil,
    ViltImageProcessorPil,
    ViTImageProcessorPil,
)

from broker.protocol.codec import MAX_CONTENT_TYPE, RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from edge_agent.modules.inputs import audio, decoding, limits, prepare
from tests.hostile import jpegs, pngs
from tests.hostile.cases import CASES
from tests.media import picture_bytes

TOO_LARGE, BAD_INPUT = ErrorCode.TOO_LARGE, ErrorCode.BAD_INPUT
BESIDES_BYTES = 48 * 2**20  # the file, a few times, and what any picture takes
REFUSED = {
    "JPEG: the most pixels, colour, turned": (
        TOO_LARGE,
        "MiB of memory to read (7064 x 7064 pixels, colo",
    ),
    "JPEG: the most pixels, inks": (
        TOO_LARGE,
        "(7064 x 7064 pixels, four inks), at most 256 MiB are allowed: send",
    ),
    "JPEG: the most pixels, progressive": (TOO_LARGE, "10 scans, at most 6 are allowed for 7064 x 7064 pixels: save"),
    "JPEG: the most pixels, progressive inks": (TOO_LARGE, "10 scans"),
    "JPEG: 4,000 scans": (
        TOO_LARGE,
        "this JPEG has 4001 scans, at most 20 are allowed for 7000 x 7000 pixels: save it",
    ),
    "JPEG: 60 scans": (TOO_LARGE, "61 scans, at most 20"),
    "JPEG: 100 scans of colour": (TOO_LARGE, "101 scans, at most 13"),
    "JPEG: 400,000 scans of few pixels": (TOO_LARGE, "more than 4096 markers: save it again without its metadata"),
    "JPEG: a component 200 times": (TOO_LARGE, "200 scans, at most 177"),
    "JPEG: arithmetic": (BAD_INPUT, "(a JPEG with arithmetic codes, a lossless or a hierarchical one): send a JPEG"),
    "JPEG: arithmetic, progressive": (BAD_INPUT, "arithmetic"),
    "JPEG: lossless": (BAD_INPUT, "lossless"),
    "JPEG: 12 bits": (BAD_INPUT, "a JPEG of 12 bits a sample"),
    "JPEG: 65,500 x 65,500": (BAD_INPUT, "truncated"),
    "JPEG: two frames": (BAD_INPUT, "damaged"),
    "JPEG: a frame behind the scans": (BAD_INPUT, "damaged"),
    "JPEG: a Huffman table 80,000 times": (TOO_LARGE, "more than 4096 markers"),
    "JPEG: a quantisation 120,000 times": (TOO_LARGE, "more than 4096 markers"),
    "JPEG: 2,000,000 empty comments": (TOO_LARGE, "more than 4096 markers"),
    "JPEG: 2,000,000 comments between scans": (TOO_LARGE, "more than 4096 markers"),
    "JPEG: EXIF in 400,000 pieces": (TOO_LARGE, "more than 4096 markers"),
    "JPEG: 8 MB of other bytes between markers": (BAD_INPUT, "unknown format"),
    "JPEG: one row of 65,500": (BAD_INPUT, "65500 x 1 pixels, one side may be at most 16 times the other"),
    "PNG: the most pixels, 16-bit grey": (
        TOO_LARGE,
        "takes 286.1 MiB of memory to read (7071 x 7071 pixels, 16-bit grey)",
    ),
    "PNG: the most pixels, 16-bit colour with alpha": (
        TOO_LARGE,
        "the rows of this PNG have 381.5 MiB (7071 x 7071 pixels",
    ),
    "PNG: the most pixels, 16-bit colour": (
        TOO_LARGE,
        "286.1 MiB (7071 x 7071 pixels of 48 bits), at most 190.7 MiB",
    ),
    "PNG: the most pixels, 16-bit grey with alpha": (TOO_LARGE, "190.74 MiB"),
    "PNG: the most pixels, colour with alpha": (TOO_LARGE, "with 8 bits a channel"),
    "PNG: the most pixels, grey with alpha": (TOO_LARGE, "takes 381.5 MiB of memory"),
    "PNG: the most pixels, a transparent colour": (TOO_LARGE, "takes 381.5 MiB of memory"),
    "PNG: the most pixels, turned": (TOO_LARGE, "takes 381.5 MiB of memory"),
    "PNG: interlaced, colour with alpha": (TOO_LARGE, "190.74 MiB"),
    "PNG: interlaced, 16-bit": (TOO_LARGE, "381.5 MiB"),
    "PNG: 50,000 x 50,000": (BAD_INPUT, "50000 x 50000 pixels, at most 50000000 are allowed"),
    "PNG: 2^31 - 1 wide": (BAD_INPUT, "2147483647 x 1 pixels"),
    "PNG: 700,000 empty data chunks": (TOO_LARGE, "this PNG has more than 65536 chunks: save it again without its"),
    "PNG: a data chunk for each byte": (TOO_LARGE, "more than 65536 chunks"),
    "PNG: 600,000 empty texts": (TOO_LARGE, "more than 65536 chunks"),
    "PNG: 700,000 unknown chunks": (TOO_LARGE, "more than 65536 chunks"),
    "PNG: 700,000 unknown chunks behind the data": (TOO_LARGE, "more than 65536 chunks"),
    "PNG: two headers": (BAD_INPUT, "damaged"),
    "PNG: a header behind the data": (BAD_INPUT, "damaged"),
    "PNG: chunks of 2^31 bytes": (BAD_INPUT, "unknown format"),
    "other: WebP of the largest size": (BAD_INPUT, "16777216 x 16777216 pixels, at most 50000000 are allowed"),
    "other: WebP, the most pixels": (TOO_LARGE, "takes 953.7 MiB of memory to read (7071 x 7071 pixels, WebP)"),
    "other: WebP, 65,536 codes": (TOO_LARGE, "(1024 x 1024 pixels, WebP with lossless parts), at most 256 MiB"),
    "other: WebP, 1,000,000 empty chunks": (TOO_LARGE, "this WebP has more than 65536 chunks: save it again without"),
    "other: WebP, 400 pictures of 2^24 pixels": (TOO_LARGE, "takes 320 MiB of memory to read"),
    "other: TIFF": (BAD_INPUT, "this is a TIFF picture: send a JPEG, PNG or WebP"),
    "other: GIF": (BAD_INPUT, "this is a GIF picture: send a JPEG, PNG or WebP"),
    "other: 8 MB of zeros": (BAD_INPUT, "unknown format"),
    "sound: 500 s at 8 kHz": (BAD_INPUT, "lasts 500.0 s, at most 60 s"),
    "sound: 1,000,000 empty chunks": (
        BAD_INPUT,
        "more than 256 chunks before its samples): send a wav file of PCM or float samples",
    ),
    "sound: 300,000 formats": (BAD_INPUT, "more than 256 chunks"),
    "sound: 1 Hz": (BAD_INPUT, "has 1 samples a second: send 8000 to 96000"),
    "sound: 2^31 Hz": (BAD_INPUT, "samples a second"),
    "sound: 2^32 - 1 Hz": (BAD_INPUT, "samples a second"),
    "sound: 65,535 channels": (BAD_INPUT, "65535 channels"),
    "sound: no channel": (BAD_INPUT, "channels"),
    "sound: 65,535 bits": (BAD_INPUT, "bits a sample"),
    "text: 8 MB of line ends": (TOO_LARGE, "has 8.0 MiB, at most 1 MiB are allowed: send a shorter one"),
    "text: 8 MB of one line": (TOO_LARGE, "8.0 MiB"),
    "text: 8 MB of blanks": (TOO_LARGE, "8.0 MiB"),
    "text: no text": (BAD_INPUT, "not UTF-8"),
}
LARGE = [name for name in CASES if "largest" in name or "the most pixels" in name]
SLOW = {*LARGE, *(name for name in CASES if name.startswith(("JPEG: samplings", "JPEG: a restart", "JPEG: restarts")))}
OTHERWISE = {"PNG: 600,000 empty deflate blocks": "truncated"}  # taken for a picture until its data end


def read(kind: str, data: bytes) -> object:
    if kind == "sound":
        return audio.samples(RawInput(data), 16_000, 60.0)
    return decoding.lines(RawInput(data)) if kind == "text" else decoding.picture(RawInput(data))


@pytest.mark.parametrize("name", REFUSED)
def test_what_costs_too_much_is_refused_before_it_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, sentence = REFUSED[name]
    data = CASES[name].make()
    assert len(data) <= 8 * 2**20, "a sensor may send it"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it is decoded")

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(RequestFailed) as caught:
        read(CASES[name].kind, data)
    assert caught.value.code == code
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", [name for name in CASES if name not in {*REFUSED, *SLOW, *OTHERWISE}])
def test_whatever_costs_little_is_read(name: str) -> None:
    data = CASES[name].make()
    assert len(data) <= 8 * 2**20, "a sensor may send it"
    assert read(CASES[name].kind, data) is not None


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) for n in sorted(SLOW - REFUSED.keys())])
def test_the_largest_pictures_are_read_within_their_memory(name: str, tmp_path: Path) -> None:
    data = CASES[name].make()
    assert peak_bytes(data, tmp_path / "told") < limits.MAX_PICTURE_BYTES + BESIDES_BYTES


@pytest.mark.parametrize("side", [600, 2400])
def test_the_memory_of_a_picture_is_known_before_it_is_decoded(side: int, tmp_path: Path) -> None:
    kinds = [
        jpegs.flat(side),
        jpegs.flat(side, jpegs.COLOUR, head=jpegs.turned()),
        jpegs.flat(side, jpegs.INKS),
        jpegs.progressive(side, 3, jpegs.COLOUR),
        jpegs.progressive(side, 3, jpegs.COLOUR)[:-2],
        picture_bytes(Image.new("RGB", (side, side)), "WEBP"),
        pngs.flat(side, 16, pngs.GREY),
        pngs.flat(side, 8, pngs.RGBA),
        pngs.flat(side, 8, pngs.PALETTE),
    ]
    for data in kinds:
        told = decoding.file_of(data).memory_bytes
        assert told >= 4 * side * side
        assert peak_bytes(data, tmp_path / "told") < told + BESIDES_BYTES


def peak_bytes(data: bytes, told: Path) -> int:
    """The memory that a process takes at most while it prepares a picture, more than before."""
    child = os.fork()
    if not child:
        before = _status("VmRSS")
        prepare.picture(CLIPImageProcessorPil()).read(RawInput(data))
        told.write_text(str(_status("VmHWM") - before), encoding="ascii")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return int(told.read_text(encoding="ascii"))


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


def test_the_page_for_sensors_states_the_limits() -> None:
    page = (Path(__file__).parents[4] / "topics.md").read_text(encoding="utf-8")
    section = page.split("### What one input may cost\n")[1].split("\n## ")[0]
    for stated in (
        f"| pixels of a picture | {limits.MAX_PIXELS:,}, one side at most {limits.MAX_SIDES} times the other |",
        f"| memory to read a picture | {limits.MAX_PICTURE_BYTES // 2**20} MiB",
        f"| scans of a JPEG | {limits.MAX_SCANS}, and {limits.MAX_BLOCK_VISITS:,} visits",
        f"| markers of a JPEG | {limits.MAX_MARKERS:,} |",
        f"| chunks of a PNG or a WebP | {limits.MAX_CHUNKS:,} |",
        f"| rows of a PNG | {limits.MAX_ROW_BYTES / 2**20:.1f} MiB",
        f"| a text | {limits.MAX_TEXT_BYTES // 2**20} MiB |",
        f"| lines of a text | {limits.MAX_LINES}, each of {limits.MAX_LINE_CHARACTERS:,} characters |",
        f"| tokens of a question for a language model | {limits.MAX_QUESTION_TOKENS:,} |",
        f"{limits.SLOWEST_HZ:,} to {limits.FASTEST_HZ:,} samples a second, {limits.MAX_SOUND_CHUNKS} chunks before",
        f"chunks before the samples, {limits.MAX_SOUND_CHANNELS} channels;",
        f"| a content type | {MAX_CONTENT_TYPE} characters |",
    ):
        assert stated in section


# --- what is read is what Pillow and transformers read ---


def as_pillow(data: bytes) -> Image.Image:
    """The picture as it was decoded before its file was read: whole, with all metadata, in one piece."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return upright.convert("RGB")


def noisy(mode: str, size: tuple[int, int] = (37, 23)) -> Image.Image:
    drawn = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(drawn.integers(0, 2**16, size[::-1], dtype=np.uint16))
    image = Image.fromarray(drawn.integers(0, 256, (*size[::-1], 4), dtype=np.uint8))
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(37, 23), (3, 40), (1000, 700)])
def test_a_png_of_any_mode_has_the_pixels_that_pillow_decodes(mode: str, size: tuple[int, int]) -> None:
    plain = picture_bytes(noisy(mode, size))
    for data in (plain, picture_bytes(noisy(mode, size), transparency=3) if mode in {"P", "L"} else plain):
        assert decoding.picture(RawInput(data)).tobytes() == as_pillow(data).tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_blocks": 2}])
def test_a_jpeg_of_any_kind_has_the_pixels_that_pillow_decodes(mode: str, options: dict[str, object]) -> None:
    data = picture_bytes(noisy(mode, (301, 203)), "JPEG", icc_profile=bytes(200_000), comment=b"c", **options)
    assert decoding.picture(RawInput(data)).tobytes() == as_pillow(data).tobytes()
    assert decoding.picture(RawInput(data + b"\0" * 99 + data)).tobytes() == as_pillow(data).tobytes()


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("place", ["JPEG", "PNG", "JPEG, XMP", "PNG, XMP", "PNG, text", "JPEG, big-endian"])
def test_a_picture_is_turned_as_pillow_turns_it(orientation: int, place: str) -> None:
    kind = place.partition(",")[0]
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", orientation
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    if "XMP" in place:
        data = picture_bytes(noisy("RGB"), kind, **({"xmp": xmp} if kind == "JPEG" else {}))
        if kind == "PNG":
            text = pngs.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp))
            data = data[:33] + text + data[33:]
    elif "text" in place:
        block = exif.tobytes()
        text = pngs.chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(block):8}\n{block.hex()}\n".encode())
        )
        data = picture_bytes(noisy("RGB"))
        data = data[:33] + text + data[33:]
    else:
        exif.endian = ">" if "big" in place else "<"
        data = picture_bytes(noisy("RGB"), kind, exif=exif)
    assert decoding.picture(RawInput(data)).tobytes() == as_pillow(data).tobytes()
    assert decoding.picture(RawInput(data)).size == as_pillow(data).size


@given(st.binary(max_size=300), st.sampled_from([b"", b"Exif\0\0II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_whatever_stands_in_exif_the_picture_is_read(block: bytes, start: bytes) -> None:
    for data in (
        jpegs.with_head(jpegs.segment(0xE1, b"Exif\0\0" + start + block), side=16),
        pngs.flat(16, before=pngs.chunk(b"eXIf", start + block)),
        pngs.flat(16, before=pngs.chunk(b"zTXt", b"Raw profile type exif\0\0" + block)),
        pngs.flat(16, before=pngs.chunk(b"iTXt", b"XML:com.adobe.xmp\0" + block)),
    ):
        assert decoding.picture(RawInput(data)).size == (16, 16)


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=6), st.sampled_from(["JPEG", "PNG"]), st.booleans())
def test_damage_anywhere_ends_in_a_picture_or_a_refusal(at: int, damage: bytes, kind: str, progressive: bool) -> None:  # noqa: FBT001
    whole = picture_bytes(noisy("RGB"), kind, progressive=progressive)
    at %= len(whole)
    for data in (whole[:at] + damage + whole[at + len(damage) :], whole[:at] + damage + whole[at:], whole[:at]):
        try:
            assert decoding.picture(RawInput(data)).mode == "RGB"
        except RequestFailed as failed:
            assert failed.code in {BAD_INPUT, TOO_LARGE}  # noqa: PT017 - both outcomes are fine, nothing else is


PROCESSORS = (
    BlipImageProcessorPil(),
    CLIPImageProcessorPil(),
    EfficientNetImageProcessorPil(),
    EfficientNetImageProcessorPil(size={"height": 289, "width": 289}, rescale_offset=True, include_top=False),
    Idefics3ImageProcessorPil(size={"longest_edge": 512}, max_image_size={"longest_edge": 128}),
    SiglipImageProcessorPil(),
    ViltImageProcessorPil(),
    ViTImageProcessorPil(),
    ViTImageProcessorPil(do_resize=False),
)


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_a_processor_that_resizes_first_gives_the_same_bits(processor: object) -> None:
    assert prepare.resizing_first(processor).to_dict() == processor.to_dict()  # type: ignore[attr-defined]
    for size in ((640, 480), (37, 23), (100, 1600), (224, 224)):
        picture = noisy("RGB", size)
        own, ours = processor(images=picture), prepare.resizing_first(processor)(images=picture)  # type: ignore[operator]
        assert own.keys() == ours.keys()
        for name in own:
            assert np.array_equal(np.asarray(own[name]), np.asarray(ours[name]))


@pytest.mark.parametrize("size", [(1, 1), (37, 23), (1000, 300), (900, 2000)])
def test_a_part_of_a_picture_is_resized_without_its_copy_to_the_same_bits(size: tuple[int, int]) -> None:
    picture = noisy("RGB", size)
    side = max(1, min(size) * 7 // 8)
    box = ((size[0] - side) // 2, (size[1] - side) // 2, (size[0] + side) // 2, (size[1] - side) // 2 + side)
    expected = picture.crop(box).resize((224, 224))
    assert decoding.resized_part(picture, box, (224, 224)).tobytes() == expected.tobytes()
