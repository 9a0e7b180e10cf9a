"""Values of a request, decoded and checked: pictures, lines of text, arrays of other nodes.

Owns the limits of a sensor's inputs and the error sentences about them. Knows no network. Invariant: any bytes become
a value or a ``RequestFailed``; an error of a decoder never escapes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence, Sized

import numpy as np
from PIL import Image

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array, Tensors
from edge_agent.modules import Value
from edge_agent.modules.inputs import jpeg_file, png_file
from edge_agent.modules.inputs.limits import (
    MAX_LINE_CHARACTERS,
    MAX_LINES,
    MAX_PICTURE_BYTES,
    MAX_PIXELS,
    MAX_SIDES,
    MAX_TEXT_BYTES,
)
from edge_agent.modules.inputs.picture_file import PictureFile, Unreadable, too_large
from edge_agent.runtime.out_of_memory import is_out_of_memory

_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation
_BAND_PIXELS = 250_000  # are converted at once: a copy of a whole picture may be 200 MB
TEXT = "text"
"""How a node gives a text to another: an array of this name, U8 (n,), the text in UTF-8."""


def picture(value: Value) -> Image.Image:
    """Decode a picture: upright, RGB, transparency over white.

    Raises:
        RequestFailed: ``bad_input`` when it isn't a JPEG or PNG, is truncated, has too many pixels, or is too thin;
            ``too_large`` when decoding it takes too much memory or work. Nothing is decoded then.
    """
    data = sent(value, "a picture")
    try:
        return _decoded(_checked(file_of(data)))
    except RequestFailed:
        raise
    except Exception as error:  # hostile bytes make decoders raise anything, warnings included
        if is_out_of_memory(error):
            raise
        raise unreadable(_kind(error)) from error


def unreadable(reason: str) -> RequestFailed:
    """The error about a file that isn't a picture, or one that isn't taken."""
    return bad_input(f"this is not a picture that can be read ({reason}): send a JPEG or PNG")


def resized_part(
    picture: Image.Image,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """The part of a picture in a box, resized: ``picture.crop(box).resize(size, resample)`` without the copy.

    Pillow resizes across, row by row, and then down; so bands of rows give the same pixels.
    """
    left, top, right, bottom = box
    across = Image.new(picture.mode, (size[0], bottom - top))
    rows = max(1, _BAND_PIXELS // (right - left))
    for start in range(top, bottom, rows):
        end = min(start + rows, bottom)
        band = picture.crop((left, start, right, end)).resize((size[0], end - start), resample)
        across.paste(band, (0, start - top))
    return across.resize(size, resample)


def lines(value: Value) -> list[str]:
    """Split a text into its lines that aren't empty, without surrounding blanks; a sensor sent it, or a node gave it.

    Raises:
        RequestFailed: ``bad_input`` when it isn't UTF-8, has no text, too many lines, or one that is too long;
            ``module_failed`` when a node gives no text: the task is wired wrongly.
    """
    data = value.data if isinstance(value, RawInput) else _given_text(value)
    if len(data) > MAX_TEXT_BYTES:
        raise too_large(f"this text has {len(data)} bytes, at most {MAX_TEXT_BYTES} are allowed: send a shorter one")
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


def file_of(data: bytes) -> PictureFile:
    """The size and the cost of a picture, read before it is decoded.

    Raises:
        Unreadable: it isn't a JPEG or PNG, or damaged.
        RequestFailed: ``too_large``: it takes too much work.
    """
    if data.startswith(jpeg_file.MAGIC):
        return jpeg_file.read(data)
    if data.startswith(png_file.MAGIC):
        return png_file.read(data)
    raise Unreadable("unknown format")


def _checked(file: PictureFile) -> PictureFile:
    size = f"{file.width} x {file.height} pixels"
    if file.width * file.height > MAX_PIXELS:
        raise Unreadable(f"{size}, at most {MAX_PIXELS} are allowed")
    if max(file.width, file.height) > MAX_SIDES * min(file.width, file.height):
        raise Unreadable(f"{size}, one side may be at most {MAX_SIDES} times the other")
    if file.memory_bytes > MAX_PICTURE_BYTES:
        raise too_large(
            f"this picture takes {file.memory_bytes / 1e6:.0f} MB of memory to read ({size}, {file.decoded}), at most "
            f"{MAX_PICTURE_BYTES / 1e6:.0f} MB are allowed: send one with fewer pixels"
        )
    return file


def _decoded(file: PictureFile) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(file.data), formats=(file.kind,))
    if image.size != (file.width, file.height):
        raise Unreadable("damaged")
    image.load()
    if file.orientation in _TRANSPOSED:
        image = image.transpose(_TRANSPOSED[file.orientation])
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb, rows = Image.new("RGB", image.size), max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_rgb(band), (0, top))
    return rgb


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey: keep the upper eight
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _kind(error: Exception) -> str:
    """The kind of error in a few words: a library's own message may name an object in memory."""
    if isinstance(error, Unreadable):
        return str(error)
    return "truncated" if "truncated" in str(error) else "damaged"
