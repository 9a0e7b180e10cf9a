"""Messages and their bytes, with limits. Pure.

Owns the two encodings, JSON for control messages and results, safetensors for arrays; and how a sensor's request
becomes named inputs (``decode_request``). Limits are checked before parsing. An unreadable message between processes
raises ``RemoteProtocolError``; an unreadable request of a sensor raises ``RequestFailed`` with a sentence for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from broker.protocol.errors import ErrorCode, RemoteProtocolError, RequestFailed
from broker.protocol.json_inputs import begins_like_json_object, bytes_of, is_json_list, read_json
from broker.protocol.media import (
    CALLED,
    Kind,
    encoded_format_of,
    format_of,
    is_text,
    kind_of,
    media_type,
    wrong_kind,
)
from broker.protocol.messages import Result, TensorMessage
from broker.protocol.sentences import describe
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import InputSpec, ModuleKey, RequestId
from broker.protocol.tensors import MAX_NAME_SHOWN, Array, Tensors, array_of, begins_like_document, pack, unpack

MAX_CONTROL_BYTES = 1024 * 1024  # a device's assignment of 1,000 modules has about half of that
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # one float32 batch of LLaVA's image tokens has 9.4 MB
MAX_INPUT_BYTES = 8 * 1024 * 1024  # a 24-megapixel JPEG; leaves room for the other inputs
MAX_CONTENT_TYPE = 255  # characters; it travels in the envelope of an input
SAFETENSORS = "application/vnd.safetensors"
JSON = "application/json"
RAW = "raw"
"""The name of the one array that holds the bytes of a raw input between agents."""

M = TypeVar("M", bound=BaseModel)
_TENSOR_MESSAGE: TypeAdapter[TensorMessage] = TypeAdapter(TensorMessage)


@dataclass(frozen=True)
class RawInput:
    """One input of a request, as the sensor sent it."""

    data: bytes
    content_type: str = ""


def encode(message: BaseModel) -> bytes:
    """Write a control message or a result as JSON."""
    return message.model_dump_json(exclude_none=True).encode()


def decode(kind: type[M], payload: bytes) -> M:
    """Read a control message or a result; unknown fields are ignored, also inside a spec.

    A value of another JSON type than the field's is refused: a number as a text, 1 for true.

    Messages that may have further fields keep them.

    Raises:
        RemoteProtocolError: too large, not JSON, or a field is missing or wrong.
    """
    if len(payload) > MAX_CONTROL_BYTES:
        size, limit = show_sizes(len(payload), MAX_CONTROL_BYTES)
        raise RemoteProtocolError(f"{kind.__name__} of {size}, at most {limit} are allowed")
    extra: Literal["ignore"] | None = None if kind.model_config.get("extra") == "allow" else "ignore"
    try:
        return kind.model_validate_json(payload, strict=True, extra=extra)
    except ValidationError as error:
        field, sentence = describe(error.errors()[0])
        raise RemoteProtocolError(": ".join(part for part in (kind.__name__, field, sentence) if part)) from error


def encode_tensors(message: TensorMessage, tensors: Tensors) -> bytes:
    """Write arrays with their envelope as metadata: strings unchanged, other fields as JSON text."""
    fields = message.model_dump(mode="json", exclude_none=True)
    texts = {name: each if isinstance(each, str) else to_json(each).decode() for name, each in fields.items()}
    return pack(tensors, texts)


def decode_tensors(payload: bytes) -> tuple[TensorMessage, dict[str, Array]]:
    """Read a message between agents.

    Raises:
        RemoteProtocolError: too large, truncated, malformed, or a field of its envelope is missing or wrong.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        size, limit = show_sizes(len(payload), MAX_MESSAGE_BYTES)
        raise RemoteProtocolError(f"{size}, at most {limit} are allowed")
    tensors, metadata = unpack(payload)
    try:
        return _TENSOR_MESSAGE.validate_python(metadata), tensors
    except (ValidationError, RecursionError) as error:
        raise RemoteProtocolError("the document's metadata are not an envelope of this protocol") from error


def encode_request(inputs: Mapping[str, RawInput]) -> tuple[bytes, str]:
    """Write a sensor's inputs: a single one unchanged, several as one safetensors document.

    Returns:
        The payload and its content type.
    """
    if len(inputs) == 1:
        (only,) = inputs.values()
        if only.content_type:
            return only.data, only.content_type
    arrays = {name: array_of(raw.data) for name, raw in inputs.items()}
    return pack(arrays, {name: raw.content_type for name, raw in inputs.items()}), SAFETENSORS


def decode_request(payload: bytes, content_type: str, expected: Mapping[str, InputSpec]) -> dict[str, RawInput]:
    """Read the inputs that a sensor sent: a raw input, a safetensors document, or a JSON object of named inputs.

    The content type says which of them; without one the first bytes do. A raw input is the input of its kind. Inputs
    that weren't sent have their default.

    Raises:
        RequestFailed: ``bad_input`` or ``too_large``, with a sentence that says what to send instead.
    """
    _check_content_type(content_type)
    if not payload:
        raise RequestFailed(ErrorCode.BAD_INPUT, f"the payload is empty: this task takes {described_inputs(expected)}")
    if len(payload) > MAX_MESSAGE_BYTES:
        size, limit = show_sizes(len(payload), MAX_MESSAGE_BYTES)
        raise RequestFailed(ErrorCode.TOO_LARGE, f"the request has {size}, at most {limit} are allowed")
    form = _form_of(payload, content_type)
    if form == SAFETENSORS:
        inputs = _named_inputs(payload, expected)
    elif form == JSON:
        _refuse_as_json(payload)
        inputs = _json_inputs(payload, expected)
    else:
        inputs = {_only_input(payload, content_type, expected): RawInput(payload, content_type)}
    for name, raw in inputs.items():
        _check_input(name, raw, expected[name])
    complete: dict[str, RawInput] = {}
    for name, spec in expected.items():
        if name not in inputs and spec.default is None:
            raise RequestFailed(
                ErrorCode.BAD_INPUT,
                f"the input {name} is missing: this task takes {described_inputs(expected)}; send several inputs as "
                "one JSON object of these names, or as one safetensors document of byte arrays, with content type "
                f"{SAFETENSORS}",
            )
        complete[name] = inputs[name] if name in inputs else RawInput(spec.default_bytes, "text/plain")
    return complete


def encode_result(result: Result, tensors: Tensors | None) -> tuple[bytes, str]:
    """Write an answer: JSON, or safetensors with the JSON as metadata when the output is a tensor.

    Returns:
        The payload and its content type.
    """
    text = encode(result)
    return (text, JSON) if tensors is None else (pack(tensors, {"result": text.decode()}), SAFETENSORS)


def decode_result(payload: bytes, content_type: str | None) -> tuple[Result, dict[str, Array]]:
    """Read an answer and its arrays.

    Raises:
        RemoteProtocolError: it breaks the contract.
    """
    tensors: dict[str, Array] = {}
    if media_type(content_type or "") == SAFETENSORS:
        tensors, metadata = unpack(payload)
        payload = metadata.get("result", "").encode()
    return decode(Result, payload), tensors


def request_id(task: str, reply_to: str, correlation: bytes, payload: bytes) -> RequestId:
    """The id of a request among agents: equal for each copy of a request, different for any other request.

    It depends on all four arguments: two sensors may both number their requests from 1, and so may one sensor before
    and after its restart.
    """
    digest = hashlib.sha256()
    for part in (task.encode(), reply_to.encode(), correlation):
        digest.update(len(part).to_bytes(8, "little") + part)
    digest.update(payload)
    return digest.hexdigest()[:32]


def inputs_digest(inputs: Mapping[str, RawInput]) -> str:
    """The digest of a request's inputs: by it a payload that kills devices is known.

    It is equal for each copy, of any sensor. The bytes of a payload aren't: the safetensors library writes metadata in
    any order.
    """
    digest = hashlib.sha256()
    for name, raw in sorted(inputs.items()):
        for part in (name.encode(), raw.data):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()[:32]


def described_inputs(expected: Mapping[str, InputSpec]) -> str:
    """The inputs of a task, for a sentence."""
    given = {True: "", False: ", has a default"}
    return ", ".join(f"{name} ({spec.kind}{given[spec.default is None]})" for name, spec in expected.items())


def _form_of(payload: bytes, content_type: str) -> str:
    """``SAFETENSORS``, ``JSON``, or ``RAW`` for one input as it is: what the content type says, or the first bytes."""
    said = media_type(content_type)
    if said in {SAFETENSORS, JSON}:
        return said
    if kind_of(content_type) is not None:
        return RAW
    if begins_like_document(payload):
        return SAFETENSORS
    return JSON if begins_like_json_object(payload) or is_json_list(payload) else RAW


def load_digest(key: ModuleKey) -> str:
    """The digest under which the load of a module is known, among the payloads that a process died of."""
    return hashlib.sha256(b"load\0" + key.encode()).hexdigest()[:32]


def _named_inputs(payload: bytes, expected: Mapping[str, InputSpec]) -> dict[str, RawInput]:
    try:
        arrays, content_types = unpack(payload)
    except RemoteProtocolError as error:
        raise RequestFailed(
            ErrorCode.BAD_INPUT, f"{error}; write it with the safetensors library and send all of it"
        ) from error
    _check_names(arrays.keys(), expected)
    if wrong := [name for name, array in arrays.items() if array.dtype.str != "|u1"]:  # ``name`` is made in Python
        raise RequestFailed(
            ErrorCode.BAD_INPUT, f"input {wrong[0]} must be an array of bytes (U8): the encoded file itself"
        )
    return {name: RawInput(array.tobytes(), content_types.get(name, "")) for name, array in arrays.items()}


def _json_inputs(payload: bytes, expected: Mapping[str, InputSpec]) -> dict[str, RawInput]:
    values = read_json(payload)
    _check_names(values.keys(), expected)
    return {
        name: RawInput(*bytes_of(name, value, expected[name].kind, MAX_INPUT_BYTES)) for name, value in values.items()
    }


def _check_names(names: Collection[str], expected: Mapping[str, InputSpec]) -> None:
    if unknown := sorted(set(names) - expected.keys()):
        raise RequestFailed(
            ErrorCode.BAD_INPUT,
            f"unknown input {unknown[0][:MAX_NAME_SHOWN]!r}: this task takes {described_inputs(expected)}",
        )


def _only_input(payload: bytes, content_type: str, expected: Mapping[str, InputSpec]) -> str:
    """The name of a raw input: the first of its kind, and of these the first without a default."""
    _refuse_encoded(payload, {spec.kind for spec in expected.values()})
    kind = kind_of(content_type)
    if kind is None and len(expected) == 1:
        return next(iter(expected))  # what is wrong with its bytes says who reads them
    if kind is None:
        kind, sent = _kind_of_bytes(payload)
    else:
        sent = CALLED[kind] if kind == "text" else f"{CALLED[kind]} ({media_type(content_type)})"
    fitting = [name for name, spec in expected.items() if spec.kind == kind]
    if not fitting:
        fix = "send that"
        if len(expected) > 1:
            fix = (
                "send one of these; several as one JSON object of these names, or as one safetensors document of byte "
            )
            fix += f"arrays, with content type {SAFETENSORS}"
        raise RequestFailed(ErrorCode.BAD_INPUT, f"{wrong_kind('this task', described_inputs(expected), sent)}: {fix}")
    return min(fitting, key=lambda name: expected[name].default is not None)


def _kind_of_bytes(payload: bytes) -> tuple[Kind | None, str]:
    """The kind of input that a payload is by its first bytes, and its name for a sentence."""
    found = format_of(payload)
    if found is not None:
        return found.kind, f"{CALLED[found.kind]} ({found.name})" if found.kind else found.name
    return ("text", CALLED["text"]) if is_text(payload) else (None, "bytes of no known format without a content type")


def _refuse_encoded(data: bytes, kinds: Collection[str]) -> None:
    """Refuse a picture or a sound that is written as text: its decoder would say less."""
    found = encoded_format_of(data)
    if found is not None and found[1].kind in kinds:
        form, known = found
        what = CALLED["image" if known.kind == "image" else "audio"]
        raise RequestFailed(
            ErrorCode.BAD_INPUT,
            f"this is {what} written as {form} ({known.media_type}): send the file's own bytes, or base64 or a data "
            "URL as a value of a JSON object of named inputs",
        )


def _refuse_as_json(payload: bytes) -> None:
    """Refuse a file whose content type says that it is JSON: its reader would speak of letters."""
    if (found := format_of(payload)) is not None:
        text = f"the content type says JSON, and this is {found.name}: send it as {found.media_type}, or without a type"
        raise RequestFailed(ErrorCode.BAD_INPUT, text)


def _check_content_type(content_type: str) -> None:
    if len(content_type) > MAX_CONTENT_TYPE:
        text = f"a content type has {len(content_type)} characters, at most {MAX_CONTENT_TYPE} are allowed: shorten it"
        raise RequestFailed(ErrorCode.TOO_LARGE, text)


def _check_input(name: str, raw: RawInput, spec: InputSpec) -> None:
    _check_content_type(raw.content_type)
    if not raw.data:
        raise RequestFailed(ErrorCode.BAD_INPUT, f"the input {name} is empty: send a {spec.kind}")
    if len(raw.data) > MAX_INPUT_BYTES:
        size, limit = show_sizes(len(raw.data), MAX_INPUT_BYTES)
        text = f"the input {name} has {size}, at most {limit} are allowed: send a smaller one"
        raise RequestFailed(ErrorCode.TOO_LARGE, text)
    if spec.kind != "text":
        _refuse_encoded(raw.data, {spec.kind})
    if (kind := kind_of(raw.content_type)) not in {None, spec.kind}:
        text = (
            f"the input {name} must be {CALLED[spec.kind]}, not {CALLED[kind or 'text']} ({raw.content_type}): send one"
        )
        raise RequestFailed(ErrorCode.BAD_INPUT, text)
