"""Anybody's questions about pictures, as JSON lines.

    vqa.jsonl    {"image": "a/b.jpg", "question": "...", "answers": ["2", ...], "choices": ["1", "2", ...]}

``answers`` are what people answered: ten, as the official rule has it, or one that is simply right. ``choices`` are the
possible answers, for the models that choose among them; models that answer freely do without.
"""

from __future__ import annotations

from pathlib import Path

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, Record, disk, jsonlines

INDEX = "vqa.jsonl"


def recognises(directory: Path) -> bool:
    """Whether its index is there."""
    return (directory / INDEX).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the questions with their answers.

    Raises:
        BadFile: the index is malformed.
    """
    file = directory / INDEX
    asked: list[tuple[int, Path, str, tuple[str, ...], tuple[str, ...]]] = []
    for line, found in jsonlines.objects(file):
        jsonlines.known(found, ("image", "question", "answers", "choices"), file=file, line=line)
        name = disk.entry(found, "image", str, file=file, line=line)
        (question,) = disk.texts(
            [disk.entry(found, "question", str, file=file, line=line)], file=file, field="question", line=line
        )
        answers = disk.texts(
            disk.entry(found, "answers", list, file=file, line=line), file=file, field="answers", line=line
        )
        choices: tuple[str, ...] = ()
        if "choices" in found:
            given = disk.entry(found, "choices", list, file=file, line=line)
            choices = disk.texts(given, file=file, field="choices", line=line)
            if len(set(choices)) < len(choices):
                raise BadFile(file=str(file), line=line, field="choices", problem="names one twice", fix="remove one")
        path = disk.inside(directory, name, file=file, field="image", line=line)
        asked.append((line, path, question, answers, choices))

    def read(position: int) -> Record:
        line, path, question, answers, choices = asked[position]
        return Record(f"line-{line}", disk.media(path), question=question, choices=choices, answers=answers)

    return Dataset("vqa", "vqa", "image", len(asked), read)
