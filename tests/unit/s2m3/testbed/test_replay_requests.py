"""A folder of requests: its layout, what is refused with its file and a fix, and when an answer is the wanted one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.client import Response
from broker.protocol.errors import BadFile
from broker.protocol.messages import ErrorBody, Result
from broker.protocol.specs import InputSpec, NodeSpec, TaskSpec
from s2m3.testbed.replay.requests import MAX_REQUESTS, FolderRequest, Wanted, read_folder
from tests.builders import module

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff" + bytes(20)
IMAGE = InputSpec(kind="image", bytes=100)
TEXT = InputSpec(kind="text", bytes=100)


def task(**inputs: InputSpec) -> TaskSpec:
    node = NodeSpec(module="m", needs=tuple(inputs))
    return TaskSpec(task="look", inputs=inputs, nodes={"n": node}, output="n", modules={"m": module("m")})


def folder(tmp_path: Path, files: Mapping[str, bytes | str]) -> Path:
    made = tmp_path / "requests"
    made.mkdir()
    for name, content in files.items():
        (made / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return made


def placed(found: Mapping[FolderRequest, object]) -> dict[str, dict[str, str]]:
    return {each.name: {name: path.name for name, path in each.files} for each in found}


@pytest.mark.parametrize(
    ("files", "inputs", "requests"),
    [
        ({"a.png": PNG, "b.jpg": JPEG}, {"image": IMAGE}, {"a": {"image": "a.png"}, "b": {"image": "b.jpg"}}),
        # of one name: each file goes to the input of its kind, or to the one that its name ends in
        (
            {"a.png": PNG, "a.txt": "who?", "b.2.jpg": JPEG, "b.2.question.txt": "what?"},
            {"image": IMAGE, "question": TEXT},
            {
                "a": {"image": "a.png", "question": "a.txt"},
                "b.2": {"image": "b.2.jpg", "question": "b.2.question.txt"},
            },
        ),
        # called as an input alone: of all requests; its own one counts more
        (
            {"a.png": PNG, "b.png": PNG, "b.text.txt": "no", "text.txt": "a\nb"},
            {"image": IMAGE, "text": TEXT},
            {"a": {"image": "a.png", "text": "text.txt"}, "b": {"image": "b.png", "text": "b.text.txt"}},
        ),
        ({"image.png": PNG}, {"image": IMAGE}, {"requests": {"image": "image.png"}}),
        # an input with a default needs no file
        (
            {"a.png": PNG},
            {"image": IMAGE, "text": TEXT.model_copy(update={"default": "a door"})},
            {"a": {"image": "a.png"}},
        ),
        # files that other systems leave behind are left out
        ({"a.png": PNG, ".DS_Store": b"\0", "._a.png": b"\0"}, {"image": IMAGE}, {"a": {"image": "a.png"}}),
        # the first bytes tell the kind, not the suffix
        ({"a.txt": PNG}, {"image": IMAGE}, {"a": {"image": "a.txt"}}),
    ],
)
def test_files_become_requests(tmp_path: Path, files: Any, inputs: Any, requests: Any) -> None:
    assert placed(read_folder(folder(tmp_path, files), task(**inputs))) == requests


def test_a_request_is_read_when_it_is_sent_and_a_text_has_no_line_end(tmp_path: Path) -> None:
    made = folder(tmp_path, {"a.png": PNG, "a.txt": "who?\r\n"})
    (request,) = read_folder(made, task(image=IMAGE, question=TEXT))
    assert {name: raw.content_type for name, raw in request.inputs.items()} == {
        "image": "image/png",
        "question": "text/plain",
    }
    assert request.inputs["question"].data == b"who?"
    (made / "a.png").unlink()
    with pytest.raises(BadFile, match=r"a\.png: No such file"):
        _ = request.inputs


@pytest.mark.parametrize(
    ("files", "file", "problem", "fix"),
    [
        ({}, "requests", "holds no requests for look", "put in files for image (image) and question (text)"),
        ({"expected.yaml": "answers: {}"}, "requests", "holds no requests for look", "put in files"),
        ({"a.png": PNG}, "requests/a", "has no file for the input question of look", "add a.question.txt"),
        ({"a.txt": "x"}, "requests/a", "has no file for the input image of look", "add a.image.jpg"),
        ({"a.png": PNG, "a.txt": ""}, "a.txt", "is empty", "holds something"),
        ({"a.png": PNG, "a.txt": b"\xff\x00\x01"}, "a.txt", "neither a picture nor a sound nor a text", "convert it"),
        ({"a.png": PNG, "a.jpg": JPEG, "a.txt": "x"}, "a.png", "image of look, as a.jpg is", "a.INPUT.png"),
        ({"a.image.txt": "no picture"}, "a.image.txt", "must be a picture, not a text", "remove it"),
        ({"a.png": PNG, "a.txt": "x", "a.wav": b"RIFF1234WAVE"}, "a.wav", "not a sound", "remove it"),
        ({"a.png": PNG, "a.txt": "x", "expected.yaml": "answers: {b: x}"}, "expected.yaml", "is not a request", "a"),
        ({"a.png": PNG, "a.txt": "x", "expected.yaml": "answers: {a: 7}"}, "expected.yaml", "a", '"7"'),
        ({"a.png": PNG, "a.txt": "x", "expected.yaml": "a: x"}, "expected.yaml", "is not a known field", "answers"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_fix(
    tmp_path: Path, files: Any, file: str, problem: str, fix: str
) -> None:
    with pytest.raises(BadFile) as refused:
        read_folder(folder(tmp_path, files), task(image=IMAGE, question=TEXT))
    assert refused.value.file.endswith(file)
    assert problem in refused.value.problem
    assert fix in refused.value.fix
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_none_or_holds_folders_or_too_much_is_refused(tmp_path: Path) -> None:
    look = task(image=IMAGE)
    with pytest.raises(BadFile, match=r"nowhere: No such file.*name a folder with requests for look"):
        read_folder(tmp_path / "nowhere", look)
    made = folder(tmp_path, {f"{number}.png": PNG for number in range(MAX_REQUESTS)})
    assert len(read_folder(made, look)) == MAX_REQUESTS
    (made / "one-more.png").write_bytes(PNG)
    with pytest.raises(BadFile, match=f"holds {MAX_REQUESTS + 1} requests, at most {MAX_REQUESTS} are allowed"):
        read_folder(made, look)
    with pytest.raises(BadFile, match="Not a directory"):
        read_folder(made / "one-more.png", look)
    (made / "more").mkdir()
    with pytest.raises(BadFile, match=r"more: is a folder among requests; the files of requests lie beside each other"):
        read_folder(made, look)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:  # pragma: no cover - CI runs as root
    made = folder(tmp_path, {"a.png": PNG})
    (made / "a.png").chmod(0)
    with pytest.raises(BadFile, match=r"a\.png: Permission denied"):
        read_folder(made, task(image=IMAGE))


def response(answer: Any = None, **tensors: Any) -> Response:
    return Response(Result(request="r", task="look", answer=answer), 0.1, 1, tensors=tensors)


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("a: a courier", {"label": "a courier", "score": 0.9}, True),
        ("a: a courier", {"label": "nobody", "score": 0.9}, False),
        ("a: a courier", {"text": "a courier"}, True),
        ("a: {label: nobody}", {"label": "nobody", "score": 0.1}, True),
        ("a: {label: nobody, score: 0.91}", {"label": "nobody", "score": 0.91004}, True),
        ("a: {label: nobody, score: 0.91}", {"label": "nobody", "score": 0.92}, False),
        ("a: {labels: [x, y]}", {"labels": ["x", "y"]}, True),
        ("a: {labels: [x, y]}", {"labels": ["x"]}, False),
        ("a: {sure: true}", {"sure": 1}, False),
        ("a: {label: nobody}", {}, False),
    ],
)
def test_an_expected_answer_is_its_text_or_the_fields_that_it_names(
    tmp_path: Path, expected: str, answer: Any, right: object
) -> None:
    made = folder(tmp_path, {"a.png": PNG, "b.png": PNG, "expected.yaml": f"answers:\n  {expected}\n"})
    first, second = read_folder(made, task(image=IMAGE)).items()
    assert second[1] is None, "no answer is expected of it"
    assert first[1] is not None
    assert first[1].is_given_by("torch", response(answer)) is right
    assert first[1].is_given_by("onnx", response(answer)) is right


def test_an_unfailed_answer_is_wanted_bit_for_bit_but_of_onnx_within_its_tolerance() -> None:
    wanted = Wanted({"label": "a", "score": 0.5})
    for score, by_torch, by_onnx in ((0.5, True, True), (0.50001, False, True), (0.51, False, False)):
        found = response({"label": "a", "score": score})
        assert (wanted.is_given_by("torch", found), wanted.is_given_by("onnx", found)) == (by_torch, by_onnx)
    assert not wanted.is_given_by("onnx", response({"label": "a", "score": 0.5, "more": 1}))
    error = Response(
        Result(request="r", task="look", error=ErrorBody.model_validate({"code": "no_route", "message": "x"})), 0.1, 1
    )
    assert not wanted.is_given_by("torch", error)


def test_arrays_are_compared_where_the_answer_is_nothing_else() -> None:
    wanted = Wanted(None, {"mask": np.array([1.0, 2.0], np.float32)})
    assert wanted.is_given_by("torch", response(mask=np.array([1.0, 2.0], np.float32)))
    nearly = response(mask=np.array([1.0, 2.00001], np.float32))
    assert (wanted.is_given_by("torch", nearly), wanted.is_given_by("onnx", nearly)) == (False, True)
    assert not wanted.is_given_by("onnx", response(mask=np.array([[1.0, 2.0]], np.float32)))
    assert not wanted.is_given_by("onnx", response(other=np.array([1.0, 2.0], np.float32)))
