"""The inputs of a request as a caller gives them: files, bytes and texts by their kind, or by the name of an input.

Owns how files are read and which input of a task each value goes to. Doesn't know the broker, and no bytes on the wire.
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.protocol.codec import MAX_MESSAGE_BYTES, RawInput, described_inputs
from broker.protocol.errors import BadFile, ErrorCode, LocalProtocolError, RequestFailed
from broker.protocol.media import CALLED, KINDS, format_of, kind_of, wrong_kind
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import InputSpec

File = str | os.PathLike[str] | bytes | RawInput
"""A path, the bytes of a file, or bytes with their content type."""
Text = str | Sequence[str]
"""A text, or its lines."""
_MOST_SHOWN = 120  # characters of a path: it may be a whole picture as base64, by mistake


@dataclass(frozen=True)
class Given:
    """The values of one request. Those of ``named`` go to the inputs of these names, the others by their kind."""

    files: Mapping[str, RawInput]  # by kind: image, audio
    texts: tuple[str, ...]
    named: Mapping[str, RawInput]

    def place(self, task: str, inputs: Mapping[str, InputSpec]) -> dict[str, RawInput]:
        """The values under the names of the task's inputs; without its inputs under the names of their kinds.

        A value goes to the first input of its kind; inputs without a default come first. The second text goes to the
        second input for texts, and so on; further texts are lines of the last one.

        Raises:
            LocalProtocolError: there is no value, or the task has no such input.
        """
        takes = described_inputs(inputs)
        for name, raw in self.named.items():
            _check_named(task, name, raw, inputs, takes)
        found = dict(self.named)
        for kind, raw in self.files.items():
            found[_names(task, kind, inputs, found, takes)[0]] = raw
        if self.texts:
            names = _names(task, "text", inputs, found, takes)
            for position, name in enumerate(names[: len(self.texts)]):
                lines = self.texts[position:] if name == names[-1] else self.texts[position : position + 1]
                found[name] = _text("\n".join(lines), name)
        if not found:
            raise LocalProtocolError(
                f"there is nothing to send: {task} takes {takes or 'an input'}; give an image, a text or audio "
                "(of a command: --image, --text, --audio)"
            )
        return found


def require_all(task: str, found: Collection[str], inputs: Mapping[str, InputSpec]) -> None:
    """Check that each input of a task without a default has a value.

    Raises:
        LocalProtocolError: one has none.
    """
    for name, spec in inputs.items():
        if spec.default is None and name not in found:
            takes, option = described_inputs(inputs), f"--{spec.kind}"
            raise LocalProtocolError(f"{task} takes {takes}, and {name} is missing: give it (of a command: {option})")


def read_given(
    image: File | None = None, text: Text | None = None, audio: File | None = None, **named: File | Text
) -> Given:
    """Read the files of these values. Of the named ones a text is a text, a ``pathlib.Path`` a file.

    Raises:
        BadFile: a file can't be read, is empty, or holds another kind of input.
        RequestFailed: ``too_large``: no message can hold it.
        LocalProtocolError: a value has a wrong type, or isn't text.
    """
    files = {kind: _file(value, kind) for kind, value in (("image", image), ("audio", audio)) if value is not None}
    return Given(files, () if text is None else _lines(text, "text"), {k: _named(v, k) for k, v in named.items()})


def read_raw(inputs: Mapping[str, RawInput | bytes | str]) -> dict[str, RawInput]:
    """The inputs of a request by their names: texts as ``text/plain``, bytes without a type.

    Raises:
        LocalProtocolError: a value has a wrong type, or isn't text.
    """
    if not isinstance(inputs, Mapping):
        raise LocalProtocolError(f"inputs must be a mapping of names to texts or bytes, got {type(inputs).__name__}")
    return {name: _raw(value, name) for name, value in inputs.items()}


def _raw(value: object, name: str) -> RawInput:
    if isinstance(value, RawInput):
        return value
    if isinstance(value, str):
        return _text(value, name)
    if _is_bytes(value):
        return RawInput(bytes(value))  # type: ignore[call-overload] # just checked
    raise LocalProtocolError(f"the input {name} must be a text, or the bytes of a file, got {type(value).__name__}")


def _check_named(task: str, name: str, raw: RawInput, inputs: Mapping[str, InputSpec], takes: str) -> None:
    if not inputs:
        return
    if name not in inputs:
        raise LocalProtocolError(f"{task} has no input called {name}: it takes {takes}")
    kind, wanted = kind_of(raw.content_type), inputs[name].kind
    if kind not in {None, wanted}:
        fix = ": give its path as a pathlib.Path, or its bytes" if kind == "text" else ""
        got = CALLED[kind] if kind else "something else"
        raise LocalProtocolError(f"the input {name} of {task} must be {CALLED[wanted]}, not {got}{fix}")


def _names(
    task: str, kind: str, inputs: Mapping[str, InputSpec], taken: Mapping[str, RawInput], takes: str
) -> list[str]:
    """The names of the task's inputs of a kind that are still free, those without a default first."""
    if not inputs:
        return [kind]
    of_kind = [name for name, spec in inputs.items() if spec.kind == kind]
    if not of_kind:
        sent = next(CALLED[each] for each in KINDS if each == kind)
        raise LocalProtocolError(wrong_kind(task, takes, sent))
    free = [name for name in of_kind if name not in taken]
    if not free:
        raise LocalProtocolError(f"the input {of_kind[0]} of {task} is given twice: by its name, and as {kind}")
    return sorted(free, key=lambda name: inputs[name].default is not None)


def _named(value: File | Text, name: str) -> RawInput:
    if isinstance(value, str) or (isinstance(value, Sequence) and not _is_bytes(value)):
        return _text("\n".join(_lines(value, name)), name)
    return _file(value, name)


def _file(value: object, name: str) -> RawInput:
    """The content of a file, with its content type by its first bytes, or else by its name."""
    if isinstance(value, RawInput):
        return value
    guessed, place = "", name
    if _is_bytes(value):
        data = bytes(value)  # type: ignore[call-overload] # just checked
    elif isinstance(value, (str, os.PathLike)):
        path = os.fsdecode(value)
        if not path:
            raise LocalProtocolError(f"{name} is an empty path: name a file, or give the bytes of one")
        guessed, place = mimetypes.guess_type(path)[0] or "", path[:_MOST_SHOWN]
        data = _read(path, place)
    else:
        texts = "" if name in {"image", "audio"} else "a text, a list of lines, "
        raise LocalProtocolError(f"{name} must be {texts}a path, or the bytes of a file, got {type(value).__name__}")
    if not data:
        raise BadFile(file=place, problem="is empty", fix="name a file that holds something")
    if len(data) > MAX_MESSAGE_BYTES:
        text = f"{place} has more than {show_bytes(MAX_MESSAGE_BYTES)}, which no message can hold: send a smaller file"
        raise RequestFailed(ErrorCode.TOO_LARGE, text)
    known = format_of(data)
    content_type = known.media_type if known else guessed
    kind = known.kind if known else kind_of(content_type)
    if name in {"image", "audio"} and kind != name and (kind or known):
        held = f"{CALLED[kind]} ({content_type})" if kind else known and known.name
        fix = f"give it as {kind}, or another file" if kind else "give another file"
        wanted = CALLED["image" if name == "image" else "audio"]
        raise BadFile(file=place, problem=f"holds {held}, and {name} takes {wanted}", fix=fix)
    return RawInput(data, content_type)


def _read(path: str, shown: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_MESSAGE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = error.strerror if isinstance(error, OSError) and error.strerror else "is not a path"
        raise BadFile(file=shown, problem=problem, fix="name a file that can be read") from error


def _lines(value: object, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and not _is_bytes(value) and all(isinstance(line, str) for line in value):
        return tuple(value)
    raise LocalProtocolError(f"{name} must be a text or a list of lines, got {type(value).__name__}")


def _text(text: str, name: str) -> RawInput:
    try:
        return RawInput(text.encode(), "text/plain")
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"{name} is not text: it has bytes that aren't UTF-8") from error


def _is_bytes(value: object) -> bool:
    return isinstance(value, (bytes, bytearray, memoryview))
