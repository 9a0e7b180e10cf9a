"""Pictures and sounds with classes: seven published benchmarks, and own data as a folder a class.

CIFAR-10 and CIFAR-100, binary versions (Krizhevsky 2009): the 10,000 test pictures of 32 x 32 pixels in three planes,
red, green and blue, each row by row. Of CIFAR-100 the fine labels count, as in all published results
    batches.meta.txt, test_batch.bin     ten names, one a line; a record: 1 byte label (0 to 9), 3,072 bytes of pixels
    fine_label_names.txt, test.bin       a hundred names; a record: 1 byte coarse label, 1 byte fine label, the pixels

Food-101 (Bossard et al. 2014): the 25,250 test pictures
    meta/classes.txt, meta/labels.txt    101 names of folders, one a line; the same as people write them
    meta/test.txt                        a picture a line: FOLDER/NUMBER, for images/FOLDER/NUMBER.jpg

Oxford Flowers-102 (Nilsback & Zisserman 2008): the 6,149 test pictures. The files have numbers and no names;
``flowers102.txt`` has the usual names, in the order of the numbers
    setid.mat, imagelabels.mat           ``tstid``: the test pictures' numbers; ``labels``: a picture's class, 1 to 102
    jpg/image_NNNNN.jpg

Country-211 (Radford et al. 2021, from YFCC100M): the 21,100 test pictures. Prompts need the countries' names:
``country211.txt`` has those of the CLIP paper
    test/CODE/*.jpg                      a folder a country, by its ISO 3166 code; ``train`` and ``valid`` are alike

ESC-50 (Piczak 2015): 2,000 sounds of five seconds in 50 classes; all folds are read, as for zero-shot results
    meta/esc50.csv                       columns filename (in audio/), fold, target (0 to 49), category, ...

Digits (Alpaydin & Kaynak 1998, UCI): the 1,797 handwritten ones that scikit-learn delivers, 8 x 8 pixels of 0 to 16

Own data: JPEG and PNG files, or WAV files. Underscores in a folder's name are read as blanks. Hidden files are skipped.
Any other file is an error: a picture that is silently left out would change the result
    CLASS/*.jpg
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.files import inside
from broker.protocol.errors import BadFile
from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, Record, of_files

CIFAR_SIDE = 32
FLOWERS = disk.names(Path(__file__).with_name("flowers102.txt"))
FLOWERS_FILES = ("imagelabels.mat", "setid.mat")
COUNTRIES = dict(line.split(maxsplit=1) for line in disk.names(Path(__file__).with_name("country211.txt")))
ESC50_INDEX = "meta/esc50.csv"
DIGITS = "digits"
DIGITS_MARGIN = 1  # pixels: the centre crop of a vision encoder cuts off about an eighth, and digits fill their square
_BRIGHTEST_DIGIT = 16


def _cifar(format_: str, file: str, names: str, *, label_bytes: int) -> Reader:
    return Reader.by_files(lambda top: _open_cifar(format_, top / file, top / names, label_bytes), file, names)


def _open_cifar(format_: str, file: Path, names: Path, label_bytes: int) -> Dataset:
    classes = tuple(name.replace("_", " ") for name in disk.names(names))
    record_bytes = label_bytes + 3 * CIFAR_SIDE * CIFAR_SIDE
    data = np.frombuffer(disk.contents(file), np.uint8)
    if not len(data) or len(data) % record_bytes:
        problem = f"has {len(data)} bytes, not a whole number of records of {record_bytes}: truncated"
        raise disk.damaged(file, problem)
    records = data.reshape(-1, record_bytes)

    def read(position: int) -> Record:
        label = int(records[position, label_bytes - 1])
        if label >= len(classes):
            problem = f"has label {label}, and {names.name} has {len(classes)} names"
            raise disk.damaged(file, problem, field=f"record {position}")
        planes = records[position, label_bytes:].reshape(3, CIFAR_SIDE, CIFAR_SIDE)
        return Record(f"{file.name}:{position}", disk.png(np.ascontiguousarray(planes.transpose(1, 2, 0))), label)

    return Dataset(format_, "classification", "image", len(records), read, classes)


def _food101(directory: Path) -> Dataset:
    meta = directory / "meta"
    folders = {name: label for label, name in enumerate(disk.names(meta / "classes.txt"))}
    labels = disk.names(meta / "labels.txt")
    if len(labels) != len(folders):
        raise disk.damaged(meta / "labels.txt", f"has {len(labels)} names, and classes.txt {len(folders)}")
    found = []
    for line, picture in enumerate(disk.names(meta / "test.txt"), start=1):
        folder, _, number = picture.partition("/")
        if folder not in folders or not number or "/" in number:
            problem = f"{picture!r:.60} is not a picture in a folder of classes.txt"
            raise disk.damaged(meta / "test.txt", problem, line=line)
        found.append((directory / "images" / f"{picture}.jpg", {"id": picture, "label": folders[folder]}))
    return of_files("food-101", "classification", found, classes=tuple(label.lower() for label in labels))


def _flowers102(directory: Path) -> Dataset:
    labels_file, splits_file = (directory / name for name in FLOWERS_FILES)
    labels, chosen = _matlab_array(labels_file, "labels"), _matlab_array(splits_file, "tstid")
    if wrong := [int(label) for label in labels if not 1 <= label <= len(FLOWERS)]:
        raise disk.damaged(labels_file, f"holds {wrong[0]}, and the classes are 1 to {len(FLOWERS)}", field="labels")
    if wrong := [int(number) for number in chosen if not 1 <= number <= len(labels)]:
        problem = f"names picture {wrong[0]}, and {labels_file.name} has {len(labels)}"
        raise disk.damaged(splits_file, problem, field="tstid")
    names = {f"image_{number:05}.jpg": int(labels[number - 1]) - 1 for number in chosen.tolist()}
    files = [(directory / "jpg" / name, {"id": name, "label": label}) for name, label in names.items()]
    return of_files("flowers-102", "classification", files, classes=FLOWERS)


def _matlab_array(path: Path, name: str) -> NDArray[np.int64]:
    """The numbers of one MATLAB array, as one row; a MATLAB file holds arrays and runs nothing."""
    from scipy.io import loadmat  # noqa: PLC0415 - an extra

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


def _has_countries(directory: Path) -> bool:
    """Whether it has the three splits, of folders of known codes."""
    splits = [directory / split for split in ("train", "valid", "test")]
    if not all(split.is_dir() for split in splits):
        return False
    found = {path.name for path in inside(splits[-1]) if path.is_dir()}
    return bool(found) and found <= COUNTRIES.keys()


def _country211(directory: Path) -> Dataset:
    """A sample may lack countries; their names are prompts nevertheless."""
    test = directory / "test"
    if unknown := [name for name in _folder_names(test) if name not in COUNTRIES]:
        raise disk.damaged(test / unknown[0], "is not a country code of this dataset")
    return _folders_of("country-211", test, tuple(COUNTRIES), tuple(COUNTRIES.values()))


def _esc50(directory: Path) -> Dataset:
    file = directory / ESC50_INDEX
    rows = csv.DictReader(io.StringIO(disk.text(file)))
    columns = ("filename", "target", "category")
    if missing := [column for column in columns if column not in (rows.fieldnames or ())]:
        raise disk.damaged(file, "is not a column", field=missing[0], line=1)
    sounds: list[tuple[Path, dict[str, Any]]] = []
    names: dict[int, str] = {}
    for row in rows:
        entry = disk.Entry(row, file, line=rows.line_num)
        target, name = entry.text("target"), entry.text("category")
        if not target.isdecimal():
            raise entry.error("target", f"{target!r} is not the number of a class")
        if names.setdefault(int(target), name) != name or not name:
            raise entry.error("category", f"{name!r} for class {target}, which was {names[int(target)]!r}")
        path = entry.path(directory / "audio", "filename")
        sounds.append((path, {"id": path.name, "label": int(target)}))
    if not sounds or set(names) != set(range(len(names))):
        raise disk.damaged(file, "doesn't count classes from 0 on", field="target")
    classes = tuple(names[label].replace("_", " ") for label in range(len(names)))
    return of_files("esc-50", "classification", sounds, medium="audio", classes=classes)


def digits() -> Dataset:
    """All digits, in the order of scikit-learn, as PNG files.

    Raises:
        BadFile: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - slow, and only for this
    except ImportError as error:
        raise BadFile(file=DIGITS, problem="needs scikit-learn", fix="install the [pocket] extra") from error
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / _BRIGHTEST_DIGIT)).astype(np.uint8)

    def read(position: int) -> Record:
        picture = disk.png(np.pad(pixels[position], DIGITS_MARGIN))
        return Record(f"digit-{position}", picture, int(labels[position]))

    return Dataset(DIGITS, "classification", "image", len(labels), read, tuple(str(digit) for digit in range(10)))


def _has_folders(directory: Path) -> bool:
    """Whether it holds at least two folders, and the first holds a picture or a sound."""
    below = [path for path in inside(directory) if path.is_dir()]
    known = disk.PICTURES | disk.SOUNDS
    return len(below) > 1 and any(path.suffix.lower() in known for path in inside(below[0]) if path.is_file())


def _own(directory: Path) -> Dataset:
    found = _folder_names(directory)
    return _folders_of("folders", directory, found, tuple(name.replace("_", " ") for name in found))


def _folder_names(directory: Path) -> list[str]:
    found = [path.name for path in inside(directory) if path.is_dir()]
    if not found:
        raise BadFile(file=str(directory), problem="holds no folders", fix="make a folder for each class")
    return found


def _folders_of(format_: str, directory: Path, folders: Sequence[str], classes: tuple[str, ...]) -> Dataset:
    """The files of folders, folder by folder, sorted by name; ``classes`` name the folders."""
    files = [
        (path, {"id": path.relative_to(directory).as_posix(), "label": label})
        for label, name in enumerate(folders)
        for path in _media_files(directory / name)
    ]
    if not files:
        raise BadFile(file=str(directory), problem="holds no pictures", fix="put pictures into its folders")
    sounds = {path.suffix.lower() in disk.SOUNDS for path, _ in files}
    if len(sounds) > 1:
        raise BadFile(file=str(directory), problem="holds both pictures and sounds", fix="give each a directory")
    return of_files(format_, "classification", files, medium="audio" if sounds.pop() else "image", classes=classes)


def _media_files(folder: Path) -> list[Path]:
    if not folder.is_dir():  # a benchmark's class without pictures in a sample
        return []
    found = inside(folder)
    if not found:
        raise BadFile(file=str(folder), problem="is an empty class", fix="put pictures into it, or remove it")
    for path in found:
        disk.media_type(path)
    return found


CIFAR10 = _cifar("cifar-10", "test_batch.bin", "batches.meta.txt", label_bytes=1)
CIFAR100 = _cifar("cifar-100", "test.bin", "fine_label_names.txt", label_bytes=2)
FOOD101 = Reader.by_files(_food101, "meta/classes.txt", "images")
FLOWERS102 = Reader.by_files(_flowers102, *FLOWERS_FILES)
COUNTRY211 = Reader(_country211, _has_countries)
ESC50 = Reader.by_files(_esc50, ESC50_INDEX)
OWN_FOLDERS = Reader(_own, _has_folders)
