"""Every pocket task, cut into modules with the wire's bytes between them, answers as the whole model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import REQUESTS, DemoRequest, names, picture
from tests.described import assert_made_again

TEXTS = {
    "classify": {},
    "zero-shot": {"text": "a photo of an animal\na cup of coffee\na building\nthe night sky\nPrinted words, näively"},
    "vqa": {"question": "What is this?", "answers": "an animal\na drink\na vehicle\na plant\na building"},
}


def _name(request: DemoRequest) -> str:
    return f"{request.task}-{request.picture}"


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("task", TEXTS)
def test_split_equals_whole_bit_for_bit_on_every_picture(split: Any, unsplit: Any, task: str, name: str) -> None:
    inputs = {"image": picture(name).raw} | {k: RawInput(text.encode()) for k, text in TEXTS[task].items()}
    assert split.answer(task, inputs) == unsplit.answer(task, inputs)


@pytest.mark.parametrize("name", names()[:3])
def test_the_embedding_of_a_picture_is_the_whole_models(split: Any, unsplit: Any, name: str) -> None:
    inputs = {"image": picture(name).raw}
    found = split.answer("embed-image", inputs)
    assert found == unsplit.answer("embed-image", inputs)
    rows = np.array(found["embeddings"], np.float32)
    assert rows.shape == (1, 1280)
    assert np.linalg.norm(rows.astype(np.float64)) == pytest.approx(1, abs=1e-6)


def test_the_embeddings_of_texts_are_the_whole_models(split: Any, unsplit: Any) -> None:
    inputs = {"text": RawInput(TEXTS["zero-shot"]["text"].encode())}
    found = split.answer("embed-text", inputs)
    assert found == unsplit.answer("embed-text", inputs)
    assert np.shape(found["embeddings"]) == (5, 384)


@pytest.mark.parametrize("request_", REQUESTS, ids=_name)
def test_the_demo_gets_the_answer_a_person_would_give_split_as_whole(
    split: Any, unsplit: Any, request_: DemoRequest
) -> None:
    answer = split.answer(request_.task, request_.inputs)
    assert answer == unsplit.answer(request_.task, request_.inputs)
    assert answer.get("label", answer.get("answer")) == request_.expected


@pytest.mark.parametrize("request_", REQUESTS[::5], ids=_name)
def test_the_same_request_gives_the_same_bits_again(split: Any, request_: DemoRequest) -> None:
    first, second = (split.answer(request_.task, request_.inputs) for _ in range(2))
    assert first == second


def test_the_steps_of_the_pocket_zoo_are_made_again_from_their_description(split: Any, tmp_path: Path) -> None:
    for task in TEXTS:
        for spec in split.specs[task].modules.values():
            assert_made_again(split.modules[spec.key], tmp_path)


def test_different_pictures_give_different_scores(split: Any) -> None:
    scores = {split.answer("classify", {"image": picture(name).raw})["score"] for name in names()}
    assert len(scores) == len(names())
