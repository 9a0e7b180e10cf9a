"""CIFAR-100, binary version (Krizhevsky 2009): ``cifar-100-binary/``, of which the 10,000 test pictures are read.

    fine_label_names.txt   a hundred names, one a line
    test.bin               a record: 1 byte coarse label, 1 byte fine label (0 to 99), 3,072 bytes as in CIFAR-10

The fine labels are the ones that everybody reports.
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import Dataset, cifar

FILE, NAMES = "test.bin", "fine_label_names.txt"


def recognises(directory: Path) -> bool:
    """Whether its two files are there."""
    return (directory / FILE).is_file() and (directory / NAMES).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the test pictures.

    Raises:
        BadFile: a file is missing, or truncated.
    """
    return cifar.dataset("cifar-100", directory / FILE, directory / NAMES, label_bytes=2)
