"""Values of a request, decoded and checked: pictures, lines of text, arrays of other nodes.

Owns the limits of a sensor's inputs and the error sentences about them. Knows no network. Invariant: any bytes become
a value or a ``RequestFailed``; an error of a decoder never escapes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence, Sized

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array, Tensors
from edge_agent.modules import Value
from edge_agent.runtime.out_of_memory import is_out_of_memory

MAX_PIXELS = 50_000_000  # a 48-megapixel camera; 150 MB when decoded
# The longer side divided by the shorter. A network that scales the shorter side to its own size would make gigabytes
# of a very thin picture; one that scales the longer side would leave nothing of the shorter.
MAX_SIDES = 16
MAX_LINES = 64
MAX_LINE_CHARACTERS = 2000
FORMATS = ("JPEG", "PNG")
TEXT = "text"
"""How a node gives a text to another: an array of this name, U8 (n,), the text in UTF-8."""


def picture(value: Value) -> Image.Image:
    """Decode a picture: upright, RGB, transparency over white.

    Raises:
        RequestFailed: ``bad_input`` when it isn't a JPEG or PNG, is truncated, has too many pixels, or is too thin.
    """
    data = sent(value, "a picture")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # The header alone is read so far: nothing is decoded before its size is known.
            size = f"{image.width} x {image.height} pixels"
            reason = f"{size}, at most {MAX_PIXELS} are allowed"
            if image.width * image.height <= MAX_PIXELS:
                reason = f"{size}, one side may be at most {MAX_SIDES} times the other"
                if max(image.size) <= MAX_SIDES * min(image.size):
                    return _rgb(image)
    except Exception as error:  # hostile bytes make decoders raise anything, warnings included
        if is_out_of_memory(error):
            raise
        # A library's own message may name an object in memory; a person can use the kind of error.
        reason = "truncated" if "truncated" in str(error) else _kind(error)
    raise bad_input(f"this is not a picture that can be read ({reason}): send a JPEG or PNG")


def lines(value: Value) -> list[str]:
    """Split a text into its lines that aren't empty, without surrounding blanks; a sensor sent it, or a node gave it.

    Raises:
        RequestFailed: ``bad_input`` when it isn't UTF-8, has no text, too many lines, or one that is too long;
            ``module_failed`` when a node gives no text: the task is wired wrongly.
    """
    data = value.data if isinstance(value, RawInput) else _given_text(value)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise bad_input("this text is not UTF-8: send text/plain in UTF-8") from error
    found = [stripped for line in text.splitlines() if (stripped := line.strip())]
    if not found:
        raise bad_input("this text has no words: send one text a line")
    if len(found) > MAX_LINES:
        raise bad_input(f"this text has {len(found)} lines, at most {MAX_LINES} are allowed: send fewer")
    if (longest := max(map(len, found))) > MAX_LINE_CHARACTERS:
        raise bad_input(
            f"a line of this text has {longest} characters, at most {MAX_LINE_CHARACTERS} are allowed: shorten it"
        )
    return found


def text_array(text: str) -> Array:
    """A text as the array ``TEXT`` that ``lines`` takes from another node: U8 (n,)."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


def array(value: Value, name: str, shape: Sequence[int | None]) -> Array:
    """Take a float32 array of another node; None stands for any length.

    Raises:
        RequestFailed: ``module_failed`` when there is no such array: the task is wired wrongly.
    """
    found = None if isinstance(value, RawInput) else value.get(name)
    fits = (
        found is not None
        and found.dtype == np.float32
        and len(found.shape) == len(shape)
        and all(want is None or want == length for want, length in zip(shape, found.shape, strict=True))
        and bool(np.isfinite(found).all())
    )
    if found is None or not fits:
        wanted = " x ".join("n" if length is None else str(length) for length in shape)
        given = "what a sensor sent" if isinstance(value, RawInput) else describe(value)
        raise wrong_needs(f"this module needs {name} (float32 {wanted}, finite) and was given {given}")
    return found


def one_question(lines: Sized) -> None:
    """Refuse several lines, or their embeddings (n, e), where one question is asked.

    Raises:
        RequestFailed: ``bad_input``: the sensor's text had several lines.
    """
    if len(lines) != 1:
        raise bad_input(f"the question has {len(lines)} lines: send one question on one line")


def count(values: Sequence[Value], *allowed: int) -> None:
    """Check how many values a module is given.

    Raises:
        RequestFailed: ``module_failed`` when the task is wired wrongly.
    """
    if len(values) not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise wrong_needs(f"this module takes {wanted} values, not {len(values)}")


def describe(value: Value) -> str:
    """Names, dtypes and shapes of arrays, for a sentence."""
    if isinstance(value, RawInput):
        return f"{len(value.data)} bytes"
    return ", ".join(f"{name} ({a.dtype} {' x '.join(map(str, a.shape))})" for name, a in value.items()) or "nothing"


def _given_text(tensors: Tensors) -> bytes:
    array = tensors.get(TEXT)
    if array is None or array.dtype != np.uint8 or array.ndim != 1:
        given = describe(tensors)
        raise wrong_needs(f"this module needs a text (an input, or an array {TEXT}, uint8 n) and was given {given}")
    if not array.size:
        raise bad_input("another node found no words in what was sent: send something that has some")
    return array.tobytes()


def sent(value: Value, kind: str) -> bytes:
    """The bytes that a sensor sent; ``kind`` is for the sentence.

    Raises:
        RequestFailed: ``module_failed`` when another node gave it: the task is wired wrongly.
    """
    if isinstance(value, RawInput):
        return value.data
    raise wrong_needs(f"this module needs {kind} and was given {describe(value)}")


def bad_input(sentence: str) -> RequestFailed:
    """The error about what a sensor sent."""
    return RequestFailed(ErrorCode.BAD_INPUT, sentence)


def wrong_needs(sentence: str) -> RequestFailed:
    """The error about values that a module can't take because its task is wired wrongly; adds what to do."""
    return RequestFailed(ErrorCode.MODULE_FAILED, f"{sentence}: correct the task's needs")


def _rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)  # a copy, fully decoded
    if upright.mode.startswith("I"):  # 16 bits of grey: keep the upper eight
        upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert("RGB")


def _kind(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "unknown format"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_PIXELS} pixels"
    return "damaged"
