"""Flickr30k (Young et al. 2014) with the splits of Karpathy & Fei-Fei (2015): the 1,000 test pictures are read.

    dataset_flickr30k.json    {"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}
    flickr30k-images/*.jpg

The dataset's own results file has captions and no splits. Published retrieval numbers are all on the test split of this
file, so this form is read.
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

INDEX = "dataset_flickr30k.json"


def _open(directory: Path) -> Dataset:
    index = disk.index(directory / INDEX)
    found = []
    for image in index.entries("images"):
        if image.text("split") == "test":
            path = image.path(directory / "flickr30k-images", "filename")
            captions = image.checked("sentences", [sentence.text("raw") for sentence in image.entries("sentences")])
            found.append((path, {"id": path.name, "captions": captions}))
    if not found:
        raise index.error("images", "has none of the split test")
    return of_files("flickr30k", "retrieval", found)


READER = Reader(_open, files=(INDEX,))
