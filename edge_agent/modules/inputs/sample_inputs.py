"""Sample inputs: by them a device measures how long a module's pass takes, before the first request.

Owns the pictures, sounds, texts and arrays; a module's steps choose among them (``sample``). They are always the same,
and about as large as the catalogue plans. A pass takes about the same time for any content, except in decoders, whose
texts may be longer or shorter: the first requests correct the measurement.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image

from broker.protocol.codec import RawInput
from broker.protocol.tensors import Array, Tensors

PICTURE, OTHER_PICTURE = (1280, 720), (48, 36)  # pixels; the first has about 250 kB as JPEG
TEXTS = 4  # of seven tokens with start and end
SOUND_S, SOUND_HZ = 2.0, 16_000


@cache
def picture() -> RawInput:
    """A JPEG as a camera sends it: large soft shapes, and as much fine grain as makes its size."""
    numbers = np.random.default_rng(0)
    width = PICTURE[0]
    shapes = Image.fromarray(numbers.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize(PICTURE)
    pixels = np.array(shapes)  # (720, 1280, 3)
    for row in pixels:  # one by one: all of them in float64 took 55 MB
        row[:] = (row + numbers.normal(0, 7, (width, 1))).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return RawInput(out.getvalue(), "image/jpeg")


def other_picture() -> RawInput:
    """A small picture of other proportions, to see which lengths depend on a picture."""
    out = io.BytesIO()
    Image.new("RGB", OTHER_PICTURE, (90, 120, 150)).save(out, "PNG")
    return RawInput(out.getvalue(), "image/png")


def texts() -> RawInput:
    """Four captions, one a line."""
    return RawInput("\n".join(f"a photo of a {what}" for what in ("dog", "cat", "cup", "boat")).encode(), "text/plain")


def text() -> RawInput:
    """One short text."""
    return RawInput(b"dog", "text/plain")


def question() -> RawInput:
    """One question on one line."""
    return RawInput(b"what is there on the table?", "text/plain")


@cache
def sound(seconds: float = SOUND_S) -> RawInput:
    """A wav file, a tone that rises and falls."""
    at_s = np.arange(int(seconds * SOUND_HZ)) / SOUND_HZ
    tone = 0.3 * np.sin(2 * np.pi * (220 * at_s + 20 * np.sin(3 * at_s)))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_HZ)
        file.writeframes((tone * 32767).astype("<i2").tobytes())
    return RawInput(out.getvalue(), "audio/wav")


def arrays(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Another node's arrays, float32, by name: small numbers, none of them zero."""
    made: dict[str, Array] = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        made[name] = (np.sin(np.arange(1, count + 1)) / 10).astype(np.float32).reshape(shape)
    return made
