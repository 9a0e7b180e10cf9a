"""Own data as JSON lines: pictures with captions, and questions about pictures.

    captions.jsonl    {"image": "a/b.jpg", "captions": ["a dog", ...]}
    vqa.jsonl         {"image": "a/b.jpg", "question": "...", "answers": ["2", ...], "choices": ["1", "2", ...]}

``image`` is a path from the directory. ``answers`` are people's answers: ten, for the official rule, or the one right
answer. ``choices`` are the possible answers, for models that choose among them; other models don't need them.
"""

from __future__ import annotations

from pathlib import Path

from s2m3.bench.datasets import disk
from s2m3.bench.datasets.records import Dataset, Reader, of_files

CAPTIONS, QUESTIONS = "captions.jsonl", "vqa.jsonl"


def _open_captions(directory: Path) -> Dataset:
    found = []
    for entry in disk.lines(directory / CAPTIONS, ("image", "captions")):
        path = entry.path(directory, "image")
        found.append((path, {"id": path.name, "captions": entry.texts("captions")}))
    return of_files("captions", "retrieval", found)


def _open_questions(directory: Path) -> Dataset:
    found = []
    for entry in disk.lines(directory / QUESTIONS, ("image", "question", "answers", "choices")):
        (question,) = entry.checked("question", [entry.text("question")])
        choices = entry.texts("choices") if "choices" in entry.found else ()
        if len(set(choices)) < len(choices):
            raise entry.error("choices", "names one twice", "remove one")
        fields = {"question": question, "answers": entry.texts("answers"), "choices": choices}
        found.append((entry.path(directory, "image"), {"id": f"line-{entry.line}"} | fields))
    return of_files("vqa", "vqa", found)


CAPTIONED = Reader(_open_captions, files=(CAPTIONS,))
ASKED = Reader(_open_questions, files=(QUESTIONS,))
