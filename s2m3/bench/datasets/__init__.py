"""Labelled data as it is published, and a reader for each format.

Owns the table of formats, and finding out which one a directory has. ``records`` has the types.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from broker.files import inside
from broker.protocol.errors import BadFile
from s2m3.bench.datasets import captions, classes, questions
from s2m3.bench.datasets.records import Dataset, Reader, Record

__all__ = ["FORMATS", "Dataset", "Record", "detect", "evenly", "find", "open_data"]

FORMATS: Mapping[str, Reader] = {
    "cifar-10": classes.CIFAR10,
    "cifar-100": classes.CIFAR100,
    "food-101": classes.FOOD101,
    "flowers-102": classes.FLOWERS102,
    "country-211": classes.COUNTRY211,
    "flickr30k": captions.FLICKR30K,
    "coco-captions": captions.COCO,
    "vqa-v2": questions.VQA_V2,
    "textvqa": questions.TEXTVQA,
    "esc-50": classes.ESC50,
    "captions": captions.OWN_CAPTIONS,
    "vqa": questions.OWN_QUESTIONS,
    "folders": classes.OWN_FOLDERS,  # last: any directory of folders with pictures looks like it
}
"""Format -> its reader: ten published benchmarks, and three forms of own data."""


def detect(directory: Path) -> str | None:
    """The first format that a directory looks like, by its files' names; None when it looks like no format."""
    return next((name for name, reader in FORMATS.items() if reader.recognises(directory)), None)


def open_data(name: str | Path, format_: str | None = None) -> Dataset:
    """A directory, opened as the named format, or as the one that it looks like; or scikit-learn's ``digits``.

    Raises:
        BadFile: there is no such format; it is not a directory, looks like no format, or its index is malformed.
    """
    if name == classes.DIGITS:
        return classes.digits()
    directory = Path(name)
    _check_directory(directory, "name the directory of the unpacked data")
    found = format_ or detect(directory)
    if found is None:
        raise BadFile(
            file=str(directory),
            problem="looks like no known format",
            fix=f"name the directory of the unpacked data, or its --format: {', '.join(FORMATS)}",
        )
    if found not in FORMATS:
        raise BadFile(file="--format", problem=f"{found!r} is not a format", fix=f"name one of: {', '.join(FORMATS)}")
    return FORMATS[found].open(directory)


def evenly(size: int, limit: int | None) -> list[int]:
    """Positions spread evenly over all records, so that a few records of sorted data cover all classes."""
    count = size if limit is None else min(limit, size)
    return [at * size // count for at in range(count)]


def find(directory: Path) -> dict[str, tuple[Path, str]]:
    """The benchmarks in a directory and below it, by a name from their path: where each is, and its format.

    Raises:
        BadFile: it is not a directory, or nothing in it looks like a format.
    """
    _check_directory(directory, "name the directory that holds the benchmarks")
    found: dict[str, tuple[Path, str]] = {}
    _find(directory, directory, found, deeper=2)
    if not found:
        raise BadFile(
            file=str(directory),
            problem="holds no benchmark",
            fix=f"unpack benchmarks below it, each as published; known: {', '.join(FORMATS)}",
        )
    return found


def _check_directory(directory: Path, fix: str) -> None:
    if not directory.is_dir():
        raise BadFile(file=str(directory), problem="is not a directory", fix=fix)


def _find(top: Path, directory: Path, found: dict[str, tuple[Path, str]], *, deeper: int) -> None:
    """Looks below first: a directory of benchmarks may look like a folder of folders of pictures."""
    name = detect(directory)
    known = len(found)
    if deeper and name in {None, "folders"}:
        for below in (path for path in inside(directory) if path.is_dir()):
            _find(top, below, found, deeper=deeper - 1)
    if name is not None and len(found) == known:
        found[directory.relative_to(top).as_posix() if directory != top else directory.name] = (directory, name)
