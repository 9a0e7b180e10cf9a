"""CIFAR-10, binary version (Krizhevsky 2009): ``cifar-10-batches-bin/``, of which the 10,000 test pictures are read.

batches.meta.txt   ten names, one a line
test_batch.bin     a record: 1 byte label (0 to 9), 3,072 bytes of pixels: 1,024 red, then green, then blue, row-major
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import Dataset, cifar

FILE, NAMES = "test_batch.bin", "batches.meta.txt"


def recognises(directory: Path) -> bool:
    """Whether its two files are there."""
    return (directory / FILE).is_file() and (directory / NAMES).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the test pictures.

    Raises:
        BadFile: a file is missing, or truncated.
    """
    return cifar.dataset("cifar-10", directory / FILE, directory / NAMES, label_bytes=1)
