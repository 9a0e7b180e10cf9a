"""A picture's pixels as a network takes them, by the values of ``PicturePreparation``.

Owns the arithmetic, which gives the bits of transformers' image processors on Pillow. Knows no network and no file.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from broker.protocol.preparation import PicturePreparation
from broker.protocol.tensors import Array
from edge_agent.modules.inputs import decoding

_LEVELS = 256  # of a colour


def pixels(picture: Image.Image, how: PicturePreparation) -> Array:
    """The pixels float32 (1, 3, height, width) of a picture in RGB."""
    colours = np.asarray(_resized(picture, how))  # (h, w, 3)
    if how.crop is not None:
        colours = _centre_of(colours, *how.crop)
    made = np.empty((1, 3, *colours.shape[:2]), np.float32)
    for index, levels in enumerate(_levels(how)):
        np.take(levels, colours[:, :, index], out=made[0, index])
    return made


def _resized(picture: Image.Image, how: PicturePreparation) -> Image.Image:
    filters = Image.Resampling[how.resample.upper()]
    if how.centre is not None:
        side = max(1, int(min(picture.size) * how.centre))
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        height, width = how.size or (how.shorter or side, how.shorter or side)
        box = (left, top, left + side, top + side)
        return decoding.resized_part(picture, box, (width, height), filters)
    if how.size is not None:
        return picture.resize(how.size[::-1], filters)
    if how.shorter is not None:
        short, long = sorted(picture.size)
        longer = int(how.shorter * long / short)
        size = (how.shorter, longer) if picture.width <= picture.height else (longer, how.shorter)
        return picture.resize(size, filters)
    return picture


def _centre_of(colours: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The centre (height, width) of a picture (h, w, 3), black where the picture has no pixels."""
    (rows, to_rows), (columns, to_columns) = _cut(len(colours), height), _cut(colours.shape[1], width)
    cut = colours[rows, columns]
    if cut.shape[:2] == (height, width):
        return cut
    made = np.zeros((height, width, 3), np.uint8)
    made[to_rows, to_columns] = cut
    return made


def _cut(length: int, wanted: int) -> tuple[slice, slice]:
    """Which of a picture's rows (or columns) are taken, and where these then are; an odd rest is as in transformers."""
    before = (length - wanted) // 2
    if before >= 0:
        return slice(before, before + wanted), slice(0, wanted)
    return slice(0, length), slice(-before, length - before)


@lru_cache(maxsize=64)
def _levels(how: PicturePreparation) -> NDArray[np.float32]:
    """For each colour the number that each level becomes: (3, 256). Three small tables are faster than arithmetic."""
    scaled = (np.arange(_LEVELS, dtype=np.float64) * how.scale).astype(np.float32)
    mean, std = np.array(how.mean, np.float32)[:, None], np.array(how.std, np.float32)[:, None]
    return (scaled - mean) / std
