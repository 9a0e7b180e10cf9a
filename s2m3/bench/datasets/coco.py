"""COCO captions 2017 (Lin et al. 2014, Chen et al. 2015): the 5,000 validation pictures.

    annotations/captions_val2017.json    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    val2017/*.jpg

Pictures come in the order of the index, each with its captions in the order of theirs.
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

INDEX = "annotations/captions_val2017.json"


def _open(directory: Path) -> Dataset:
    index = disk.index(directory / INDEX)
    paths = {image.number("id"): image.path(directory / "val2017", "file_name") for image in index.entries("images")}
    captions: dict[int, list[str]] = {number: [] for number in paths}
    for annotation in index.entries("annotations"):
        number = annotation.number("image_id")
        if number not in captions:
            raise annotation.error("image_id", f"names picture {number}, which images doesn't")
        captions[number].append(annotation.text("caption"))
    if not paths:
        raise index.error("images", "is empty")
    found = []
    for number, path in paths.items():
        own = index.checked(f"captions of picture {number}", captions[number])
        found.append((path, {"id": path.name, "captions": own}))
    return of_files("coco-captions", "retrieval", found)


READER = Reader(_open, files=(INDEX,))
