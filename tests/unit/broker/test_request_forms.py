"""The forms of a request: one raw input by its type or its first bytes, JSON, and defaults of the task."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.given_inputs import read_given
from broker.protocol.codec import JSON, MAX_INPUT_BYTES, SAFETENSORS, RawInput, decode_request, encode_request
from broker.protocol.errors import ErrorCode, LocalProtocolError, RequestFailed
from broker.protocol.json_inputs import MAX_JSON_VALUES
from broker.protocol.media import format_of
from broker.protocol.specs import InputSpec

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(60))
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(60)
BASE64 = base64.b64encode(JPEG).decode()
PICTURE = {"image": InputSpec(kind="image", bytes=1000)}
BOTH = PICTURE | {"text": InputSpec(kind="text", bytes=10)}
WORDS = {"text": InputSpec(kind="text", bytes=10)}
CAPTIONED = PICTURE | {"text": InputSpec(kind="text", bytes=10, default=("a cat", "a dog"))}
ALL = BOTH | {"sound": InputSpec(kind="audio", bytes=10, default=None)}


def read(payload: bytes | dict[str, Any], content_type: str = "", expected: Any = BOTH) -> dict[str, bytes]:
    """The bytes of each input."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return {name: raw.data for name, raw in decode_request(data, content_type, expected).items()}


def refusal(payload: bytes | dict[str, Any], content_type: str = "", expected: Any = BOTH) -> str:
    """The code and the sentence of a refused request."""
    with pytest.raises(RequestFailed) as caught:
        read(payload, content_type, expected)
    return str(caught.value)


# --- one raw input ---


@pytest.mark.parametrize("content_type", ["", "image/jpeg", "IMAGE/JPEG; q=1", "application/octet-stream", "jpg"])
def test_a_jpeg_alone_is_a_whole_request_of_a_task_with_default_captions(content_type: str) -> None:
    read_ = decode_request(JPEG, content_type, CAPTIONED)
    assert read_["image"] == RawInput(JPEG, content_type)
    assert read_["text"] == RawInput(b"a cat\na dog", "text/plain")
    assert list(read_) == ["image", "text"]


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (JPEG, "JPEG", "image"),
        (b"\x89PNG\r\n\x1a\n....", "PNG", "image"),
        (b"RIFF\x01\x02\x03\x04WEBPVP8 ", "WebP", "image"),
        (b"GIF89a..", "GIF", "image"),
        (b"BM\x01\x02\x03\x04\x00\x00\x00\x00", "BMP", "image"),
        (b"II*\x00....", "TIFF", "image"),
        (b"\x00\x00\x00\x18ftypheic", "HEIC", "image"),
        (b"\x00\x00\x00\x18ftypavif", "AVIF", "image"),
        (WAV, "WAV", "audio"),
        (b"fLaC\x00\x00", "FLAC", "audio"),
        (b"ID3\x04...", "MP3", "audio"),
        (b"\x00\x00\x00\x18ftypisom", "MP4", None),
        (b"\x1f\x8b\x08", "gzip", None),
    ],
)
def test_formats_are_known_by_their_first_bytes(data: bytes, name: str, kind: str | None) -> None:
    found = format_of(data)
    assert found is not None
    assert (found.name, found.kind) == (name, kind)


@pytest.mark.parametrize("text", [b"a cat", b"RIFF and more of it", b"BMW", b"ID3 tags", b"GIF", b"\xc3\xa4h", b""])
def test_a_text_is_no_file_format(text: bytes) -> None:
    assert format_of(text) is None


def test_a_raw_input_goes_to_the_input_of_its_kind() -> None:
    three = CAPTIONED | {"sound": InputSpec(kind="audio", bytes=10)}
    assert "the input image is missing" in refusal(WAV, "", three)
    assert "the input sound is missing" in refusal(JPEG, "", three)
    assert "the input image is missing" in refusal("größer".encode(), "", BOTH)
    assert "not a sound (FLAC)" in refusal(b"fLaC\x00", "", BOTH)


def test_of_two_texts_the_one_without_a_default_is_sent() -> None:
    asked = {
        "labels": InputSpec(kind="text", bytes=10, default="yes\nno"),
        "question": InputSpec(kind="text", bytes=10),
    }
    assert read(b"is it raining?", "", asked) == {"labels": b"yes\nno", "question": b"is it raining?"}
    assert read({"labels": "a", "question": "b"}, "", asked) == {"labels": b"a", "question": b"b"}


@pytest.mark.parametrize(
    "payload",
    [
        base64.b64encode(JPEG),
        base64.encodebytes(JPEG * 3),
        base64.urlsafe_b64encode(JPEG),
        b'"' + base64.b64encode(JPEG) + b'"',
        b"\r\n" + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(9)),
        b"data:image/png;base64,iVBORw0KGgo=",
        b"data:;base64," + base64.b64encode(JPEG),
        b"data:application/octet-stream;base64," + base64.b64encode(JPEG),
        repr(base64.b64encode(JPEG)).encode(),
        b"0x" + JPEG.hex().encode(),
        b"DATA:image/png,xx",
        JPEG.hex().encode(),
    ],
)
@pytest.mark.parametrize("content_type", ["", "image/jpeg", "text/plain"])
@pytest.mark.parametrize("expected", [PICTURE, BOTH, CAPTIONED])
def test_a_picture_written_as_text_is_called_that(payload: bytes, content_type: str, expected: Any) -> None:
    told = refusal(payload, content_type, expected)
    assert told.startswith("bad_input: this is a picture written as ")
    assert "send the file's own bytes" in told


def test_each_text_in_json_may_be_a_string_of_c() -> None:
    asked = {"image": BASE64, "text": ["a cat\0", "a dog\0\0"]}
    assert read(asked)["text"] == b"a cat\na dog"
    assert read(asked | {"text": "a cat\0"})["text"] == b"a cat"


def test_a_request_in_json_may_be_a_string_of_c() -> None:
    asked = {"image": BASE64, "text": "a cat"}
    assert read(json.dumps(asked).encode() + b"\n" + bytes(100)) == read(asked)


def test_a_text_that_is_base64_stays_a_text_where_only_text_is_taken() -> None:
    assert read(BASE64.encode(), "", {"text": BOTH["text"]}) == {"text": BASE64.encode()}


# --- JSON ---


@pytest.mark.parametrize(
    "picture",
    [
        BASE64,
        BASE64.rstrip("="),
        base64.urlsafe_b64encode(JPEG).decode(),
        base64.encodebytes(JPEG).decode(),
        f"data:image/jpeg;base64,{BASE64}",
        f"DATA:;BASE64,{BASE64}",
        "data:image/jpeg," + "".join(f"%{byte:02x}" for byte in JPEG),
    ],
)
def test_a_json_object_has_pictures_as_base64_or_data_urls(picture: str) -> None:
    assert read({"image": picture, "text": ["a cat", "größer"]}) == {"image": JPEG, "text": "a cat\ngrößer".encode()}


@pytest.mark.parametrize("content_type", ["", JSON, "Application/JSON; charset=utf-8"])
@pytest.mark.parametrize("before", [b"", b" \r\n\t", b"\xef\xbb\xbf"])
def test_json_is_known_by_its_type_or_its_first_brace(content_type: str, before: bytes) -> None:
    payload = before + json.dumps({"image": BASE64, "text": "a cat"}).encode()
    assert read(payload, content_type) == {"image": JPEG, "text": b"a cat"}


def test_json_may_leave_out_what_has_a_default() -> None:
    assert read({"image": BASE64}, "", CAPTIONED)["text"] == b"a cat\na dog"
    assert read({"image": BASE64, "text": "a horse"}, "", CAPTIONED)["text"] == b"a horse"
    assert "the input image is missing" in refusal({"text": "a horse"}, "", CAPTIONED)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b'{"image": ', "isn't one (Expecting value"),
        (b'{"image": "\xff"}', "isn't one ("),
        (b'{"image": "a", "image": "b"}', "has 'image' twice"),
        (b'{"image": 1e999999, "text": "x"}', "not a number"),
        (b'{"image": NaN, "text": "x"}', "not a number"),
        (b'{"image": null, "text": "x"}', "not null"),
        (b'{"image": true, "text": "x"}', "not true or false"),
        (b'{"image": {"type": "Buffer", "data": []}, "text": "x"}', "not an object"),
        (b'{"image": ["x"], "text": "x"}', "not a list"),
        (b'{"image": "/mnt/cat.jpg", "text": "x"}', "is not base64 (it begins with '/mnt/cat.jpg')"),
        (b'{"image": "https://cam/cat.jpg", "text": "x"}', "no path or address"),
        (b'{"image": "/9j/4AAQ=x", "text": "x"}', "is not base64"),
        (b'{"image": "/9j/4", "text": "x"}', "is not base64"),
        (b'{"image": "", "text": "x"}', "the input image is empty"),
        (b'{"image": "data:image/jpeg;base64", "text": "x"}', "has no comma"),
        (b'{"image": "data:text/plain,hello", "text": "x"}', "must be a picture, not a text (text/plain)"),
        (b'{"image": "/9j/", "text": ["a", 2]}', "a list with other values"),
        (b'{"image": "/9j/", "text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"image": "\\ud800", "text": "x"}', "half of a surrogate pair"),
        (b'{"image": "/9j/", "text": ["a\\nb"]}', "a line break in it"),
        (b'{"image": "/9j/", "text": "x", "%s": 1}' % (b"y" * 100), f"unknown input {'y' * 64!r}"),
    ],
)
def test_wrong_json_ends_in_a_sentence_that_says_what_to_send(payload: bytes, says: str) -> None:
    told = refusal(payload)
    assert told.startswith("bad_input: ")
    assert says in told
    assert len(told) < 400


def test_json_of_another_kind_is_refused_when_its_type_says_json() -> None:
    assert "not a list" in refusal(b'["a", "b"]', JSON)
    assert "not a number" in refusal(b"5", JSON)
    assert "not a string" in refusal(b'"x"', JSON)


def test_a_list_is_no_request_whether_its_type_says_json_or_nothing_does() -> None:
    for payload in (b'["a", "b"]', b' \n[{"image": 1}]', b"[]"):
        assert "a request in JSON is an object of named inputs, not a list" in refusal(payload)
        assert "not a list" in refusal(payload, "", WORDS)
    for text in (b"[a cat]", b"[1, 2] are numbers", b"a [list]"):
        assert read(text, "", WORDS)["text"] == text
    assert read(b'["a"]', "text/plain", WORDS)["text"] == b'["a"]', "who says so means it"


@pytest.mark.parametrize(("payload", "name"), [(b"\xff\xd8\xff\xe0", "JPEG"), (b"RIFF0000WAVEfmt ", "WAV")])
def test_a_file_that_is_called_json_is_told_its_own_type(payload: bytes, name: str) -> None:
    known = format_of(payload)
    assert known is not None
    told = refusal(payload, "application/json")
    assert f"the content type says JSON, and this is {name}: send it as {known.media_type}" in told


def test_a_text_for_a_task_of_pictures_has_one_sentence_however_it_comes() -> None:
    task = PICTURE
    told = {refusal(b"a cat", content_type, task) for content_type in ("text/plain", "Text/Plain; charset=utf-8")}
    assert told == {"bad_input: this task takes image (image), not a text: send that"}
    with pytest.raises(LocalProtocolError, match=r"^classify takes image \(image\), not a text$"):
        read_given(text="a cat").place("classify", task)
    assert "not a picture (image/jpeg)" in refusal(b"\xff\xd8\xff\xe0", "image/jpeg", WORDS)
    assert read(b"a cat", "", task)["image"] == b"a cat", "who reads a picture says the same of it"
    assert read(bytes(100), "", {"audio": InputSpec(kind="audio", bytes=1)})["audio"] == bytes(100)


def test_the_work_for_json_is_bounded_before_it_is_done() -> None:
    assert "nested too deeply" in refusal(b'{"image":' + b"[" * (MAX_JSON_VALUES - 1))
    assert refusal(b'{"image":' + b"[]," * MAX_JSON_VALUES).startswith("too_large: the JSON has up to 200001 values")
    assert refusal(b'{"image":' + b"{}," * 5_000_000, JSON).startswith("too_large")
    assert "not a number" in refusal(b'{"text": "x", "image":' + b"9" * 5_000_000 + b"}")
    many = ", ".join(f'"{number}": 0' for number in range(MAX_JSON_VALUES - 10))
    assert "unknown input '0'" in refusal(b"{" + many.encode() + b"}")
    twice = ", ".join(['"a": 0'] * (MAX_JSON_VALUES - 10))
    assert "twice" in refusal(b"{" + twice.encode() + b"}")


def test_a_large_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.protocol.json_inputs.binascii.a2b_base64", None)
    monkeypatch.setattr("broker.protocol.json_inputs.unquote_to_bytes", None)
    large = "A" * (4 * (MAX_INPUT_BYTES // 3) + 8)
    for text in (large, f"data:image/jpeg;base64,{large}", "data:image/jpeg," + "A" * (3 * MAX_INPUT_BYTES + 3)):
        if len(text) < 16 * 2**20:
            assert refusal({"image": text, "text": "x"}).startswith("too_large: the input image has 8,388,6")


def test_a_safetensors_document_is_known_by_its_first_bytes() -> None:
    inputs = {"image": RawInput(JPEG, "image/jpeg"), "text": RawInput(b"a cat", "text/plain")}
    payload, content_type = encode_request(inputs)
    assert content_type == SAFETENSORS
    for said in ("", "application/octet-stream", SAFETENSORS.upper()):
        assert decode_request(payload, said, BOTH) == inputs
    assert "truncated" in refusal(payload[:40])


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.sampled_from(["", JSON, "image/png"]))
def test_random_requests_are_read_or_refused(rest: bytes, content_type: str) -> None:
    for beginning in (b"", b"{", b'{"image":"', b'{"text":["', b"data:image/png;base64,"):
        for expected in (PICTURE, BOTH, CAPTIONED):
            try:
                found = read(beginning + rest, content_type, expected)
            except RequestFailed as error:
                assert error.code in {ErrorCode.BAD_INPUT, ErrorCode.TOO_LARGE}  # noqa: PT017
            else:
                assert found.keys() == expected.keys()
