"""Own labelled data: a folder a class, named after it, with JPEG and PNG files, or with WAV files.

    CLASS/*.jpg

Underscores in a folder's name are read as blanks. Hidden files are skipped. Any other file is an error: a picture that
is silently left out would change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Medium, Reader, of_files


def _recognises(directory: Path) -> bool:
    """Whether it holds at least two folders, and the first holds a picture or a sound."""
    below = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    known = disk.PICTURES | disk.SOUNDS
    return len(below) > 1 and any(path.suffix.lower() in known for path in below[0].iterdir() if path.is_file())


def _open(directory: Path) -> Dataset:
    found = folder_names(directory)
    return dataset("folders", directory, found, tuple(name.replace("_", " ") for name in found))


def folder_names(directory: Path) -> tuple[str, ...]:
    """The names of the folders, sorted.

    Raises:
        BadFile: there are no folders.
    """
    found = sorted(path.name for path in directory.glob("*") if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise BadFile(file=str(directory), problem="holds no folders", fix="make a folder for each class")
    return tuple(found)


def dataset(format_: str, directory: Path, found: Sequence[str], classes: tuple[str, ...]) -> Dataset:
    """The files of folders, folder by folder, sorted by name; ``classes`` name the folders.

    Raises:
        BadFile: a folder is empty, or something in it is not a picture or a sound.
    """
    files = [
        (path, {"id": path.relative_to(directory).as_posix(), "label": label})
        for label, name in enumerate(found)
        for path in _files(directory / name)
    ]
    if not files:
        raise BadFile(file=str(directory), problem="holds no pictures", fix="put pictures into its folders")
    media: set[Medium] = {"audio" if path.suffix.lower() in disk.SOUNDS else "image" for path, _ in files}
    if len(media) > 1:
        raise BadFile(file=str(directory), problem="holds both pictures and sounds", fix="give each a directory")
    return of_files(format_, "classification", files, medium=media.pop(), classes=classes)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():  # a benchmark's class without pictures in a sample
        return []
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        raise BadFile(file=str(folder), problem="is an empty class", fix="put pictures into it, or remove it")
    for path in found:
        disk.media_type(path)
    return found


READER = Reader(_open, _recognises)
