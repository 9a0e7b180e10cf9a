"""COCO captions 2017 (Lin et al. 2014, Chen et al. 2015): the 5,000 validation pictures.

    annotations/captions_val2017.json    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    val2017/*.jpg

Pictures come in the order of the index; each with its captions in the order of theirs.
"""

from __future__ import annotations

from pathlib import Path

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, disk, retrieval

INDEX, PICTURES = "annotations/captions_val2017.json", "val2017"


def recognises(directory: Path) -> bool:
    """Whether its index is there."""
    return (directory / INDEX).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the pictures and their captions.

    Raises:
        BadFile: the index is missing or malformed, or a picture has no captions.
    """
    file = directory / INDEX
    index = disk.json_object(file)
    paths: dict[int, Path] = {}
    for at, image in enumerate(disk.entry(index, "images", list, file=file)):
        field = f"images.{at}"
        name = disk.entry(image, "file_name", str, file=file, field=field)
        number = disk.entry(image, "id", int, file=file, field=field)
        paths[number] = disk.inside(directory / PICTURES, name, file=file, field=f"{field}.file_name")
    captions: dict[int, list[str]] = {number: [] for number in paths}
    for at, annotation in enumerate(disk.entry(index, "annotations", list, file=file)):
        field = f"annotations.{at}"
        number = disk.entry(annotation, "image_id", int, file=file, field=field)
        if number not in captions:
            problem = f"names picture {number}, which images doesn't"
            raise BadFile(file=str(file), field=f"{field}.image_id", problem=problem, fix=disk.AGAIN)
        captions[number].append(disk.entry(annotation, "caption", str, file=file, field=field))
    if not paths:
        raise BadFile(file=str(file), field="images", problem="is empty", fix=disk.AGAIN)
    found = [
        (path, disk.texts(captions[number], file=file, field=f"captions of picture {number}"))
        for number, path in paths.items()
    ]
    return retrieval.dataset("coco-captions", found)
