"""Pictures with captions: two published benchmarks, and own data as JSON lines.

COCO captions 2017 (Lin et al. 2014, Chen et al. 2015): the 5,000 validation pictures, in the order of the index
    annotations/captions_val2017.json    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    val2017/*.jpg

Flickr30k (Young et al. 2014): the 1,000 test pictures. The splits of Karpathy & Fei-Fei (2015), on whose test split all
published retrieval numbers are, and not the dataset's own results file, which has none
    dataset_flickr30k.json               {"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}
    flickr30k-images/*.jpg

Own data; ``image`` is a path from the directory
    captions.jsonl                       {"image": "a/b.jpg", "captions": ["a dog", ...]}
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

COCO_INDEX = "annotations/captions_val2017.json"
FLICKR_INDEX = "dataset_flickr30k.json"
OWN = "captions.jsonl"


def _coco(directory: Path) -> Dataset:
    index = disk.index(directory / COCO_INDEX)
    paths = {image.number("id"): image.path(directory / "val2017", "file_name") for image in index.entries("images")}
    captions: dict[int, list[str]] = {number: [] for number in paths}
    for annotation in index.entries("annotations"):
        number = annotation.number("image_id")
        if number not in captions:
            raise annotation.error("image_id", f"names picture {number}, which images doesn't")
        captions[number].append(annotation.text("caption"))
    if not paths:
        raise index.error("images", "is empty")
    found = [(path, index.checked(f"captions of picture {number}", captions[number])) for number, path in paths.items()]
    return _captioned("coco-captions", found)


def _flickr30k(directory: Path) -> Dataset:
    index = disk.index(directory / FLICKR_INDEX)
    found = []
    for image in index.entries("images"):
        if image.text("split") == "test":
            path = image.path(directory / "flickr30k-images", "filename")
            captions = image.checked("sentences", [sentence.text("raw") for sentence in image.entries("sentences")])
            found.append((path, captions))
    if not found:
        raise index.error("images", "has none of the split test")
    return _captioned("flickr30k", found)


def _own(directory: Path) -> Dataset:
    entries = disk.lines(directory / OWN, ("image", "captions"))
    return _captioned("captions", [(entry.path(directory, "image"), entry.texts("captions")) for entry in entries])


def _captioned(format_: str, found: list[tuple[Path, tuple[str, ...]]]) -> Dataset:
    return of_files(format_, "retrieval", [(path, {"id": path.name, "captions": captions}) for path, captions in found])


COCO = Reader.by_files(_coco, COCO_INDEX)
FLICKR30K = Reader.by_files(_flickr30k, FLICKR_INDEX)
OWN_CAPTIONS = Reader.by_files(_own, OWN)
