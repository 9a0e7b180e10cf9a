"""Captioned pictures, once an index is read: their paths and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s2m3.bench.datasets import Dataset, Record, disk


def dataset(format_: str, pictures: Sequence[tuple[Path, tuple[str, ...]]]) -> Dataset:
    """Pictures in this order, each with its captions."""

    def read(position: int) -> Record:
        path, captions = pictures[position]
        return Record(path.name, disk.media(path), captions=captions)

    texts = tuple(captions for _, captions in pictures)
    return Dataset(format_, "retrieval", "image", len(pictures), read, texts=texts)
