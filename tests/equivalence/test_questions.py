"""The question rule of ``conse.head`` answers as well as its docstring says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture


@pytest.mark.parametrize(
    ("part", "with_question", "without", "chance"), [("chosen-on", 38, 35, 12), ("held-out", 15, 15, 4)]
)
def test_the_question_rule_does_as_well_as_its_docstring_says(
    unsplit: Any, part: str, with_question: int, without: int, chance: int
) -> None:
    pairs = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8"))[part]
    asked = plain = by_chance = 0.0
    for name, questions in pairs.items():
        for question, right, answers in questions:
            inputs = {"image": picture(name).raw, "question": RawInput(question.encode())}
            candidates = RawInput("\n".join(answers).encode())
            asked += unsplit.answer("vqa", inputs | {"answers": candidates})["answer"] == right
            plain += unsplit.answer("zero-shot", inputs | {"text": candidates})["label"] == right
            by_chance += 1 / len(answers)
    assert (asked, plain, by_chance) == (with_question, without, chance)
