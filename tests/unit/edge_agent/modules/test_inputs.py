"""The inputs of modules: every bad input ends in one sentence with a remedy."""

from __future__ import annotations

import codecs
import encodings
import re
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from broker.protocol.codec import RawInput, decode_request
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.specs import InputSpec
from edge_agent.modules import Value
from edge_agent.modules.inputs import decoding
from tests.media import picture_bytes

LINES = ["a cat", "a d\xf6g \U0001f600"]


def refused(call: object, *arguments: object) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value


def outcome(data: bytes) -> str:
    try:
        return decoding.picture(RawInput(data)).mode
    except RequestFailed as failed:
        return failed.code


def bomb(side: int) -> bytes:
    """A small PNG of side x side white pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_text_in_place_of_a_picture_is_called_a_text() -> None:
    told = refused(decoding.picture, RawInput(b"hello")).message
    assert told == "this task takes a picture, not a text: send a JPEG, PNG or WebP"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unknown format"),
        (b"\0" * 9, "unknown format"),
        (picture_bytes(Image.effect_noise((64, 64), 50), "JPEG")[:700], "truncated"),
        (picture_bytes(Image.effect_noise((64, 64), 50), "PNG")[:-40], "truncated"),
        (picture_bytes(Image.effect_noise((64, 64), 50), "PNG")[:40], "unknown format"),
        (bomb(8000), "8000 x 8000 pixels, at most 50000000 are allowed"),
        (bomb(12000), "pixels"),  # beyond what Pillow warns of
        (bomb(60000), "pixels"),  # beyond what Pillow opens
        (picture_bytes(Image.new("1", (1, 17))), "1 x 17 pixels, one side may be at most 16 times the other"),
        (picture_bytes(Image.new("1", (50_000, 1))), "50000 x 1 pixels, one side"),  # 224 x 11,200,000 for a network
    ],
)
@pytest.mark.parametrize("strict", [True, False], ids=["warnings are errors", "warnings are ignored"])
def test_what_is_no_picture_is_refused_with_what_to_send(
    data: bytes,
    reason: str,
    strict: bool,  # noqa: FBT001
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        failed = refused(decoding.picture, RawInput(data, "image/jpeg"))
    assert failed.code == ErrorCode.BAD_INPUT
    assert failed.message.startswith("this is not a picture that can be read (")
    assert reason in failed.message
    assert failed.message.endswith("): send a JPEG, PNG or WebP")
    assert "\n" not in failed.message
    assert "object at" not in failed.message


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"]))
def test_whatever_the_bytes_are_the_outcome_is_a_picture_or_a_refusal(data: bytes, start: bytes) -> None:
    assert outcome(start + data) in {"RGB", ErrorCode.BAD_INPUT}


@given(st.integers(0, 600), st.integers(0, 255))
def test_a_damaged_byte_anywhere_never_escapes_as_another_error(place: int, byte: int) -> None:
    data = bytearray(picture_bytes(Image.radial_gradient("L").resize((16, 16)), "JPEG"))
    data[place % len(data)] = byte
    assert outcome(bytes(data)) in {"RGB", ErrorCode.BAD_INPUT}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_mode_of_picture_becomes_rgb_of_the_same_grey(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 0xFFFF, dtype=np.uint16))
    else:
        image = Image.new("RGB", (4, 4), "white").convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    read = decoding.picture(RawInput(picture_bytes(image, kind)))
    assert (read.mode, read.size) == ("RGB", (4, 4))
    assert np.asarray(read).min() >= 250


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decoding.picture(RawInput(picture_bytes(clear))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0])
    read = decoding.picture(RawInput(picture_bytes(palette, transparency=0)))
    assert read.getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_upright() -> None:
    wide = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decoding.picture(RawInput(picture_bytes(wide, "JPEG", exif=exif))).size == (2, 4)


def test_lines_are_stripped_and_empty_ones_left_out() -> None:
    assert decoding.lines(RawInput("\ufeffa cat\r\n\n  a dög \n\t\n".encode())) == ["a cat", "a dög"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no words: send one text a line"),
        (b" \n\t\n", "no words"),
        (b"\xff\xfe\x00", "it begins with the mark of UTF-16 and isn't that: byte 3 is wrong"),
        ("\ufeffone\0two".encode("utf-16-be"), "it begins with the mark of UTF-16 and has a NUL in it"),
        ("a cat\na dog".encode("utf-16-le"), "this is not UTF-8 text (it looks like UTF-16 without its mark): send"),
        ("a cat\na dog".encode("utf-16-be"), "it looks like UTF-16 without its mark"),
        ("a cat\na dog".encode("utf-32-le"), "it looks like UTF-32 without its mark"),
        (b"one\0two", "this is not UTF-8 text (byte 4 is a NUL): send text/plain in UTF-8"),
        (b"a cat\0\na dog\0", "byte 6 is a NUL"),
        ("ein m\xfcder Hund".encode("latin-1"), "byte 6 is 0xFC; it may be Latin-1 or Windows-1252"),
        (picture_bytes(Image.new("L", (8, 8)), "JPEG"), "not UTF-8 text (it is a JPEG picture)"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not UTF-8 text (it is a PDF document)"),
        (b"\0\0\0", "no words"),
        (b"a\n" * 65, "65 lines, at most 64 are allowed: send fewer"),
        (b"a" * 2001, "2001 characters, at most 2000 are allowed: shorten it"),
    ],
)
def test_what_is_no_text_is_told_what_to_send(data: bytes, sentence: str) -> None:
    failed = refused(decoding.lines, RawInput(data, "text/plain"))
    assert failed.code == ErrorCode.BAD_INPUT
    assert sentence in failed.message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be", "utf-16-le"])
def test_a_text_is_read_in_the_encoding_that_its_mark_tells(encoding: str) -> None:
    mark = "\ufeff" if encoding[-2:] in {"be", "le"} else ""
    assert decoding.lines(RawInput((mark + "a cat\r\na d\xf6g \U0001f600\0\0").encode(encoding))) == LINES


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_marked_text_is_the_text_of_a_request_without_a_content_type(encoding: str) -> None:
    text = "a cat\na d\xf6g \U0001f600".encode(encoding)
    mark = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    task = {"image": InputSpec(kind="image", bytes=1), "text": InputSpec(kind="text", bytes=1)}
    with pytest.raises(RequestFailed, match="the input image is missing"):
        decode_request(mark + text, "", task)
    only = decode_request(mark + text, "", {"text": task["text"]})
    assert decoding.lines(only["text"]) == LINES


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        ("iso-8859-15", "latin-1"),
        ("Windows-1252", "cp1252"),
        ("UTF-16LE", "utf-16-le"),
        ('"utf-8"', "utf-8"),
        ("us-ascii", "utf-8"),
        ("Shift_JIS", "shift_jis"),
        ("koi8-r", "koi8-r"),
    ],
)
def test_a_text_is_read_in_the_encoding_that_its_content_type_states(charset: str, encoding: str) -> None:
    text = {"shift_jis": "\u732b\n\u72ac", "koi8-r": "\u043a\u043e\u0442\n\u043f\u0451\u0441"}.get(
        encoding, "a c\xe4t\na dog"
    )
    sent = RawInput(text.encode(encoding), f"text/plain; format=flowed; Charset={charset}")
    assert decoding.lines(sent) == text.split("\n")


def test_names_of_encodings_that_nobody_knows_are_not_remembered() -> None:
    remembered = set(encodings._cache)
    for number in range(9):
        refused(decoding.lines, RawInput(b"a cat", f"text/plain; charset=klingon-{number}"))
    assert set(encodings._cache) == remembered


@pytest.mark.parametrize("charset", ["klingon", "idna", "unicode_escape", "base64", "utf-7", "undefined"])
def test_an_encoding_that_is_not_taken_is_named(charset: str) -> None:
    failed = refused(decoding.lines, RawInput(b"a cat", f"text/plain; charset={charset}"))
    assert failed.code == ErrorCode.BAD_INPUT
    assert re.search(
        r"not UTF-8 text \(its content type says charset=\S+, which isn't taken\): send text/plain", failed.message
    )


def test_a_text_that_is_not_in_the_stated_encoding_is_refused() -> None:
    failed = refused(decoding.lines, RawInput(b"a \x81 cat", "text/plain; charset=cp1252"))
    assert "says charset=cp1252, and byte 3 isn't that" in failed.message


@pytest.mark.parametrize("ends", ["\0", "\0" * 4096, "\n\0", "\r\0\0"])
def test_nuls_at_the_end_of_a_text_are_dropped(ends: str) -> None:
    assert decoding.lines(RawInput(f"a cat\na d\xf6g \U0001f600{ends}".encode())) == LINES


@pytest.mark.parametrize("other", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e")
def test_a_line_ends_at_line_feeds_and_carriage_returns_only(other: str) -> None:
    assert decoding.lines(RawInput(f"a house{other}by the sea\na cat\r\na dog\ra cow".encode())) == [
        f"a house{other}by the sea",
        "a cat",
        "a dog",
        "a cow",
    ]


@given(st.binary(max_size=60), st.sampled_from(["", "text/plain; charset=utf-16", "text/plain; charset=gb18030"]))
def test_whatever_the_bytes_of_a_text_are_no_line_has_a_nul(data: bytes, content_type: str) -> None:
    try:
        found = decoding.lines(RawInput(data, content_type))
    except RequestFailed as failed:
        assert failed.code == ErrorCode.BAD_INPUT  # noqa: PT017 - both outcomes are fine, nothing else is
    else:
        assert not any("\0" in line or "\n" in line or "\r" in line for line in found)


def test_the_limits_of_texts_can_be_reached() -> None:
    assert len(decoding.lines(RawInput(b"a\n" * 64))) == 64
    assert len(decoding.lines(RawInput(("ä" * 2000).encode()))[0]) == 2000


@pytest.mark.parametrize(
    "value",
    [
        RawInput(b"x"),
        {},
        {"other": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((3,), np.float32)},
        {"x": np.zeros((1, 3), np.float64)},
        {"x": np.array([[0, np.nan, 0]], np.float32)},
        {"x": np.array([[0, np.inf, 0]], np.float32)},
    ],
)
def test_arrays_that_do_not_fit_are_a_failure_of_the_wiring(value: Value) -> None:
    failed = refused(decoding.array, value, "x", (1, 3))
    assert failed.code == ErrorCode.MODULE_FAILED
    assert failed.message.startswith("this module needs x (float32 1 x 3, finite) and was given ")
    assert failed.message.endswith(": correct the task's needs")


def test_arrays_where_a_sensor_should_speak_and_a_wrong_count_are_failures_of_the_wiring() -> None:
    for read in (decoding.picture, decoding.lines):
        assert "was given x (float32 1)" in refused(read, {"x": np.zeros(1, np.float32)}).message
    assert "takes 3 or 4 values, not 2" in refused(decoding.count, [{}, {}], 3, 4).message


def test_a_text_of_another_node_is_read_as_the_same_text_of_a_sensor() -> None:
    text = "näive question?\n\n  a second line "
    given = {decoding.TEXT: decoding.text_array(text)}
    assert given["text"].dtype == np.uint8
    assert decoding.lines(given) == decoding.lines(RawInput(text.encode())) == ["näive question?", "a second line"]


def test_a_node_that_found_no_words_is_told_to_the_sensor() -> None:
    failed = refused(decoding.lines, {"text": decoding.text_array("")})
    assert failed.code == ErrorCode.BAD_INPUT
    assert "another node found no words in what was sent" in str(failed)


@pytest.mark.parametrize(
    "given_", [{}, {"words": np.zeros(3, np.uint8)}, {"text": np.zeros(3)}, {"text": np.zeros((1, 3), np.uint8)}]
)
def test_a_node_that_gives_no_text_is_the_tasks_mistake(given_: Value) -> None:
    failed = refused(decoding.lines, given_)
    assert failed.code == ErrorCode.MODULE_FAILED
    assert "needs a text" in str(failed)


def test_a_picture_for_which_the_machine_has_too_little_free_memory_isnt_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device may be right about its own memory, and other programs need theirs: another device may do it."""
    large, small = (picture_bytes(Image.new("RGB", size)) for size in ((4000, 3000), (200, 100)))
    monkeypatch.setattr(decoding, "free_bytes", lambda: 100 * 2**20)
    with pytest.raises(MemoryError, match=r"this picture takes 45\.8 MiB, and 100 MiB are free"):
        decoding.picture(RawInput(large, "image/png"))
    assert decoding.picture(RawInput(small, "image/png")).size == (200, 100)
    for free in (500 * 2**20, None):
        monkeypatch.setattr(decoding, "free_bytes", lambda free=free: free)
        assert decoding.picture(RawInput(large, "image/png")).size == (4000, 3000)


def test_a_lack_of_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        decoding.picture(RawInput(picture_bytes(Image.new("RGB", (8, 8)))))
