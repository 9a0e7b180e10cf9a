"""TextVQA 0.5.1 (Singh et al. 2019): the 5,000 validation questions, whose answers must be read in the picture.

TextVQA_0.5.1_val.json    {"data": [{"question_id", "image_id", "question", "answers": [text x 10]}, ...]}
train_images/IMAGE.jpg    the published archive holds the pictures of both splits under this name
"""

from __future__ import annotations

from pathlib import Path

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, Record, disk

INDEX, PICTURES = "TextVQA_0.5.1_val.json", "train_images"
PEOPLE = 10


def recognises(directory: Path) -> bool:
    """Whether its index is there."""
    return (directory / INDEX).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the questions with their answers.

    Raises:
        BadFile: the index is missing or malformed.
    """
    file = directory / INDEX
    asked: list[tuple[str, Path, str, tuple[str, ...]]] = []
    for at, question in enumerate(disk.entry(disk.json_object(file), "data", list, file=file)):
        field = f"data.{at}"
        number = disk.entry(question, "question_id", int, file=file, field=field)
        name = disk.entry(question, "image_id", str, file=file, field=field)
        answers = disk.entry(question, "answers", list, file=file, field=field)
        if len(answers) != PEOPLE or not all(isinstance(answer, str) for answer in answers):
            problem = f"is not {PEOPLE} texts"
            raise BadFile(file=str(file), field=f"{field}.answers", problem=problem, fix=disk.AGAIN)
        path = disk.inside(directory / PICTURES, f"{name}.jpg", file=file, field=f"{field}.image_id")
        asked.append((str(number), path, disk.entry(question, "question", str, file=file, field=field), tuple(answers)))
    if not asked:
        raise BadFile(file=str(file), field="data", problem="is empty", fix=disk.AGAIN)

    def read(position: int) -> Record:
        number, path, question, answers = asked[position]
        return Record(number, disk.media(path), question=question, answers=answers)

    return Dataset("textvqa", "vqa", "image", len(asked), read)
