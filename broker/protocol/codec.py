"""Messages and their bytes, with limits. Pure.

Owns the two encodings: JSON for control messages and results, safetensors for arrays. Limits are checked before
parsing. An unreadable message between processes raises ``RemoteProtocolError``; an unreadable request of a sensor
raises ``RequestFailed`` with a sentence for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from broker.protocol.errors import ErrorCode, RemoteProtocolError, RequestFailed
from broker.protocol.messages import Result, TensorMessage
from broker.protocol.specs import InputSpec, RequestId, describe
from broker.protocol.tensors import MAX_NAME_SHOWN, Array, Tensors, pack, unpack

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
        raise RemoteProtocolError(f"{kind.__name__} of {len(payload)} bytes, at most {MAX_CONTROL_BYTES} are allowed")
    extra: Literal["ignore"] | None = None if kind.model_config.get("extra") == "allow" else "ignore"
    try:
        return kind.model_validate_json(payload, strict=True, extra=extra)
    except ValidationError as error:
        field, sentence = describe(error.errors()[0])
        raise RemoteProtocolError(": ".join(part for part in (kind.__name__, field, sentence) if part)) from error


def encode_tensors(message: TensorMessage, tensors: Tensors) -> bytes:
    """Write arrays with their envelope as metadata: strings unchanged, other fields as JSON text."""
    fields = message.model_dump(mode="json", exclude_none=True)
    return pack(tensors, {name: text if isinstance(text, str) else json.dumps(text) for name, text in fields.items()})


def decode_tensors(payload: bytes) -> tuple[TensorMessage, dict[str, Array]]:
    """Read a message between agents.

    Raises:
        RemoteProtocolError: too large, truncated, malformed, or a field of its envelope is missing or wrong.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(f"{len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are allowed")
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
    arrays = {name: np.frombuffer(raw.data, dtype=np.uint8) for name, raw in inputs.items()}
    return pack(arrays, {name: raw.content_type for name, raw in inputs.items()}), SAFETENSORS


def decode_request(payload: bytes, content_type: str, expected: Mapping[str, InputSpec]) -> dict[str, RawInput]:
    """Read the inputs that a sensor sent.

    Raises:
        RequestFailed: ``bad_input`` or ``too_large``, with a sentence that says what to send instead.
    """
    _check_content_type(content_type)
    wanted = ", ".join(f"{name} ({spec.kind})" for name, spec in expected.items())
    if not payload:
        raise RequestFailed(ErrorCode.BAD_INPUT, f"the payload is empty: this task takes {wanted}")
    if len(payload) > MAX_MESSAGE_BYTES:
        text = f"the request has {len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are allowed"
        raise RequestFailed(ErrorCode.TOO_LARGE, text)
    if content_type.split(";", maxsplit=1)[0].strip() == SAFETENSORS:
        inputs = _named_inputs(payload, expected, wanted)
    else:
        inputs = {_only_input(content_type, expected, wanted): RawInput(payload, content_type)}
    if missing := [name for name in expected if name not in inputs]:
        raise RequestFailed(
            ErrorCode.BAD_INPUT,
            f"the input {missing[0]} is missing: this task takes {wanted}; send several inputs as one "
            f"safetensors document of byte arrays, with content type {SAFETENSORS}",
        )
    for name, raw in inputs.items():
        _check_input(name, raw, expected[name])
    return inputs


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
    if content_type == SAFETENSORS:
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


def _named_inputs(payload: bytes, expected: Mapping[str, InputSpec], wanted: str) -> dict[str, RawInput]:
    try:
        arrays, content_types = unpack(payload)
    except RemoteProtocolError as error:
        raise RequestFailed(
            ErrorCode.BAD_INPUT, f"{error}; write it with the safetensors library and send all of it"
        ) from error
    if unknown := sorted(arrays.keys() - expected.keys()):
        raise RequestFailed(
            ErrorCode.BAD_INPUT, f"unknown input {unknown[0][:MAX_NAME_SHOWN]!r}: this task takes {wanted}"
        )
    if wrong := [name for name, array in arrays.items() if array.dtype != np.uint8]:
        raise RequestFailed(
            ErrorCode.BAD_INPUT, f"input {wrong[0]} must be an array of bytes (U8): the encoded file itself"
        )
    return {name: RawInput(array.tobytes(), content_types.get(name, "")) for name, array in arrays.items()}


def _only_input(content_type: str, expected: Mapping[str, InputSpec], wanted: str) -> str:
    if len(expected) == 1:
        return next(iter(expected))
    kind = content_type.split("/", maxsplit=1)[0]
    if fitting := [name for name, spec in expected.items() if spec.kind == kind]:
        return fitting[0]
    raise RequestFailed(
        ErrorCode.BAD_INPUT,
        f"this task takes {wanted}: send them as one safetensors document of byte arrays, with content type "
        f"{SAFETENSORS}, not {content_type or 'without a content type'}",
    )


def _check_content_type(content_type: str) -> None:
    if len(content_type) > MAX_CONTENT_TYPE:
        text = f"a content type has {len(content_type)} characters, at most {MAX_CONTENT_TYPE} are allowed: shorten it"
        raise RequestFailed(ErrorCode.TOO_LARGE, text)


def _check_input(name: str, raw: RawInput, spec: InputSpec) -> None:
    _check_content_type(raw.content_type)
    if not raw.data:
        raise RequestFailed(ErrorCode.BAD_INPUT, f"the input {name} is empty: send a {spec.kind}")
    if len(raw.data) > MAX_INPUT_BYTES:
        raise RequestFailed(
            ErrorCode.TOO_LARGE,
            f"the input {name} has {len(raw.data)} bytes, at most {MAX_INPUT_BYTES} are allowed: send a smaller one",
        )
    sent = raw.content_type.split("/")[0]
    if sent in {"image", "text", "audio"} and sent != spec.kind:
        text = f"the input {name} must be {spec.kind}, not {raw.content_type}: send one of that kind"
        raise RequestFailed(ErrorCode.BAD_INPUT, text)
