"""Frames of a video, and picture files, in one form: a small picture to compare, and bytes to send.

Owns the encoding of a frame to JPEG, once for all tasks.
"""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from broker.protocol.codec import RawInput
from s2m3.camera.change import HEIGHT, WIDTH, Thumbnail

QUALITY = 90  # of JPEG


class VideoFrame:
    """A decoded frame of PyAV."""

    def __init__(self, frame: Any, at_s: float) -> None:  # noqa: ANN401 - av is imported where a source is opened
        self._frame, self.at_s = frame, at_s

    def thumbnail(self) -> Thumbnail:
        """The frame, small."""
        small = self._frame.reformat(width=WIDTH, height=HEIGHT, format="rgb24", interpolation="AREA")
        return np.asarray(small.to_ndarray(), np.uint8)

    @cached_property
    def picture(self) -> RawInput:
        """The frame as JPEG, upright."""
        image = self._frame.to_image()
        if turned := getattr(self._frame, "rotation", 0):
            image = image.rotate(turned, expand=True)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return RawInput(file.getvalue(), "image/jpeg")


class PictureFile:
    """A picture file, sent as it is.

    Raises:
        OSError: its bytes aren't a picture, or only a part of one.
    """

    def __init__(self, data: bytes, at_s: float) -> None:
        self.at_s = at_s
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            content_type = Image.MIME[image.format or "JPEG"]
            image.draft("RGB", (4 * WIDTH, 4 * HEIGHT))
            small = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BOX)
        self._small = np.asarray(small, np.uint8)
        self.picture = RawInput(data, content_type)

    def thumbnail(self) -> Thumbnail:
        """The picture, small."""
        return self._small
