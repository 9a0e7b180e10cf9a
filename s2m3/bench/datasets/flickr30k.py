"""Flickr30k (Young et al. 2014) with the splits of Karpathy & Fei-Fei (2015): the 1,000 test pictures are read.

    dataset_flickr30k.json    {"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}
    flickr30k-images/*.jpg

The dataset's own results file has captions and no splits; the retrieval numbers that are published are all on the test
split of this file, so this is the form that is read.
"""

from __future__ import annotations

from pathlib import Path

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, disk, retrieval

INDEX, PICTURES = "dataset_flickr30k.json", "flickr30k-images"


def recognises(directory: Path) -> bool:
    """Whether its index is there."""
    return (directory / INDEX).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the test pictures and their captions.

    Raises:
        BadFile: the index is missing or malformed.
    """
    file = directory / INDEX
    pictures: list[tuple[Path, tuple[str, ...]]] = []
    for at, image in enumerate(disk.entry(disk.json_object(file), "images", list, file=file)):
        field = f"images.{at}"
        if disk.entry(image, "split", str, file=file, field=field) != "test":
            continue
        name = disk.entry(image, "filename", str, file=file, field=field)
        sentences = disk.entry(image, "sentences", list, file=file, field=field)
        raw = [
            disk.entry(each, "raw", str, file=file, field=f"{field}.sentences.{n}") for n, each in enumerate(sentences)
        ]
        path = disk.inside(directory / PICTURES, name, file=file, field=f"{field}.filename")
        pictures.append((path, disk.texts(raw, file=file, field=f"{field}.sentences")))
    if not pictures:
        raise BadFile(file=str(file), field="images", problem="has none of the split test", fix=disk.AGAIN)
    return retrieval.dataset("flickr30k", pictures)
