"""Requests of one's own for a replay: a folder of inputs, with or without the expected answers.

Owns the layout of the folder, and when an answer is the wanted one. Knows no site.

Files whose names begin alike are one request: ``door-1.jpg`` and ``door-1.txt``. A file goes to the input of its kind,
or to the one that its name ends in: ``door-1.question.txt``. One that is called as an input alone (``question.txt``)
belongs to all requests of the folder. ``expected.yaml`` has the expected answers, ``answers: {door-1: a courier}``;
where it has none, the answer that the site gives before any failure is the wanted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, JsonValue

from broker.client import Response
from broker.files import bad_field, inside, load_spec
from broker.given_inputs import Given, read_given
from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile, LocalProtocolError, RequestFailed
from broker.protocol.media import is_text, kind_of
from broker.protocol.specs import InputSpec, NodeName, TaskName, TaskSpec
from broker.protocol.tensors import Tensors
from broker.protocol.values import Spec
from s2m3.export.compare import TOLERANCE
from s2m3.testbed.engines import Engine

EXPECTED = ("expected.yaml", "expected.yml", "expected.json")
MAX_REQUESTS = 200  # of a folder: each is asked once before the load
_SIMPLE = "the files of requests lie beside each other: door-1.jpg, door-1.txt, ..."


class Expected(Spec):
    """``expected.yaml``: by request the label or text of its answer, or the fields that the answer must have."""

    answers: dict[str, str | dict[str, JsonValue]] = Field(default={})


@dataclass(frozen=True)
class FolderRequest:
    """One request of a folder."""

    task: TaskName
    folder: str
    name: str
    files: tuple[tuple[NodeName, Path], ...]  # by input

    @property
    def inputs(self) -> dict[str, RawInput]:
        """Its inputs, read now.

        Raises:
            BadFile: a file can't be read any more.
        """
        return {name: _read(path) for name, path in self.files}

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"


@dataclass(frozen=True, eq=False)
class Wanted:
    """An answer that is right. ``text`` alone is what a person expects; else fields, and arrays where there are some.

    ``partial``: the answer may have other fields, too.
    """

    answer: Mapping[str, JsonValue] | None = None
    tensors: Tensors | None = None
    text: str | None = None
    partial: bool = False

    def is_given_by(self, engine: Engine, response: Response) -> bool:
        """Whether a response has this answer: bit for bit by torch, else numbers within the exports' tolerance.

        Numbers that a person wrote may always differ by it. ``engine`` is onnx if any agent of the site has it.
        """
        if not response.ok:
            return False
        if self.text is not None:
            return response.result.text == self.text
        tolerance = TOLERANCE if engine == "onnx" or self.partial else 0.0
        found = response.result.answer
        if self.partial:
            found = {name: value for name, value in (found or {}).items() if name in (self.answer or {})}
        return _alike(self.answer, found, tolerance) and self._has_tensors(response.tensors, tolerance)

    def _has_tensors(self, found: Tensors, tolerance: float) -> bool:
        if self.tensors is None:
            return True
        return self.tensors.keys() == found.keys() and all(
            array.shape == found[name].shape and np.allclose(array, found[name], rtol=tolerance, atol=tolerance)
            for name, array in self.tensors.items()
        )

    def __str__(self) -> str:
        if self.text is not None:
            return repr(self.text)
        return str(dict(self.answer)) if self.answer is not None else ", ".join(self.tensors or ())


def read_folder(folder: Path, task: TaskSpec) -> dict[FolderRequest, Wanted | None]:
    """The requests of a folder, each with the answer that ``expected.yaml`` has for it.

    Raises:
        BadFile: it holds none or too many, a file can't be read, or it fits no input of the task.
    """
    try:
        paths = inside(folder)
    except OSError as error:
        problem, fix = error.strerror or "can't be read", f"name a folder with requests for {task.task}"
        raise BadFile(file=str(folder), problem=problem, fix=fix) from error
    shared, own = _by_request([path for path in paths if path.name not in EXPECTED], task.inputs)
    if not own and not shared:
        takes = " and ".join(f"{name} ({spec.kind})" for name, spec in task.inputs.items() if spec.default is None)
        fix = f"put in files for {takes or 'its inputs'}: {_SIMPLE}"
        raise BadFile(file=str(folder), problem=f"holds no requests for {task.task}", fix=fix)
    if len(own) > MAX_REQUESTS:
        problem, fix = f"holds {len(own)} requests, at most {MAX_REQUESTS} are allowed", "leave only some in it"
        raise BadFile(file=str(folder), problem=problem, fix=fix)
    requests = {
        name: _request(folder, name, {**shared, **files}, task) for name, files in (own or {folder.name: {}}).items()
    }
    expected = _expected(folder, requests)
    return {request: expected.get(name) for name, request in requests.items()}


def _by_request(
    paths: list[Path], inputs: Mapping[str, InputSpec]
) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
    """The files of all requests, and those of each: by the input that the name says, or by the whole name."""
    shared: dict[str, Path] = {}
    own: dict[str, dict[str, Path]] = {}
    for path in paths:
        if path.is_dir():
            raise BadFile(file=str(path), problem="is a folder among requests", fix=_SIMPLE)
        name, _, last = path.stem.rpartition(".")
        if path.stem in inputs:
            shared[path.stem] = path
        elif name and last in inputs:
            own.setdefault(name, {})[last] = path
        else:
            own.setdefault(path.stem, {})[path.name] = path
    return shared, own


def _request(folder: Path, name: str, files: Mapping[str, Path], task: TaskSpec) -> FolderRequest:
    """One request: files under the names of inputs go there, the others by their kind."""
    found: dict[str, Path] = {}
    for key, path in sorted(files.items(), key=lambda item: item[0] not in task.inputs):
        place = _place(path, key, task, found)
        if place in found:
            problem = f"is for the input {place} of {task.task}, as {found[place].name} is"
            raise BadFile(file=str(path), problem=problem, fix=f"remove one, or call it {name}.INPUT{path.suffix}")
        found[place] = path
    lacking = [each for each, spec in task.inputs.items() if spec.default is None and each not in found]
    if lacking:
        suffix = {"text": ".txt", "image": ".jpg", "audio": ".wav"}[task.inputs[lacking[0]].kind]
        problem = f"has no file for the input {lacking[0]} of {task.task}"
        raise BadFile(file=f"{folder}/{name}", problem=problem, fix=f"add {name}.{lacking[0]}{suffix}")
    return FolderRequest(task.task, str(folder), name, tuple(sorted(found.items())))


def _place(path: Path, key: str, task: TaskSpec, taken: Mapping[str, Path]) -> str:
    """The input that a file goes to."""
    raw = _read(path)
    if key in task.inputs:
        given = Given({}, (), {key: raw})
    else:
        kind = kind_of(raw.content_type) or "text"
        free = {name: spec for name, spec in task.inputs.items() if name not in taken and spec.kind == kind}
        if free:
            return min(free, key=lambda name: free[name].default is not None)
        given = Given({} if kind == "text" else {kind: raw}, ("",) if kind == "text" else (), {})
    try:
        return next(iter(given.place(task.task, task.inputs)))
    except LocalProtocolError as error:
        fix = "remove it, or call it NAME.INPUT" + path.suffix
        raise BadFile(file=str(path), problem=str(error), fix=fix) from error


def _read(path: Path) -> RawInput:
    """A file with its content type."""
    try:
        raw = read_given(file=path).named["file"]
    except RequestFailed as error:
        raise BadFile(file=str(path), problem=str(error), fix="use a smaller one") from error
    if kind_of(raw.content_type) in {"image", "audio"}:
        return raw
    if not is_text(raw.data):
        problem, fix = "is neither a picture nor a sound nor a text in UTF-8", "remove it, or convert it"
        raise BadFile(file=str(path), problem=problem, fix=fix)
    return RawInput(raw.data.rstrip(b"\r\n"), "text/plain")


def _expected(folder: Path, requests: Mapping[str, FolderRequest]) -> dict[str, Wanted]:
    path = next((folder / name for name in EXPECTED if (folder / name).exists()), None)
    if path is None:
        return {}
    answers = load_spec(path, Expected).answers
    for name in answers:
        if name not in requests:
            known = ", ".join(list(requests)[:8])
            fix = f"use the name of a request, without its suffix: {known}"
            raise bad_field(path, ("answers", name), problem="is not a request of this folder", fix=fix)
    return {
        name: Wanted(text=answer) if isinstance(answer, str) else Wanted(answer, partial=True)
        for name, answer in answers.items()
    }


def _alike(one: JsonValue | Mapping[str, JsonValue], other: JsonValue, tolerance: float) -> bool:
    """Whether two JSON values are equal, numbers up to a tolerance of themselves, and of 1 where they are smaller."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[name], other[name], tolerance) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(*pair, tolerance) for pair in zip(one, other, strict=True))
    if isinstance(one, int | float) and isinstance(other, int | float) and not isinstance(one, bool):
        return one == other or abs(one - other) <= tolerance * max(1.0, abs(one))
    return type(one) is type(other) and one == other
