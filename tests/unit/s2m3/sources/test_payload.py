"""A message becomes the inputs of a request, or a sentence says why not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from broker.protocol.codec import MAX_INPUT_BYTES, RawInput
from broker.protocol.errors import RequestFailed
from broker.protocol.sources import SourceSpec
from broker.protocol.specs import InputSpec
from s2m3.sources.payload import _type_of, inputs_of

JPEG, WAV = b"\xff\xd8\xff\xe0 a picture?>", b"RIFF\x00\x00\x00\x00WAVEfmt "
IMAGE, TEXT, AUDIO = (InputSpec(kind=kind, bytes=10) for kind in ("image", "text", "audio"))
ENCODED = base64.b64encode(JPEG).decode()


def source(**fields: Any) -> SourceSpec:
    return SourceSpec.model_validate({"source": "door", "subscribe": "a/b", "task": "vqa"} | fields)


def read(
    message: object, expected: dict[str, InputSpec] | None = None, content_type: str = "", **fields: Any
) -> dict[str, RawInput]:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return inputs_of(source(**fields), data, content_type, expected or {})


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ({"image": IMAGE}, "image"),
        ({"picture": IMAGE}, "picture"),
        ({"picture": IMAGE, "text": TEXT}, "picture"),
        ({}, "image"),
    ],
)
def test_a_raw_message_is_the_input_of_its_kind(expected: dict[str, InputSpec], name: str) -> None:
    assert read(JPEG, expected) == {name: RawInput(JPEG, "image/jpeg")}


def test_a_raw_message_is_the_only_input_that_isnt_constant_whatever_it_looks_like() -> None:
    read_ = read(b"\x00\x01odd", {"image": IMAGE, "text": TEXT}, inputs={"text": ["a cat", "a dog"]})
    assert read_ == {"text": RawInput(b"a cat\na dog", "text/plain"), "image": RawInput(b"\x00\x01odd", "")}


def test_the_senders_content_type_counts_more_than_the_first_bytes() -> None:
    assert read(JPEG, {"image": IMAGE}, "image/x-odd")["image"].content_type == "image/x-odd"
    assert read(JPEG, {"image": IMAGE}, "application/octet-stream")["image"].content_type == "image/jpeg"


def test_an_input_with_a_default_of_the_task_needs_no_constant() -> None:
    captions = InputSpec.model_validate({"kind": "text", "bytes": 10, "default": ["a cat", "a dog"]})
    expected = {"text": captions, "image": IMAGE}
    assert read(JPEG, expected).keys() == {"image"}
    assert read(b"\x00odd", expected).keys() == {"image"}
    assert read(b"a bird", expected, "text/plain").keys() == {"text"}


def test_without_a_known_route_the_kind_is_the_name() -> None:
    assert read(b"hello", {}).keys() == {"text"}
    assert read(WAV, {}).keys() == {"audio"}


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (JPEG, "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n.", "image/png"),
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (WAV, "audio/wav"),
        (b"GIF89a", "image/gif"),
        (b"%PDF-1", "application/pdf"),
        ("grüße".encode(), "text/plain"),
        (b"\x80\x01\x02\x00", ""),
        (b"a\x00b", ""),
    ],
)
def test_the_first_bytes_tell_the_type(payload: bytes, content_type: str) -> None:
    assert _type_of(payload) == content_type


@pytest.mark.parametrize(
    "value",
    [
        ENCODED,
        ENCODED.rstrip("="),
        f"data:image/jpeg;base64,{ENCODED}",
        ENCODED[:8] + "\r\n" + ENCODED[8:],
        base64.urlsafe_b64encode(JPEG).decode(),
    ],
)
def test_a_picture_in_json(value: str) -> None:
    payload = {"json": {"image": "$.camera.pictures[1]"}}
    found = read({"camera": {"pictures": [None, value]}}, {"image": IMAGE}, payload=payload)
    assert found["image"].data == JPEG
    assert found["image"].content_type in {"", "image/jpeg"}, "base64 says nothing"


@pytest.mark.parametrize(
    ("value", "text"),
    [("a cat", "a cat"), (["a cat", "a dog"], "a cat\na dog"), (21.5, "21.5"), (True, "true"), ([1, "x"], "1\nx")],
)
def test_a_text_in_json(value: object, text: str) -> None:
    assert read({"a": value}, {"q": TEXT}, payload={"json": {"q": "$.a"}}) == {
        "q": RawInput(text.encode(), "text/plain")
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le"])
def test_a_message_may_be_a_string_of_c(encoding: str) -> None:
    message = ('{"a": "x"}' + 9 * "\0").encode(encoding)
    assert read(message, {"q": TEXT}, payload={"json": {"q": "$.a"}})["q"].data == b"x"


def test_one_value_may_be_all_of_the_message_and_constants_are_added() -> None:
    found = read("what is it?", {}, payload={"json": {"question": "$"}}, inputs={"answers": ["a", "b"]})
    assert {name: raw.data for name, raw in found.items()} == {"question": b"what is it?", "answers": b"a\nb"}


@pytest.mark.parametrize(
    ("payload", "fields", "code", "says"),
    [
        (b"", {}, "bad_input", "the message is empty"),
        (b"x" * (MAX_INPUT_BYTES + 1), {}, "too_large", "send a smaller one"),
        (b"hello", {"inputs": {"text": "a"}}, "bad_input", "takes sound (audio), image (image)"),
        (b"\xff\xd8", {"payload": {"json": {"image": "$.a"}}}, "bad_input", "the message is not JSON"),
        (b"[" * 100_000, {"payload": {"json": {"image": "$.a"}}}, "bad_input", "the message is not JSON"),
        (
            b'{"b": 1}',
            {"payload": {"json": {"image": "$.a"}}},
            "bad_input",
            "payload.json.image ($.a): the message has nothing at $.a",
        ),
        (b'{"a": [1]}', {"payload": {"json": {"image": "$.a[1]"}}}, "bad_input", "nothing at $.a[1]"),
        (b'{"a": [1]}', {"payload": {"json": {"image": "$.a.b.c"}}}, "bad_input", "nothing at $.a.b"),
        (
            b'{"a": 5}',
            {"payload": {"json": {"image": "$.a"}}},
            "bad_input",
            "must be a string, base64 or a data URL, not a number",
        ),
        (
            b'{"a": "no picture!"}',
            {"payload": {"json": {"image": "$.a"}}},
            "bad_input",
            "is not base64",
        ),
        (b'{"a": null}', {"payload": {"json": {"text": "$.a"}}}, "bad_input", "not null"),
        (b'{"a": {}}', {"payload": {"json": {"text": "$.a"}}}, "bad_input", "not an object"),
    ],
)
def test_what_cant_be_read_is_told(payload: bytes, fields: dict[str, Any], code: str, says: str) -> None:
    expected = {"sound": AUDIO, "image": IMAGE, "text": TEXT}
    with pytest.raises(RequestFailed) as refused:
        inputs_of(source(**fields), payload, "", expected)
    assert refused.value.code == code
    assert says in refused.value.message
