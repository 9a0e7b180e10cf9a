"""Anybody's captioned pictures, as JSON lines.

captions.jsonl    {"image": "a/b.jpg", "captions": ["a dog", ...]}    a picture a line, its path from this directory
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import Dataset, disk, jsonlines, retrieval

INDEX = "captions.jsonl"


def recognises(directory: Path) -> bool:
    """Whether its index is there."""
    return (directory / INDEX).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the pictures and their captions.

    Raises:
        BadFile: the index is malformed.
    """
    file = directory / INDEX
    pictures: list[tuple[Path, tuple[str, ...]]] = []
    for line, found in jsonlines.objects(file):
        jsonlines.known(found, ("image", "captions"), file=file, line=line)
        name = disk.entry(found, "image", str, file=file, line=line)
        captions = disk.entry(found, "captions", list, file=file, line=line)
        path = disk.inside(directory, name, file=file, field="image", line=line)
        pictures.append((path, disk.texts(captions, file=file, field="captions", line=line)))
    return retrieval.dataset("captions", pictures)
