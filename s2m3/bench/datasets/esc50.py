"""ESC-50 (Piczak 2015): 2,000 sounds of five seconds in 50 classes; all folds are read, as for zero-shot results.

meta/esc50.csv    columns filename, fold, target (0 to 49), category, ...
audio/*.wav
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

INDEX = "meta/esc50.csv"
COLUMNS = ("filename", "target", "category")


def _open(directory: Path) -> Dataset:
    file = directory / INDEX
    rows = csv.DictReader(io.StringIO(disk.text(file)))
    if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
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


READER = Reader.by_files(_open, INDEX)
