"""Anybody's labelled pictures: a folder a class, named after it; in it JPEG and PNG files, or WAV files.

    CLASS/*.jpg

Underscores in a folder's name are read as blanks. Hidden files are passed over, other files are an error: a picture
that is left out in silence would change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, Record, disk


def recognises(directory: Path) -> bool:
    """Whether it holds at least two folders, and the first holds a picture or a sound."""
    below = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    known = disk.PICTURES | disk.SOUNDS
    return len(below) > 1 and any(path.suffix.lower() in known for path in below[0].iterdir() if path.is_file())


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open a folder of folders.

    Raises:
        BadFile: there are no folders, or one has no pictures, or something else in it.
    """
    found = folder_names(directory)
    return dataset("folders", directory, found, tuple(name.replace("_", " ") for name in found))


def folder_names(directory: Path) -> tuple[str, ...]:
    """The names of the folders, sorted.

    Raises:
        BadFile: there are none.
    """
    found = sorted(path.name for path in directory.glob("*") if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise BadFile(file=str(directory), problem="holds no folders", fix="make a folder for each class")
    return tuple(found)


def dataset(format_: str, directory: Path, found: Sequence[str], classes: tuple[str, ...]) -> Dataset:
    """Pictures in folders, folder by folder, each in order of its files' names; ``classes`` name the folders.

    Raises:
        BadFile: a folder is empty, or something in it is no picture.
    """
    files = [(path, label) for label, name in enumerate(found) for path in _files(directory / name)]
    if not files:
        raise BadFile(file=str(directory), problem="holds no pictures", fix="put pictures into its folders")
    media = {_medium(path) for path, _ in files}
    if len(media) > 1:
        raise BadFile(file=str(directory), problem="holds both pictures and sounds", fix="give each a directory")

    def read(position: int) -> Record:
        path, label = files[position]
        return Record(path.relative_to(directory).as_posix(), disk.media(path), label)

    return Dataset(format_, "classification", media.pop(), len(files), read, classes)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():  # a benchmark's class without pictures in a sample
        return []
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        raise BadFile(file=str(folder), problem="is an empty class", fix="put pictures into it, or remove it")
    for path in found:
        if path.suffix.lower() not in disk.PICTURES | disk.SOUNDS:
            raise BadFile(file=str(path), problem="is no JPEG, PNG or WAV by its name", fix="convert it, or remove it")
    return found


def _medium(path: Path) -> Literal["image", "audio"]:
    return "image" if path.suffix.lower() in disk.PICTURES else "audio"
