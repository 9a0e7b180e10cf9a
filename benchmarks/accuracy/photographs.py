"""Writes the photographs that pip delivers as two small benchmarks: ``DIR/captioned`` and ``DIR/asked``.

Owns the data of the photographs' tables in README.md. The captions are those of the demo's zero-shot requests. The
questions are those of ``tests/equivalence/questions.yaml``, both parts. Run: python photographs.py DIR
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from s2m3.reference.pictures import REQUESTS, picture

QUESTIONS = Path(__file__).parents[2] / "tests" / "equivalence" / "questions.yaml"


def write(directory: Path, index: str, records: list[dict[str, Any]]) -> None:
    """Writes one benchmark: its pictures, and its JSON lines."""
    directory.mkdir(parents=True, exist_ok=True)
    for record in records:
        shutil.copyfile(picture(record["image"]).path, directory / record["image"])
    (directory / index).write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def main(directory: Path) -> None:
    """Writes both benchmarks."""
    captions = [
        {"image": request.picture, "captions": [request.expected]}
        for request in REQUESTS
        if request.task == "zero-shot"
    ]
    write(directory / "captioned", "captions.jsonl", captions)
    asked = [
        {"image": name, "question": question, "answers": [right], "choices": choices}
        for pictures in yaml.safe_load(QUESTIONS.read_text(encoding="utf-8")).values()
        for name, questions in pictures.items()
        for question, right, choices in questions
    ]
    write(directory / "asked", "vqa.jsonl", asked)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
