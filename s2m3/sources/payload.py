"""A message of a source becomes the inputs of a request. Pure.

Owns how a payload is read: as it is, or as JSON with paths. Doesn't know the forms of pictures, sounds and texts in
JSON (``broker.protocol.json_inputs``), and doesn't check what an input holds: the device that serves the task does. A
payload that can't be read raises ``RequestFailed``; its sentence names the place in the source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from broker.protocol.codec import MAX_INPUT_BYTES, RawInput
from broker.protocol.default_text import bytes_of as text_bytes
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.json_inputs import bytes_of
from broker.protocol.media import KINDS, Kind, format_of, is_text, kind_of
from broker.protocol.sizes import show_sizes
from broker.protocol.sources import SourceSpec
from broker.protocol.specs import InputSpec

BY_NAME: Mapping[str, Kind] = {kind: kind for kind in KINDS}  # inputs whose task isn't known; all other names are texts


def inputs_of(
    spec: SourceSpec, payload: bytes, content_type: str, expected: Mapping[str, InputSpec]
) -> dict[str, RawInput]:
    """The inputs of a request, the constant ones among them.

    Args:
        spec: the source.
        payload: of the message.
        content_type: of the message, if its sender gave one.
        expected: the task's inputs, as its route has them; empty if they aren't known.

    Raises:
        RequestFailed: ``bad_input`` or ``too_large``.
    """
    if not payload:
        raise RequestFailed(ErrorCode.BAD_INPUT, "the message is empty")
    constant = {name: RawInput(text_bytes(text), "text/plain") for name, text in spec.inputs.items()}
    if spec.paths:
        return constant | _from_json(spec, payload, expected)
    if len(payload) > MAX_INPUT_BYTES:
        size, limit = show_sizes(len(payload), MAX_INPUT_BYTES)
        text = f"the message has {size}, at most {limit} are allowed: send a smaller one"
        raise RequestFailed(ErrorCode.TOO_LARGE, text)
    sent = content_type if kind_of(content_type) else _type_of(payload)
    return constant | {_raw_name(spec, sent, expected): RawInput(payload, sent)}


def _type_of(payload: bytes) -> str:
    """The content type that the bytes tell; empty if they tell nothing."""
    found = format_of(payload)
    if found is not None:
        return found.media_type
    return "text/plain" if is_text(payload) else ""


def _raw_name(spec: SourceSpec, content_type: str, expected: Mapping[str, InputSpec]) -> str:
    """The input that a raw message is: the only one that is left, or the first of its kind."""
    kind = kind_of(content_type)
    if not expected:
        return kind or "image"  # the names that the catalogue's tasks use
    left = {name: each for name, each in expected.items() if name not in spec.inputs}
    needed = [name for name, each in left.items() if each.default is None]
    fitting = [name for name, each in left.items() if each.kind == kind]
    if len(needed) == 1 and (kind is None or not fitting or needed[0] in fitting):
        return needed[0]
    if fitting:
        return min(fitting, key=lambda name: left[name].default is not None)
    wanted = ", ".join(f"{name} ({each.kind})" for name, each in left.items()) or "no input but the constant ones"
    said = f"the message is {content_type or 'of no known kind'}, and {spec.task} takes {wanted}"
    raise RequestFailed(ErrorCode.BAD_INPUT, f"{said}: send one of these, or name a path (payload: json)")


def _from_json(spec: SourceSpec, payload: bytes, expected: Mapping[str, InputSpec]) -> dict[str, RawInput]:
    try:
        text = payload.decode(json.detect_encoding(payload), "surrogatepass")  # as json.loads does with bytes
        document = json.loads(text.rstrip("\0"))  # a string of C ends with one
    except (ValueError, RecursionError):
        raise RequestFailed(ErrorCode.BAD_INPUT, "the message is not JSON: write payload: raw, or send JSON") from None
    found = {}
    for name, steps in spec.paths.items():
        place = f"payload.json.{name} ({_written(steps)})"
        value = _at(document, steps, place)
        kind = expected[name].kind if name in expected else BY_NAME.get(name, "text")
        try:
            found[name] = RawInput(*bytes_of(name, _texts(value) if kind == "text" else value, kind, MAX_INPUT_BYTES))
        except RequestFailed as error:
            raise RequestFailed(error.code, f"{place}: {error.message}") from None
    return found


def _at(document: Any, steps: tuple[str | int, ...], place: str) -> Any:  # noqa: ANN401 - JSON can be anything
    """The value at a path."""
    for number, step in enumerate(steps):
        is_key = isinstance(document, dict) and step in document and isinstance(step, str)
        is_position = isinstance(document, list) and isinstance(step, int) and step < len(document)
        if not is_key and not is_position:
            text = f"{place}: the message has nothing at {_written(steps[: number + 1])}"
            raise RequestFailed(ErrorCode.BAD_INPUT, text)
        document = document[step]
    return document


def _written(steps: tuple[str | int, ...]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def _texts(value: object) -> object:
    """The value with its numbers and truth values as texts: a sensor's reading may be a question, too."""
    if isinstance(value, list):
        return [_texts(each) if not isinstance(each, list) else each for each in value]
    return json.dumps(value) if isinstance(value, int | float) else value
