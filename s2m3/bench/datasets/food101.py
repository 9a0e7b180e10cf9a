"""Food-101 (Bossard et al. 2014): ``food-101/``, of which the 25,250 test pictures are read.

meta/classes.txt   101 names of folders, one a line
meta/labels.txt    the same as people write them
meta/test.txt      a picture a line: FOLDER/NUMBER
images/FOLDER/NUMBER.jpg
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files


def _open(directory: Path) -> Dataset:
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
    classes = tuple(label.lower() for label in labels)
    return of_files("food-101", "classification", found, classes=classes)


READER = Reader.by_files(_open, "meta/classes.txt", "images")
