"""Values of a request, decoded and checked: pictures, lines of text, arrays of other nodes.

Owns the limits of a sensor's inputs and the error sentences about them. Knows no network. Invariant: any bytes become
a value or a ``RequestFailed``; an error of a decoder never escapes.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence, Sized

import numpy as np
from PIL import Image, ImageChops

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.media import CALLED, is_text, wrong_kind
from broker.protocol.sizes import show_bytes, show_sizes
from broker.protocol.tensors import Array, Tensors
from broker.text_lines import lines_of
from edge_agent.device.footprint import free_bytes
from edge_agent.modules import Value
from edge_agent.modules.inputs import jpeg_file, png_file, text_file, webp_file
from edge_agent.modules.inputs.file_kinds import kind_of
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
_WANTED = "send a JPEG, PNG or WebP"
_BAND_PIXELS = 250_000  # are converted at once: a copy of a whole picture may be 200 MB
_WHITE, _FILLED, _NEARLY = 255, 128, 4  # levels of grey
_SMALL_BYTES = 8 * 2**20  # of a picture for which nobody asks the system how much memory is free
_RESERVE_BYTES = 64 * 2**20  # that stay free for the machine
TEXT = "text"
"""How a node gives a text to another: an array of this name, U8 (n,), the text in UTF-8."""


def picture(value: Value) -> Image.Image:
    """Decode a picture: upright, RGB, transparency over white.

    Raises:
        MemoryError: this machine has too little free memory now; another device, or a later moment, may have it.
        RequestFailed: ``bad_input`` when it isn't a JPEG, PNG or WebP, lacks pixels, has too many, or is too thin;
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
    return bad_input(f"this is not a picture that can be read ({reason}): {_WANTED}")


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
        RequestFailed: ``bad_input`` when it isn't text, has no words, too many lines, or one that is too long;
            ``module_failed`` when a node gives no text: the task is wired wrongly.
    """
    data = value.data if isinstance(value, RawInput) else _given_text(value)
    if len(data) > MAX_TEXT_BYTES:
        size, limit = show_sizes(len(data), MAX_TEXT_BYTES)
        raise too_large(f"this text has {size}, at most {limit} are allowed: send a shorter one")
    try:
        text = text_file.characters(value if isinstance(value, RawInput) else RawInput(data))
    except text_file.NotText as error:
        raise bad_input(f"this is not UTF-8 text ({error}): send text/plain in UTF-8") from error
    found = [stripped for line in lines_of(text) if (stripped := line.strip())]
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
        return show_bytes(len(value.data))
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
        Unreadable: it is damaged.
        RequestFailed: ``too_large``: it takes too much work; ``bad_input``: it is of another kind.
    """
    if data.startswith(jpeg_file.MAGIC):
        return jpeg_file.read(data)
    if data.startswith(png_file.MAGIC):
        return png_file.read(data)
    if webp_file.is_webp(data):
        return webp_file.read(data)
    if (kind := kind_of(data)) is None and data.strip(b"\0") and is_text(data):
        raise bad_input(f"{wrong_kind('this task', 'a picture', CALLED['text'])}: {_WANTED}")
    if kind is None:
        raise Unreadable("unknown format")
    raise bad_input(f"this is {kind}: {_WANTED}")


def _checked(file: PictureFile) -> PictureFile:
    size = f"{file.width} x {file.height} pixels"
    if file.width * file.height > MAX_PIXELS:
        raise Unreadable(f"{size}, at most {MAX_PIXELS} are allowed")
    if max(file.width, file.height) > MAX_SIDES * min(file.width, file.height):
        raise Unreadable(f"{size}, one side may be at most {MAX_SIDES} times the other")
    if file.memory_bytes > MAX_PICTURE_BYTES:
        needed, limit = show_sizes(file.memory_bytes, MAX_PICTURE_BYTES)
        raise too_large(
            f"this picture takes {needed} of memory to read ({size}, {file.decoded}), at most {limit} are allowed: "
            "send one with fewer pixels"
        )
    free = free_bytes() if file.memory_bytes > _SMALL_BYTES else None
    if free is not None and free < file.memory_bytes + _RESERVE_BYTES:  # the system would end this process
        needed, there = show_sizes(file.memory_bytes, free)
        raise MemoryError(f"this picture takes {needed}, and {there} are free")
    return file


def _decoded(file: PictureFile) -> Image.Image:
    image = _whole(file)
    if file.orientation in _TRANSPOSED:
        image = image.transpose(_TRANSPOSED[file.orientation])
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb, rows = Image.new("RGB", image.size), max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_rgb(ImageChops.invert(band) if file.has_plain_inks else band), (0, top))  # Pillow inverts all inks
    return rgb


def _whole(file: PictureFile) -> Image.Image:
    """The decoded pixels of a file that has all of them.

    Where pixels are missing, libjpeg makes flat grey ones, in silence. So a picture that ends in such, or whose file
    lacks its end, is decoded once more with other bytes behind its pixels: it is whole if these change nothing.
    """
    image = _opened(file, file.data)
    if file.doubt is None or (file.doubt.last is not None and not _is_filled(image, file.doubt.last)):
        return image
    sum_ = _checksum(image)
    del image
    image = _opened(file, file.doubt.padded)
    if _checksum(image) != sum_:
        raise Unreadable("truncated")
    return image


def _opened(file: PictureFile, data: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(data), formats=(file.kind,))
    if image.size != (file.width, file.height):
        raise Unreadable("damaged")
    image.load()
    return image.copy() if file.kind == "WEBP" else image  # libwebp's buffers go with the first one


def _is_filled(image: Image.Image, last: tuple[int, int]) -> bool:
    """Whether the last pixels of a picture are about as libjpeg makes them where the file has no more."""
    width, height = image.size
    box = ((width - 1) // last[0] * last[0], (height - 1) // last[1] * last[1], width, height)
    levels = image.crop(box).convert("RGB").convert("L").getextrema()
    return all(isinstance(level, int) and abs(level - _FILLED) <= _NEARLY for level in levels)


def _checksum(image: Image.Image) -> int:
    sum_, rows = 0, max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        sum_ = zlib.crc32(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes(), sum_)
    return sum_


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey: keep the upper eight
        deep = np.asarray(image).astype(np.int64)
        grey = (deep >> 8).clip(0, 255).astype(np.uint8)
        grey[deep == image.info.get("transparency", -1)] = _WHITE
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _kind(error: Exception) -> str:
    """The kind of error in a few words: a library's own message may name an object in memory."""
    if isinstance(error, Unreadable):
        return str(error)
    return "truncated" if "truncated" in str(error) else "damaged"
