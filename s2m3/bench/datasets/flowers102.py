"""Oxford Flowers-102 (Nilsback & Zisserman 2008), of which the 6,149 test pictures are read.

    setid.mat          ``tstid``: numbers of the test pictures (``trnid`` and ``valid`` are the others)
    imagelabels.mat    ``labels``: the class of each picture, 1 to 102
    jpg/image_NNNNN.jpg

The files have numbers and no names. ``flowers102.txt`` has the usual names, in the order of the numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

FILES = ("imagelabels.mat", "setid.mat")
CLASSES = disk.names(Path(__file__).with_suffix(".txt"))


def _open(directory: Path) -> Dataset:
    labels_file, splits_file = (directory / name for name in FILES)
    labels, chosen = _array(labels_file, "labels"), _array(splits_file, "tstid")
    if wrong := [int(label) for label in labels if not 1 <= label <= len(CLASSES)]:
        raise disk.damaged(labels_file, f"holds {wrong[0]}, and the classes are 1 to {len(CLASSES)}", field="labels")
    if wrong := [int(number) for number in chosen if not 1 <= number <= len(labels)]:
        problem = f"names picture {wrong[0]}, and {labels_file.name} has {len(labels)}"
        raise disk.damaged(splits_file, problem, field="tstid")
    names = {f"image_{number:05}.jpg": int(labels[number - 1]) - 1 for number in chosen.tolist()}
    files = [(directory / "jpg" / name, {"id": name, "label": label}) for name, label in names.items()]
    return of_files("flowers-102", "classification", files, classes=CLASSES)


def _array(path: Path, name: str) -> NDArray[np.int64]:
    """The numbers of one MATLAB array, as one row; a MATLAB file holds arrays and runs nothing."""
    disk.contents(path)  # has the clear error of a missing file
    try:
        found = np.asarray(loadmat(path, variable_names=[name])[name]).ravel().astype(np.int64)
    except KeyError as error:
        raise disk.damaged(path, "is missing", field=name) from error
    except Exception as error:  # a damaged file makes its reader raise anything
        raise disk.damaged(path, "can't be read as a MATLAB file") from error
    if not len(found):
        raise disk.damaged(path, "is empty", field=name)
    return found


READER = Reader.by_files(_open, *FILES)
