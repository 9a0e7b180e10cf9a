"""TextVQA 0.5.1 (Singh et al. 2019): the 5,000 validation questions, whose answers must be read in the picture.

TextVQA_0.5.1_val.json    {"data": [{"question_id", "image_id", "question", "answers": [text x 10]}, ...]}
train_images/IMAGE.jpg    the published archive holds the pictures of both splits under this name
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

INDEX = "TextVQA_0.5.1_val.json"
PEOPLE = 10


def _open(directory: Path) -> Dataset:
    index = disk.index(directory / INDEX)
    found = []
    for entry in index.entries("data"):
        answers = entry.items("answers")
        if len(answers) != PEOPLE or not all(isinstance(answer, str) for answer in answers):
            raise entry.error("answers", f"is not {PEOPLE} texts")
        fields = {"question": entry.text("question"), "answers": tuple(answers)}
        path = entry.path(directory / "train_images", "image_id", ".jpg")
        found.append((path, {"id": str(entry.number("question_id"))} | fields))
    if not found:
        raise index.error("data", "is empty")
    return of_files("textvqa", "vqa", found)


READER = Reader(_open, files=(INDEX,))
