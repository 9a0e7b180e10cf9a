"""The 1,797 handwritten digits that scikit-learn delivers (Alpaydin & Kaynak 1998, UCI): labels without a download.

A digit has 8 x 8 pixels of 0 to 16. It becomes a PNG with a margin of one pixel: the centre crop of a vision encoder
cuts off about an eighth, and the digits fill their square.
"""

from __future__ import annotations

import numpy as np

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Record

NAME = "digits"
MARGIN = 1
_BRIGHTEST = 16


def dataset() -> Dataset:
    """All digits, in the order of scikit-learn.

    Raises:
        BadFile: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - slow, and only for this
    except ImportError as error:
        raise BadFile(file=NAME, problem="needs scikit-learn", fix="install the [pocket] extra") from error
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / _BRIGHTEST)).astype(np.uint8)

    def read(position: int) -> Record:
        return Record(f"digit-{position}", disk.png(np.pad(pixels[position], MARGIN)), int(labels[position]))

    return Dataset(NAME, "classification", "image", len(labels), read, tuple(str(digit) for digit in range(10)))
