"""Inputs that no network was trained on get an answer, or ``bad_input`` with the remedy, and never another error.

Every family on tiny random weights, one task each: pictures of one pixel and very thin ones, sounds of one sample,
silence, other sampling rates, texts with the network's own tokens.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.inputs.limits import MAX_SIDES
from s2m3.catalogue import load_task
from s2m3.reference import random_weights, zoo
from s2m3.reference.split import Split
from tests.media import picture_bytes, wav

FAMILIES = {path.stem: runpy.run_path(str(path))["ENTRIES"] for path in (Path(__file__).parent / "zoo").glob("*.py")}


def png(width: int, height: int) -> RawInput:
    return RawInput(picture_bytes(Image.new("RGB", (width, height), "teal")), "image/png")


def noise(samples: int, rate_hz: int = 16_000, channels: int = 1, loud: int = 0) -> RawInput:
    drawn = np.random.default_rng(0).integers(-loud, loud + 1, samples * channels)
    return RawInput(wav(drawn.astype("<i2"), rate_hz, channels), "audio/wav")


# Inputs that must be answered, and inputs that may be refused.
ANSWERED = {
    "image": [png(1, 1), png(4, 1), png(3, 12)],
    "audio": [noise(8000), noise(8000, 8000, loud=3000), noise(9600, 96_000, channels=2, loud=3000)],
    "text": [RawInput("\U0001f600\u200d\u202e x".encode()), RawInput(b"{image} {0} %s"), RawInput(b"word " * 390)],
}
EITHER = {
    "image": [png(MAX_SIDES, 1), png(3, 3 * MAX_SIDES), png(1, MAX_SIDES + 1), png(3000, 1)],
    "audio": [noise(1), noise(1, 96_000), noise(399)],
    "text": [
        RawInput(b"what is <image> here?"),
        RawInput(b"<|endoftext|> <|im_end|> </s> [SEP] <pad> <row_1_col_1> <global-img> <fake_token_around_image>"),
        RawInput("\n".join(f"line {number}" for number in range(64)).encode()),
    ],
}


def with_each(task: TaskSpec, request: dict[str, RawInput], odd: dict[str, list[RawInput]]) -> Iterator[Any]:
    for name, spec in task.inputs.items():
        for value in odd[spec.kind]:
            yield request | {name: value}


def outcome(split: Split, task: TaskSpec, request: dict[str, RawInput]) -> tuple[RequestFailed | None, Output]:
    try:
        return None, split.run(task, request)
    except RequestFailed as error:
        return error, Output({})


@pytest.fixture
def family_models(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[TaskSpec, dict[str, RawInput]]:
    """A family's first task, with tiny models in the models directory, and the inputs of an ordinary request."""
    name, entry = next(iter(FAMILIES[request.param].items()))
    for repository, changes in entry["changes"].items():
        random_weights.write(zoo.published(repository), tmp_path, changes=changes)
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path))
    return load_task(name), entry["requests"][0]


@pytest.mark.parametrize("family_models", sorted(FAMILIES), indirect=True)
def test_odd_inputs_are_answered_with_finite_numbers_or_refused_with_one_sentence(
    family_models: tuple[TaskSpec, dict[str, RawInput]],
) -> None:
    (task, usual), split = family_models, Split()
    for request in with_each(task, usual, ANSWERED):
        output = split.run(task, request)
        assert all(np.isfinite(array).all() for array in output.tensors.values())
    for request in with_each(task, usual, EITHER):
        refusal, output = outcome(split, task, request)
        assert all(np.isfinite(array).all() for array in output.tensors.values())
        if refusal is not None:
            assert refusal.code == ErrorCode.BAD_INPUT
            assert "\n" not in refusal.message
            assert ": " in refusal.message, "it says what to do"


@pytest.mark.parametrize("family_models", ["llava", "smolvlm"], indirect=True)
def test_a_question_with_the_pictures_token_or_too_many_tokens_is_refused_with_the_remedy(
    family_models: tuple[TaskSpec, dict[str, RawInput]],
) -> None:
    task, usual = family_models
    with pytest.raises(
        RequestFailed, match="the question has <image> in it, which stands for the picture: leave it out"
    ):
        Split().run(task, usual | {"text": EITHER["text"][0]})
    with pytest.raises(RequestFailed, match=r"the question has [0-9]+ tokens, at most 2048 are allowed: shorten it"):
        Split().run(task, usual | {"text": RawInput("\U0001f600".encode() * 2000)})
