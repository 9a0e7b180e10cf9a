"""The body of a request, read within limits, as the payload that a sensor would publish.

Owns the limits of size and time, and multipart bodies. What a payload says is read by the agent: raw inputs, JSON and
safetensors pass through unchanged.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from broker.protocol.codec import MAX_CONTENT_TYPE, MAX_MESSAGE_BYTES, SAFETENSORS, RawInput
from broker.protocol.errors import ErrorCode, LocalProtocolError
from broker.protocol.media import media_type
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import MAX_INPUTS
from broker.protocol.tensors import array_of, pack
from s2m3.http.refusals import BAD_REQUEST, TIMEOUT, TOO_LARGE, TOO_MANY, WRONG_TYPE, Refusal

MAX_BODY_BYTES = MAX_MESSAGE_BYTES + 64 * 1024  # room for the lines between the parts of a multipart body
BODY_S = 60.0  # until the whole body must be there
MOST_REQUESTS = 256  # read or answered at a time
MOST_BYTES = 256 * 1024 * 1024  # of their bodies, which are in memory until they are answered
MULTIPART = "multipart/form-data"
FORM = "application/x-www-form-urlencoded"
_FIELD = re.compile(rb"[A-Za-z][A-Za-z0-9_-]{0,63}=")
UNKNOWN = "application/octet-stream"


class Room:
    """Room for requests: a limit of their number and of their bodies' bytes."""

    def __init__(self, most_requests: int = MOST_REQUESTS, most_bytes: int = MOST_BYTES) -> None:
        self._requests, self._bytes = most_requests, most_bytes

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """Take room for one request, until the block ends; raises Refusal when all of it is taken."""
        if self._requests < 1 or self._bytes < size_bytes:
            message = "too many requests are open here: send fewer at a time"
            raise Refusal(TOO_MANY, ErrorCode.OVERLOADED, message, retry_after_s=1.0)
        self._requests -= 1
        self._bytes -= size_bytes
        try:
            yield
        finally:
            self._requests += 1
            self._bytes += size_bytes


def size_of(headers: Headers, limit_bytes: int) -> int:
    """The bytes that a body may have: its declared length, or the limit where none is declared.

    Raises:
        Refusal: it is too large, or compressed.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        message = f"the body is compressed ({encoding[:32]}): send it without Content-Encoding"
        raise Refusal(WRONG_TYPE, ErrorCode.BAD_INPUT, message)
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return limit_bytes
    digits = length.lstrip("0") or "0"
    if len(digits) > len(str(limit_bytes)) or int(digits) > limit_bytes:
        raise _too_large(limit_bytes)
    return int(digits)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        Refusal: it is too large, or didn't arrive in time.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit_bytes:
                    raise _too_large(limit_bytes)
                body += chunk
    except TimeoutError as error:
        message = f"the body was not complete within {BODY_S:g} s: send a smaller one, or over a faster link"
        raise Refusal(TIMEOUT, ErrorCode.BAD_INPUT, message) from error
    except ClientDisconnect as error:
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, "the connection ended within the body") from error
    return bytes(body)


def payload_of(body: bytes, content_type: str) -> RawInput:
    """The payload to publish: a multipart body as a safetensors document of its parts, any other body as it is.

    Raises:
        Refusal: it is empty, or a multipart body is malformed, or has a part without a name, or two of one name.
    """
    if not body:
        message = "the body is empty: send the input, or several as JSON or as multipart/form-data"
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, message)
    if not (content_type.isascii() and content_type.isprintable() and len(content_type) <= MAX_CONTENT_TYPE):
        message = f"the Content-Type must have at most {MAX_CONTENT_TYPE} characters, all of them printable ASCII"
        raise Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, message)  # a broker disconnects a client that sends others
    if is_form(content_type) and _FIELD.match(body):
        message = (
            "the body is a form of names and values, as curl -d sends it: send the inputs with curl -F NAME=VALUE, "
        )
        message += "as JSON, or a text alone with the header Content-Type: text/plain"
        raise Refusal(WRONG_TYPE, ErrorCode.BAD_INPUT, message)
    if media_type(content_type) != MULTIPART:
        return RawInput(body, content_type or UNKNOWN)
    parts = _Parts()
    try:
        parts.read(body, content_type)
    except FormParserError as error:
        raise _bad_part("it is malformed or incomplete", "write it with an HTTP library, or curl -F") from error
    if not parts.found:
        raise _bad_part("it has no parts", "send the task's inputs as parts")
    arrays = {name: array_of(part.data) for name, part in parts.found.items()}
    try:
        payload = pack(arrays, {name: part.content_type for name, part in parts.found.items()})
    except LocalProtocolError as error:
        raise _bad_part(str(error), "name the parts as the task's inputs") from error
    return RawInput(payload, SAFETENSORS)


def is_form(content_type: str) -> bool:
    """Whether a content type is that of a form of names and values. curl sends it with any body, by default."""
    return media_type(content_type) == FORM


class _Parts:
    """The parts of a multipart body, by name."""

    def __init__(self) -> None:
        self.found: dict[str, RawInput] = {}
        self._is_complete = False
        self._field, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._data = bytearray()

    def read(self, body: bytes, content_type: str) -> None:
        """Read a whole body; raises Refusal and the library's FormParserError."""
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise _bad_part("its Content-Type has no boundary", "let the HTTP library write this header")
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )
        parser.write(body)
        parser.finalize()
        if not self._is_complete:
            raise _bad_part("its end is missing", "send all of it")

    def _begin(self) -> None:
        if len(self.found) >= MAX_INPUTS:
            raise _bad_part(f"it has more than {MAX_INPUTS} parts", "send the task's inputs only")
        self._headers.clear()
        self._data.clear()

    def _end_header(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if not name:
            raise _bad_part("a part has no name", 'write Content-Disposition: form-data; name="image"')
        if name in self.found:
            raise _bad_part(f"two parts are named {name[:64]!r}", "send several texts as the lines of one part")
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        self.found[name] = RawInput(bytes(self._data), content_type)

    def _finish(self) -> None:
        self._is_complete = True


def _bad_part(problem: str, fix: str) -> Refusal:
    return Refusal(BAD_REQUEST, ErrorCode.BAD_INPUT, f"the multipart body can't be read: {problem}; {fix}")


def _too_large(limit_bytes: int) -> Refusal:
    message = f"the body has more than {show_bytes(limit_bytes)}: send less, or a smaller picture"
    return Refusal(TOO_LARGE, ErrorCode.TOO_LARGE, message)
