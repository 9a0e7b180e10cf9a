"""The demo's comparison with the unsplit models: bit for bit by torch, by answer and within a tolerance by ONNX."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from broker.client import Response
from broker.protocol.messages import Result
from s2m3.cli.main import main
from s2m3.testbed.engines import Engine, is_equal

WANTED: dict[str, JsonValue] = {"label": "a cat", "score": 0.5, "ranked": [{"label": "a cat", "score": 0.5}]}


@pytest.mark.parametrize(
    ("changes", "by_torch", "by_onnx"),
    [
        ({}, True, True),
        ({"score": 0.50000001}, False, True),
        ({"score": 0.6}, False, False),
        ({"label": "a dog"}, False, False),
    ],
)
def test_equality_is_that_of_the_engine(
    changes: dict[str, JsonValue],
    by_torch: bool,  # noqa: FBT001 - a parameter
    by_onnx: bool,  # noqa: FBT001 - the same
) -> None:
    response = Response(Result(request="r", task="t", answer=WANTED | changes), 0.1, 1)
    engines: tuple[tuple[Engine, bool], ...] = (("torch", by_torch), ("onnx", by_onnx))
    for engine, expected in engines:
        assert is_equal(engine, response, WANTED) is expected


def test_an_error_equals_no_answer() -> None:
    response = Response(
        Result.model_validate({"request": "r", "task": "t", "error": {"code": "deadline_exceeded", "message": "m"}}),
        0.1,
        1,
    )
    assert not is_equal("onnx", response, WANTED)
    assert not is_equal("torch", response, WANTED)


def test_a_page_needs_a_site_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--dashboard"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--dashboard: would end with the demo; add --keep" in told
