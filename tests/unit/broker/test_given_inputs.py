"""The inputs that a caller gives: which files are read, and which input of a task each value goes to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from broker.given_inputs import read_given, require_all
from broker.protocol.codec import MAX_MESSAGE_BYTES, RawInput
from broker.protocol.errors import BadFile, ErrorCode, LocalProtocolError, RequestFailed
from broker.protocol.specs import InputSpec

JPEG, WAV = b"\xff\xd8\xff\xe0", b"RIFF\x00\x00\x00\x00WAVEfmt "
VQA = {
    "photo": InputSpec(kind="image", bytes=9),
    "question": InputSpec(kind="text", bytes=9),
    "answers": InputSpec(kind="text", bytes=9),
}
TEXT = "text/plain"


class Picture:
    """Anything with a path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "frame"
    path.write_bytes(JPEG)
    return path


def test_a_picture_is_a_path_or_bytes_or_what_has_a_path(photo: Path) -> None:
    raw = RawInput(JPEG, "image/jpeg")
    for given in (photo, str(photo), Picture(photo), JPEG, bytearray(JPEG), memoryview(JPEG), raw):
        assert read_given(given).place("vqa", VQA) == {"photo": raw}  # type: ignore[arg-type]


def test_without_the_tasks_inputs_values_have_the_names_of_their_kinds() -> None:
    placed = read_given(JPEG, ["a", "b"], WAV, other="x").place("vqa", {})
    assert placed == {
        "image": RawInput(JPEG, "image/jpeg"),
        "text": RawInput(b"a\nb", TEXT),
        "audio": RawInput(WAV, "audio/wav"),
        "other": RawInput(b"x", TEXT),
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"text": "what?"}, {"question": b"what?"}),
        ({"text": ["what?"]}, {"question": b"what?"}),
        ({"text": ["what?", "a", "b"]}, {"question": b"what?", "answers": b"a\nb"}),
        ({"text": "what?", "answers": ["a", "b"]}, {"question": b"what?", "answers": b"a\nb"}),
        ({"text": ["a", "b"], "question": "what?"}, {"question": b"what?", "answers": b"a\nb"}),
        ({"question": "what?", "photo": JPEG}, {"question": b"what?", "photo": JPEG}),
    ],
)
def test_texts_go_to_the_next_input_for_texts_and_the_rest_are_lines(
    given: dict[str, Any], expected: dict[str, bytes]
) -> None:
    assert {name: raw.data for name, raw in read_given(**given).place("vqa", VQA).items()} == expected


def test_inputs_with_a_default_come_last() -> None:
    inputs = {"context": InputSpec(kind="text", bytes=9, default="none"), "question": InputSpec(kind="text", bytes=9)}
    assert list(read_given(text="what?").place("qa", inputs)) == ["question"]
    assert list(read_given(text=["what?", "a", "b"]).place("qa", inputs)) == ["question", "context"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "there is nothing to send: vqa takes photo (image), question (text), answers (text); give an image"),
        ({"text": []}, "there is nothing to send"),
        ({"image": JPEG, "photo": JPEG}, "the input photo of vqa is given twice: by its name, and as image"),
        ({"audio": WAV}, "vqa takes photo (image), question (text), answers (text), not a sound"),
        ({"pictur": JPEG}, "vqa has no input called pictur: it takes photo (image), question"),
        (
            {"photo": "frame.jpg"},
            "the input photo of vqa must be a picture, not a text: give its path as a pathlib.Path",
        ),
        ({"photo": WAV}, "the input photo of vqa must be a picture, not a sound"),
    ],
)
def test_what_the_task_does_not_take_is_named(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LocalProtocolError) as raised:
        read_given(**given).place("vqa", VQA)
    assert str(raised.value).startswith(sentence)


def test_an_input_without_a_default_that_has_no_value_is_named_before_anything_is_sent() -> None:
    require_all("vqa", ("photo", "question", "answers"), VQA)
    optional = InputSpec(kind="text", bytes=9, default="none")
    require_all("qa", ("photo",), {"photo": VQA["photo"], "context": optional})
    with pytest.raises(LocalProtocolError) as raised:
        require_all("vqa", ("photo", "question"), VQA)
    takes = "vqa takes photo (image), question (text), answers (text)"
    assert str(raised.value) == f"{takes}, and answers is missing: give it (of a command: --text)"


def test_a_file_that_is_no_such_input_is_named_with_the_fix(tmp_path: Path, photo: Path) -> None:
    empty, notes = tmp_path / "empty.jpg", tmp_path / "notes.txt"
    empty.touch()
    notes.write_text("a text")
    video = tmp_path / "clip.jpg"
    video.write_bytes(b"\x00\x00\x00\x18ftypisom")
    for path, sentence in (
        (tmp_path / "none.jpg", "No such file or directory; name a file that can be read"),
        (tmp_path, "Is a directory; name a file"),
        (empty, "is empty"),
        (video, "holds MP4, and image takes a picture; give another file"),
        (notes, "holds a text (text/plain), and image takes a picture; give it as text"),
        ("a\0b", "is not a path"),
        ("data:image/jpeg;base64," + 9000 * "A", "File name too long"),
    ):
        with pytest.raises(BadFile) as raised:
            read_given(image=path)
        assert str(raised.value).startswith(f"{str(path)[:120]}: {sentence}")
    with pytest.raises(
        BadFile, match=r"frame: holds a picture .image/jpeg., and audio takes a sound; give it as image"
    ):
        read_given(audio=photo)


def test_a_file_larger_than_any_message_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "video"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 100 * MAX_MESSAGE_BYTES)
    with pytest.raises(RequestFailed, match="has more than 16 MiB") as raised:
        read_given(image=path)
    assert raised.value.code == ErrorCode.TOO_LARGE


@pytest.mark.parametrize("given", [{"image": 7}, {"text": 7}, {"text": [b"x"]}, {"question": 7}, {"text": "T\udcfcr"}])
def test_a_value_of_a_wrong_type_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError, match=r"must be a|is not text"):
        read_given(**given).place("vqa", VQA)
