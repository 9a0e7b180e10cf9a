"""VQA v2 (Goyal et al. 2017): the open-ended questions on the validation pictures of COCO 2014.

    v2_OpenEndedQuestions_mscoco_val2014_questions.json   {"questions": [{"question_id", "image_id", "question"}]}
    v2_mscoco_val2014_annotations.json                    {"annotations": [{"question_id", "answers": [{"answer"}]}]}
    val2014/COCO_val2014_NNNNNNNNNNNN.jpg

Each question has ten answers. Questions come in the order of their file.
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

QUESTIONS = "v2_OpenEndedQuestions_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
PEOPLE = 10


def _open(directory: Path) -> Dataset:
    answers = _answers(directory / ANNOTATIONS)
    index = disk.index(directory / QUESTIONS)
    found = []
    for entry in index.entries("questions"):
        number = entry.number("question_id")
        if number not in answers:
            raise entry.error("question_id", f"{number} is not in {ANNOTATIONS}")
        path = directory / "val2014" / f"COCO_val2014_{entry.number('image_id'):012}.jpg"
        found.append((path, {"id": str(number), "question": entry.text("question"), "answers": answers[number]}))
    if not found:
        raise index.error("questions", "is empty")
    return of_files("vqa-v2", "vqa", found)


def _answers(file: Path) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for annotation in disk.index(file).entries("annotations"):
        given = annotation.entries("answers")
        if len(given) != PEOPLE:
            raise annotation.error("answers", f"holds {len(given)} answers, not {PEOPLE}")
        found[annotation.number("question_id")] = tuple(each.text("answer") for each in given)
    return found


READER = Reader(_open, files=(QUESTIONS,))
