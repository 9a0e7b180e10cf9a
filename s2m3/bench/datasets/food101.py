"""Food-101 (Bossard et al. 2014): ``food-101/``, of which the 25,250 test pictures are read.

meta/classes.txt   101 names of folders, one a line
meta/labels.txt    the same as people write them
meta/test.txt      a picture a line: FOLDER/NUMBER
images/FOLDER/NUMBER.jpg
"""

from __future__ import annotations

from pathlib import Path

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, Record, disk


def recognises(directory: Path) -> bool:
    """Whether its folders are there."""
    return (directory / "meta" / "classes.txt").is_file() and (directory / "images").is_dir()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the test pictures.

    Raises:
        BadFile: an index is missing, or names what the others don't.
    """
    meta = directory / "meta"
    folders = {name: label for label, name in enumerate(disk.names(meta / "classes.txt"))}
    labels = disk.names(meta / "labels.txt")
    if len(labels) != len(folders):
        problem = f"has {len(labels)} names, and classes.txt {len(folders)}"
        raise BadFile(file=str(meta / "labels.txt"), problem=problem, fix=disk.AGAIN)
    index = meta / "test.txt"
    pictures = disk.names(index)
    for line, picture in enumerate(pictures, start=1):
        if picture.count("/") != 1 or picture.partition("/")[0] not in folders:
            problem = f"{picture!r:.60} is no picture of a folder of classes.txt"
            raise BadFile(file=str(index), line=line, problem=problem, fix=disk.AGAIN)

    def read(position: int) -> Record:
        name = pictures[position]
        path = disk.inside(directory / "images", f"{name}.jpg", file=index, field="picture", line=position + 1)
        return Record(name, disk.media(path), folders[name.partition("/")[0]])

    classes = tuple(label.lower() for label in labels)
    return Dataset("food-101", "classification", "image", len(pictures), read, classes)
