"""The end of a request becomes what stands at the source's topics."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.codec import decode, encode
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.messages import ErrorBody, Result
from broker.protocol.sources import SourceAnswer, SourceSpec
from s2m3.sources.answers import answer_of, label_of, refusal_of
from s2m3.sources.lanes import Arrival, Ask, Ended

SPEC = SourceSpec.model_validate({"source": "cams", "subscribe": "cams/+/jpeg", "task": "classify"})
ENDED = Ended(Ask(1, SPEC, ("door",), Arrival("cams/door/jpeg", b"x")), 2)


def result(**fields: Any) -> Result:
    return Result.model_validate({"request": "r", "task": "classify"} | fields)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ({"label": "cat", "text": "x"}, "cat"),
        ({"answer": "two", "score": 1}, "two"),
        ({"text": "hello there"}, "hello there"),
        ({"label": 5, "text": "a dog"}, "a dog"),
        ({"text": "x" * 5_000}, "x" * 4_000),
        ({"boxes": [1]}, '{"boxes": [1]}'),
        ({}, None),
    ],
)
def test_the_label_is_the_text_that_a_person_wants(answer: dict[str, Any], label: str | None) -> None:
    assert label_of(result(answer=answer)) == label


def test_an_answer() -> None:
    made = answer_of(ENDED, result(answer={"label": "cat", "score": 0.5}), at=9.0, latency_s=0.25)
    assert made == decode(SourceAnswer, encode(made))
    told = made.model_dump(exclude_none=True)
    assert told == {
        "source": "cams",
        "task": "classify",
        "at": 9.0,
        "label": "cat",
        "score": 0.5,
        "topic": "cams/door/jpeg",
        "captures": ("door",),
        "skipped": 2,
        "latency_s": 0.25,
        "answer": {"label": "cat", "score": 0.5},
    }


@pytest.mark.parametrize("score", ["high", True, None, [1]])
def test_a_score_is_a_number(score: object) -> None:
    assert answer_of(ENDED, result(answer={"label": "cat", "score": score}), at=9.0, latency_s=0.0).score is None


def test_a_large_answer_is_left_out_beside_its_label() -> None:
    made = answer_of(ENDED, result(answer={"label": "cat", "ranked": ["x" * 50_000]}), at=9.0, latency_s=0.0)
    assert (made.label, made.answer) == ("cat", None)


def test_errors_of_a_request_of_a_message_and_of_a_source() -> None:
    body = ErrorBody(code=ErrorCode.OVERLOADED, message="too many", retry_after_s=2.0)
    of_request = answer_of(ENDED, result(error=body), at=9.0, latency_s=0.0)
    of_message = answer_of(ENDED, RequestFailed(ErrorCode.BAD_INPUT, "the message is empty"), at=9.0, latency_s=0.0)
    of_source = refusal_of("cams", "is a loop", 9.0)
    errors = [each.error for each in (of_request, of_message, of_source)]
    assert [error and (error.code, error.message, error.retry_after_s) for error in errors] == [
        ("overloaded", "too many", 2.0),
        ("bad_input", "the message is empty", None),
        ("bad_source", "is a loop", None),
    ]
    assert of_request.label is None
