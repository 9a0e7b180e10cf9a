"""Labelled data as others publish it: one small reader a format, and what all of them give.

Owns the record, the table of formats and finding out which one a directory holds. Knows no model and no metric.

A reader opens a directory: it reads names and indexes at once, media one by one while it is iterated. Records come in
the order in which the format lists them, always the same, so that a run can go on at a position. Malformed data is one
``BadFile`` with file, line or field, problem and fix: at opening where the index shows it, else at its record.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, cast

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile

Kind = Literal["classification", "retrieval", "vqa"]


@dataclass(frozen=True)
class Record:
    """One picture or sound, and what people say of it."""

    id: str
    media: RawInput
    label: int | None = None  # classification: an index into the dataset's classes
    captions: tuple[str, ...] = ()  # retrieval
    question: str = ""  # vqa
    choices: tuple[str, ...] = ()  # vqa: the possible answers, when the data names them
    answers: tuple[str, ...] = ()  # vqa: what people answered


@dataclass(frozen=True)
class Dataset:
    """An opened directory.

    Args:
        format: The name of its format, one of ``FORMATS``.
        kind: What its records are labelled with.
        medium: What its media are.
        size: How many records it has.
        read: Makes the record at a position; raises BadFile when it is malformed.
        classes: The classes' names, for classification.
        texts: All captions of all records in order, for retrieval.
    """

    format: str
    kind: Kind
    medium: Literal["image", "audio"]
    size: int
    read: Callable[[int], Record]
    classes: tuple[str, ...] = ()
    texts: tuple[tuple[str, ...], ...] = ()  # captions by record

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """The records from one position to another, one at a time.

        Raises:
            BadFile: the next one is malformed.
        """
        for position in range(start, self.size if stop is None else min(stop, self.size)):
            yield self.read(position)


class Reader(Protocol):
    """What a format's file has."""

    def recognises(self, directory: Path) -> bool:
        """Whether a directory looks like this format; looks at names only."""

    def open(self, directory: Path) -> Dataset:
        """Open it.

        Raises:
            BadFile: the index is missing or malformed.
        """


FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "cifar-10": "cifar10",
        "cifar-100": "cifar100",
        "food-101": "food101",
        "flowers-102": "flowers102",
        "country-211": "country211",
        "flickr30k": "flickr30k",
        "coco-captions": "coco",
        "vqa-v2": "vqav2",
        "textvqa": "textvqa",
        "esc-50": "esc50",
        "captions": "captions",
        "vqa": "vqa",
        "folders": "folders",  # last: any directory of folders with pictures looks like it
    }
)
"""Format -> its file here. The first ten are the published benchmarks, the last three are everybody's own data."""


def reader(name: str) -> Reader:
    """The reader of a format.

    Raises:
        BadFile: there is none of that name.
    """
    if name not in FORMATS:
        raise BadFile(file="--format", problem=f"{name!r} is no format", fix=f"name one of: {', '.join(FORMATS)}")
    return cast("Reader", importlib.import_module(f"s2m3.bench.datasets.{FORMATS[name]}"))


def detect(directory: Path) -> str | None:
    """The first format that a directory looks like, by its files' names; None when it looks like none."""
    return next((name for name in FORMATS if reader(name).recognises(directory)), None)


def open_dataset(directory: Path, name: str | None = None) -> Dataset:
    """Open a directory of a named format, or of the one it looks like.

    Raises:
        BadFile: it is no directory, looks like no format, or its index is malformed.
    """
    if not directory.is_dir():
        raise BadFile(file=str(directory), problem="is no directory", fix="name the directory of the unpacked data")
    found = name or detect(directory)
    if found is None:
        raise BadFile(
            file=str(directory),
            problem="looks like no known format",
            fix=f"name the directory of the unpacked data, or its --format: {', '.join(FORMATS)}",
        )
    return reader(found).open(directory)


def find(directory: Path) -> dict[str, tuple[Path, str]]:
    """The benchmarks in a directory and in those below it, by a name from their path: where each is, and its format.

    Raises:
        BadFile: it is no directory, or nothing in it looks like a format.
    """
    if not directory.is_dir():
        raise BadFile(
            file=str(directory), problem="is no directory", fix="name the directory that holds the benchmarks"
        )
    found: dict[str, tuple[Path, str]] = {}
    _find(directory, directory, found, deeper=2)
    if not found:
        raise BadFile(
            file=str(directory),
            problem="holds no benchmark",
            fix=f"unpack benchmarks below it, each as published; known: {', '.join(FORMATS)}",
        )
    return found


def _find(top: Path, directory: Path, found: dict[str, tuple[Path, str]], *, deeper: int) -> None:
    """Published forms first: a directory of benchmarks may look like a folder of folders of pictures."""
    name = detect(directory)
    known = len(found)
    if deeper and name in {None, "folders"}:
        for below in sorted(path for path in directory.iterdir() if path.is_dir()):
            _find(top, below, found, deeper=deeper - 1)
    if name is not None and len(found) == known:
        found[directory.relative_to(top).as_posix() if directory != top else directory.name] = (directory, name)
