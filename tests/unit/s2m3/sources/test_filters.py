"""The levels that a filter's ``+`` matched, and which sources can't run together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.client import topic_matches_sub

from broker.protocol.sources import SourceSpec
from s2m3.sources.filters import Problem, captures_of, overlap, problems

PREFIX = "s2m3/v1"
LEVELS = ("a", "b", "")
TOPICS = ["/".join(levels) for count in (1, 2, 3) for levels in itertools.product(LEVELS, repeat=count)]
FILTERS = ["/".join(levels) for count in (1, 2, 3) for levels in itertools.product(("a", "b", "+"), repeat=count)]
FILTERS += [f"{each}/#" for each in FILTERS if each.count("/") < 2] + ["#"]


@pytest.mark.parametrize(
    ("filter_", "topic", "captures"),
    [
        ("frigate/+/person/snapshot", "frigate/door/person/snapshot", ("door",)),
        ("+/+/x", "a//x", ("a", "")),
        ("a/+/#", "a/b/c/d", ("b",)),
        ("a/#", "a", ()),
        ("a/+", "a", None),
        ("a", "a/b", None),
        ("+/a", "$SYS/a", None),
        ("#", "$SYS/a", None),
    ],
)
def test_the_levels_that_matched(filter_: str, topic: str, captures: tuple[str, ...] | None) -> None:
    assert captures_of(filter_, topic) == captures


def test_a_filter_matches_what_it_matches_at_a_broker() -> None:
    for filter_, topic in itertools.product(FILTERS, TOPICS):
        assert (captures_of(filter_, topic) is not None) == topic_matches_sub(filter_, topic), (filter_, topic)


def test_two_filters_overlap_if_a_topic_matches_both() -> None:
    topics = ["/".join(levels) for count in (1, 2, 3, 4) for levels in itertools.product("ab", repeat=count)]
    matching = {each: {topic for topic in topics if topic_matches_sub(each, topic)} for each in FILTERS}
    for one, other in itertools.product(FILTERS, FILTERS):
        assert overlap(one, other) == bool(matching[one] & matching[other]), (one, other)


def source(name: str, subscribe: str, publish: str | None = None) -> SourceSpec:
    fields: dict[str, Any] = {"source": name, "subscribe": subscribe, "task": "t", "publish": publish}
    return SourceSpec.model_validate(fields)


def all_problems(specs: list[SourceSpec]) -> Iterator[Problem]:
    for number, spec in enumerate(specs):
        yield from problems(spec, specs[:number], PREFIX, ["homeassistant/device/s2m3/+/config"])


@pytest.mark.parametrize(
    ("specs", "field", "says"),
    [
        ([source("a", "#")], "subscribe", "can match topics of this site"),
        ([source("a", "s2m3/+/tasks/t/route")], "subscribe", "can match topics of this site"),
        ([source("a", "+/+/x", "{1}/{2}/y")], "subscribe", "can match topics of this site"),
        ([source("a", "x/+/+", "{1}/{2}/y")], "publish", "can match topics of this site"),
        ([source("a", "home/#", "home/who")], "publish", "is a loop: this source reads home/#"),
        ([source("a", "home/+/x", "home/{1}/x")], "publish", "is a loop: this source"),
        ([source("a", "x", "y/z"), source("b", "y/+", "z")], "publish", "is a loop: the source b reads y/+"),
        ([source("a", "homeassistant/#")], "subscribe", "which the sources themselves publish"),
    ],
)
def test_sources_that_cant_run_together(specs: list[SourceSpec], field: str, says: str) -> None:
    spec, place, problem, fix = next(all_problems(specs))
    assert spec is specs[0]
    assert place == field
    assert says in problem
    assert fix


def test_sources_that_can() -> None:
    specs = [source("a", "cams/+/jpeg", "cams/{1}/label"), source("b", "cams/+/jpeg", "seen/{1}"), source("c", "x/y")]
    assert list(all_problems(specs)) == []
