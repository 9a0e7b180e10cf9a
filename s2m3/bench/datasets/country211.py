"""Country-211 (Radford et al. 2021, from YFCC100M): ``country211/``, of which the 21,100 test pictures are read.

    test/CODE/*.jpg    a folder a country, by its ISO 3166 code; ``train`` and ``valid`` are alike

Folders have codes. Prompts need the countries' names: ``country211.txt`` has those of the CLIP paper.
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk, folders
from s2m3.bench.datasets.records import Dataset, Reader

COUNTRIES = dict(line.split(maxsplit=1) for line in disk.names(Path(__file__).with_suffix(".txt")))


def _recognises(directory: Path) -> bool:
    """Whether it has the three splits, of folders of known codes."""
    splits = [directory / split for split in ("train", "valid", "test")]
    if not all(split.is_dir() for split in splits):
        return False
    found = {path.name for path in splits[-1].iterdir() if path.is_dir()}
    return bool(found) and found <= COUNTRIES.keys()


def _open(directory: Path) -> Dataset:
    """A sample may lack countries; their names are prompts nevertheless."""
    test = directory / "test"
    if unknown := [name for name in folders.folder_names(test) if name not in COUNTRIES]:
        raise disk.damaged(test / unknown[0], "is not a country code of this dataset")
    return folders.dataset("country-211", test, tuple(COUNTRIES), tuple(COUNTRIES.values()))


READER = Reader(_open, _recognises)
