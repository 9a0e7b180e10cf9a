"""Labelled records, and what a reader of a published format gives.

Owns the types. Knows no format, no model and no metric.

A reader opens a directory. It reads names and indexes at once, and a picture's or sound's file when its record is read.
Records always come in the order in which the format lists them, so that a run can go on at a position. Malformed data
is one ``BadFile`` with file, line or field, problem and fix: at opening when the index shows it, else at its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from broker.protocol.codec import RawInput
from s2m3.bench.datasets import disk

Kind = Literal["classification", "retrieval", "vqa"]
Medium = Literal["image", "audio"]


@dataclass(frozen=True)
class Record:
    """One picture or sound with its labels."""

    id: str
    media: RawInput
    label: int | None = None  # classification: an index into the dataset's classes
    captions: tuple[str, ...] = ()  # retrieval
    question: str = ""  # vqa
    choices: tuple[str, ...] = ()  # vqa: the possible answers, when the data names them
    answers: tuple[str, ...] = ()  # vqa: people's answers


@dataclass(frozen=True)
class Dataset:
    """An opened directory."""

    format: str  # one of ``FORMATS``
    kind: Kind  # of its labels
    medium: Medium
    size: int  # records
    read: Callable[[int], Record]  # makes the record at a position; raises BadFile when it is malformed
    classes: tuple[str, ...] = ()  # classification: their names
    texts: tuple[tuple[str, ...], ...] = ()  # retrieval: all captions, record by record


@dataclass(frozen=True)
class Reader:
    """A format: how a directory of it is opened and recognised."""

    open: Callable[[Path], Dataset]  # raises BadFile when the index is missing or malformed
    recognises: Callable[[Path], bool]  # whether a directory looks like this format; looks at names only

    @classmethod
    def by_files(cls, open_: Callable[[Path], Dataset], *files: str) -> Reader:
        """A format that is recognised by names below its directory."""
        return cls(open_, lambda directory: all((directory / each).exists() for each in files))


def of_files(
    format_: str,
    kind: Kind,
    files: Sequence[tuple[Path, Mapping[str, Any]]],
    *,
    medium: Medium = "image",
    classes: tuple[str, ...] = (),
) -> Dataset:
    """A dataset of media files in this order, each with its record's other fields.

    Raises:
        BadFile: there are no files.
    """
    if not files:
        raise disk.damaged(Path(format_), "has no records")

    def read(position: int) -> Record:
        path, fields = files[position]
        return Record(media=disk.media(path), **fields)

    texts = tuple(fields["captions"] for _, fields in files) if kind == "retrieval" else ()
    return Dataset(format_, kind, medium, len(files), read, classes, texts)
