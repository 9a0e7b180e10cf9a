"""VQA v2 (Goyal et al. 2017): the open-ended questions on the validation pictures of COCO 2014.

    v2_OpenEndedQuestions_mscoco_val2014_questions.json   {"questions": [{"question_id", "image_id", "question"}]}
    v2_mscoco_val2014_annotations.json                    {"annotations": [{"question_id", "answers": [{"answer"}]}]}
    val2014/COCO_val2014_NNNNNNNNNNNN.jpg

Each question has ten answers. Questions come in the order of their file.
"""

from __future__ import annotations

from pathlib import Path

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import Dataset, Record, disk

QUESTIONS = "v2_OpenEndedQuestions_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
PEOPLE = 10


def recognises(directory: Path) -> bool:
    """Whether its questions are there."""
    return (directory / QUESTIONS).is_file()


def open(directory: Path) -> Dataset:  # noqa: A001 - a reader's word
    """Open the questions with their answers.

    Raises:
        BadFile: a file is missing or malformed, or a question has no answers.
    """
    answers = _answers(directory / ANNOTATIONS)
    file = directory / QUESTIONS
    asked: list[tuple[int, int, str]] = []
    for at, question in enumerate(disk.entry(disk.json_object(file), "questions", list, file=file)):
        field = f"questions.{at}"
        number = disk.entry(question, "question_id", int, file=file, field=field)
        if number not in answers:
            problem = f"{number} is not in {ANNOTATIONS}"
            raise BadFile(file=str(file), field=f"{field}.question_id", problem=problem, fix=disk.AGAIN)
        picture = disk.entry(question, "image_id", int, file=file, field=field)
        asked.append((number, picture, disk.entry(question, "question", str, file=file, field=field)))
    if not asked:
        raise BadFile(file=str(file), field="questions", problem="is empty", fix=disk.AGAIN)

    def read(position: int) -> Record:
        number, picture, question = asked[position]
        path = directory / "val2014" / f"COCO_val2014_{picture:012}.jpg"
        return Record(str(number), disk.media(path), question=question, answers=answers[number])

    return Dataset("vqa-v2", "vqa", "image", len(asked), read)


def _answers(file: Path) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for at, annotation in enumerate(disk.entry(disk.json_object(file), "annotations", list, file=file)):
        field = f"annotations.{at}"
        number = disk.entry(annotation, "question_id", int, file=file, field=field)
        given = disk.entry(annotation, "answers", list, file=file, field=field)
        if len(given) != PEOPLE:
            problem = f"holds {len(given)} answers, not {PEOPLE}"
            raise BadFile(file=str(file), field=f"{field}.answers", problem=problem, fix=disk.AGAIN)
        found[number] = tuple(
            disk.entry(each, "answer", str, file=file, field=f"{field}.answers.{n}") for n, each in enumerate(given)
        )
    return found
