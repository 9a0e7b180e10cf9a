"""A source as a person writes it, and as it travels."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from broker.protocol.codec import decode, encode
from broker.protocol.errors import RemoteProtocolError
from broker.protocol.sentences import describe
from broker.protocol.sources import MAX_FILTER_BYTES, SourceSpec, is_filter, steps_of

DOOR: dict[str, Any] = {"source": "door", "subscribe": "frigate/door/person/snapshot", "task": "zero-shot"}


def test_what_is_left_out() -> None:
    spec = SourceSpec.model_validate(DOOR)
    assert (spec.payload, spec.inputs, spec.retained, spec.publish) == ("raw", {}, "skip", None)
    assert (spec.min_interval_s, spec.deadline_s) == (1.0, 10.0)
    assert spec.paths == {}
    assert spec.topic_for(()) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"payload": {"json": {"image": "$.picture"}}, "publish": "home/door/who", "retained": "take"},
        {"inputs": {"text": ["a courier", "nobody"], "question": "who is it?"}, "min_interval_s": 0, "deadline_s": 3},
    ],
)
def test_a_spec_travels_as_json(fields: dict[str, Any]) -> None:
    spec = SourceSpec.model_validate(DOOR | fields)
    assert decode(SourceSpec, encode(spec)) == spec


def test_a_newer_field_of_a_retained_spec_is_ignored_and_a_value_of_another_type_is_refused() -> None:
    told = b'{"source": "door", "subscribe": "a/b", "task": "t", "min_interval_s": 1, "newer": true}'
    assert decode(SourceSpec, told).subscribe == "a/b"
    with pytest.raises(RemoteProtocolError, match="min_interval_s"):
        decode(SourceSpec, told.replace(b'_s": 1', b'_s": "1"'))


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("$", ()),
        ("$.picture", ("picture",)),
        ("$.after.box[0][2].x", ("after", "box", 0, 2, "x")),
        ("$['a key'].b", ("a key", "b")),
        ("$.größe", ("größe",)),
    ],
)
def test_a_json_path_is_read(path: str, steps: tuple[str | int, ...]) -> None:
    assert steps_of(path) == steps


@pytest.mark.parametrize(
    "path", ["", "picture", ".a", "$a", "$.", "$..a", "$.a[", "$.a[-1]", "$.a[*]", "$['a", "$" + ".a" * 200]
)
def test_what_is_not_a_json_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not a JSON path; write it like"):
        steps_of(path)


@pytest.mark.parametrize("text", ["a", "a/+/b", "+", "#", "a/#", "/a", "a//b", "ä/ö"])
def test_filters(text: str) -> None:
    assert is_filter(text)


@pytest.mark.parametrize(
    "text", ["", "a/#/b", "a+", "a#", "x\0", "x\x85", "a/" * 150, "$SYS/#", "$share/g/a", "a" * (MAX_FILTER_BYTES + 1)]
)
def test_what_is_not_a_filter(text: str) -> None:
    assert not is_filter(text)


@pytest.mark.parametrize(
    ("publish", "captures", "topic"),
    [
        ("home/{1}/who", ("door", "person"), "home/door/who"),
        ("home/{2}-{1}", ("door", "person"), "home/person-door"),
        ("home/fixed", ("door", "person"), "home/fixed"),
        ("{1}/{1}", ("", "x"), "/"),
        ("{1}", ("", "x"), None),
        ("{1}/x", ("$CONTROL", "x"), None),
        ("x/{1}", ("a\x01", "x"), None),
        ("x/{1}", ("a" * 2_000, "x"), None),
    ],
)
def test_the_topic_of_an_answer_names_what_the_filter_matched(
    publish: str, captures: tuple[str, ...], topic: str | None
) -> None:
    spec = SourceSpec.model_validate(DOOR | {"subscribe": "frigate/+/+/snapshot", "publish": publish})
    assert spec.topic_for(captures) == topic


@pytest.mark.parametrize(
    ("fields", "place", "says"),
    [
        ({"source": "The Door"}, "source", "is not a valid id"),
        ({"subscribe": "a/#/b"}, "subscribe", "is not an MQTT topic filter"),
        ({"subscribe": "$SYS/#"}, "subscribe", "is not an MQTT topic filter"),
        ({"payload": "jpeg"}, "payload", "is neither raw nor json with paths"),
        ({"payload": {"image": "$.a"}}, "payload", "write raw, or json:"),
        ({"payload": {"json": {}}}, "payload", "is neither raw nor json"),
        ({"payload": {"json": {"image": "picture"}}}, "payload.json.image", "is not a JSON path"),
        ({"payload": {"json": {"image": 3}}}, "payload.json.image", "must be a JSON path in quotes"),
        ({"payload": {"json": {"text": "$.a"}}, "inputs": {"text": "b"}}, "inputs.text", "is taken from the message"),
        ({"inputs": {"text": 3}}, "inputs.text", "must be a text"),
        ({"inputs": {"text": []}}, "inputs.text", "has no words"),
        ({"inputs": {"text": ["a\nb"]}}, "inputs.text", "has a line break"),
        ({"inputs": {"text": "x" * 100_000}}, "inputs.text", "shorten it"),
        ({"min_interval_s": -1}, "min_interval_s", "must be at least 0"),
        ({"min_interval_s": float("nan")}, "min_interval_s", ""),
        ({"deadline_s": 0}, "deadline_s", "greater than 0"),
        ({"retained": "yes"}, "retained", "skip"),
        ({"publish": "home/{1}"}, "publish", "names {1}; subscribe has 0 of +, so there is no such name"),
        ({"subscribe": "a/+", "publish": "home/{2}"}, "publish", "names {2}; subscribe has one +, so there is {1}"),
        ({"subscribe": "+/+", "publish": "home/{0}"}, "publish", "{1} to {2}"),
        ({"subscribe": "a/+", "publish": "home/{x}"}, "publish", "names {x}"),
        ({"subscribe": "a/+", "publish": "home/+"}, "publish", "write {1} for what the first +"),
        ({"publish": "home/#"}, "publish", "is not a topic"),
        ({"publish": ""}, "publish", ""),
        ({"topic": "a"}, "topic", "is not a known field"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(fields: dict[str, Any], place: str, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SourceSpec.model_validate(DOOR | fields)
    field, sentence = describe(refused.value.errors()[0])
    assert field == place
    assert says in sentence
