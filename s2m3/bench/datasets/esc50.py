"""ESC-50 (Piczak 2015): 2,000 sounds of five seconds in 50 classes; all folds are read, as for zero-shot results.

meta/esc50.csv    columns filename, fold, target (0 to 49), category, ...
audio/*.wav
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, Record, disk

INDEX = "meta/esc50.csv"
COLUMNS = ("filename", "target", "category")


def recognises(directory: Path) -> bool:
    """Whether its index is there."""
    return (directory / INDEX).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the sounds.

    Raises:
        BadFile: the index is missing, lacks a column, or contradicts itself.
    """
    file = directory / INDEX
    rows = csv.DictReader(io.StringIO(disk.text(file)))
    if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
        raise BadFile(file=str(file), line=1, field=missing[0], problem="is no column", fix=disk.AGAIN)
    sounds: list[tuple[Path, int]] = []
    names: dict[int, str] = {}
    for row in rows:
        line = rows.line_num
        target, name = row["target"] or "", row["category"] or ""
        if not target.isdecimal():
            raise BadFile(file=str(file), line=line, field="target", problem=f"{target!r} is no class", fix=disk.AGAIN)
        if names.setdefault(int(target), name) != name or not name:
            problem = f"{name!r} for class {target}, which was {names[int(target)]!r}"
            raise BadFile(file=str(file), line=line, field="category", problem=problem, fix=disk.AGAIN)
        path = disk.inside(directory / "audio", row["filename"] or "", file=file, field="filename", line=line)
        sounds.append((path, int(target)))
    if not sounds or set(names) != set(range(len(names))):
        raise BadFile(file=str(file), field="target", problem="doesn't count classes from 0 on", fix=disk.AGAIN)

    def read(position: int) -> Record:
        path, label = sounds[position]
        return Record(path.name, disk.media(path), label)

    classes = tuple(names[label].replace("_", " ") for label in range(len(names)))
    return Dataset("esc-50", "classification", "audio", len(sounds), read, classes)
