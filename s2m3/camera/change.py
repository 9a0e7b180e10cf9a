"""Whether a frame shows something else than the last one that was sent. Pure.

A frame is compared as a small picture, in which a camera's noise averages out. What counts is the share of its cells
whose colour changed: a person at the far end of a yard changes few cells much, and noise changes all of them a little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48  # cells of the small picture
LEAST_STEP = 16  # of 256, of red, green or blue: the cell has changed
LEAST_SHARE = 0.005  # of the cells: 16 of them

Thumbnail = NDArray[np.uint8]
"""A small picture (HEIGHT, WIDTH, 3), RGB."""


class Change:
    """Tells still frames from others.

    Args:
        least_share: the share of the picture that must differ; 0: no frame is still.
    """

    def __init__(self, least_share: float = LEAST_SHARE) -> None:
        self._least_share = least_share
        self._last: Thumbnail | None = None
        self.looked = self.still = 0

    def is_still(self, seen: Thumbnail) -> bool:
        """Whether a frame is as the last one that wasn't still; counts it."""
        self.looked += 1
        if self._last is not None and changed_share(self._last, seen) < self._least_share:
            self.still += 1
            return True
        self._last = seen
        return False

    @property
    def still_share(self) -> float:
        """The share of still frames so far."""
        return self.still / self.looked if self.looked else 0.0


def changed_share(before: Thumbnail, after: Thumbnail) -> float:
    """The share of cells, 0 to 1, whose colour changed."""
    difference = np.abs(before.astype(np.int16) - after.astype(np.int16))
    return float((difference.max(axis=-1) >= LEAST_STEP).mean())
