"""Questions about pictures: two published benchmarks, and own data as JSON lines.

VQA v2 (Goyal et al. 2017): the open-ended questions on the validation pictures of COCO 2014, in the order of their file
    v2_OpenEndedQuestions_mscoco_val2014_questions.json   {"questions": [{"question_id", "image_id", "question"}]}
    v2_mscoco_val2014_annotations.json                    {"annotations": [{"question_id", "answers": [{"answer"}]}]}
    val2014/COCO_val2014_NNNNNNNNNNNN.jpg

TextVQA 0.5.1 (Singh et al. 2019): the 5,000 validation questions, whose answers must be read in the picture
    TextVQA_0.5.1_val.json     {"data": [{"question_id", "image_id", "question", "answers": [text x 10]}, ...]}
    train_images/IMAGE.jpg     the published archive holds the pictures of both splits under this name

Own data; ``image`` is a path from the directory. ``answers`` are people's answers: ten, for the official rule, or the
one right answer. ``choices`` are the possible answers, for models that choose among them; other models don't need them
    vqa.jsonl                 {"image": "a/b.jpg", "question": "...", "answers": ["2", ...], "choices": ["1", "2", ...]}
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

VQA_QUESTIONS = "v2_OpenEndedQuestions_mscoco_val2014_questions.json"
VQA_ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
TEXTVQA_INDEX = "TextVQA_0.5.1_val.json"
OWN = "vqa.jsonl"
PEOPLE = 10


def _vqa_v2(directory: Path) -> Dataset:
    answers = _answers(directory / VQA_ANNOTATIONS)
    index = disk.index(directory / VQA_QUESTIONS)
    found = []
    for entry in index.entries("questions"):
        number = entry.number("question_id")
        if number not in answers:
            raise entry.error("question_id", f"{number} is not in {VQA_ANNOTATIONS}")
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


def _textvqa(directory: Path) -> Dataset:
    index = disk.index(directory / TEXTVQA_INDEX)
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


def _own(directory: Path) -> Dataset:
    found = []
    for entry in disk.lines(directory / OWN, ("image", "question", "answers", "choices")):
        (question,) = entry.checked("question", [entry.text("question")])
        choices = entry.texts("choices") if "choices" in entry.found else ()
        if len(set(choices)) < len(choices):
            raise entry.error("choices", "names one twice", "remove one")
        fields = {"question": question, "answers": entry.texts("answers"), "choices": choices}
        found.append((entry.path(directory, "image"), {"id": f"line-{entry.line}"} | fields))
    return of_files("vqa", "vqa", found)


VQA_V2 = Reader.by_files(_vqa_v2, VQA_QUESTIONS)
TEXTVQA = Reader.by_files(_textvqa, TEXTVQA_INDEX)
OWN_QUESTIONS = Reader.by_files(_own, OWN)
