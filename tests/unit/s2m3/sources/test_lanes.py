"""The time at which a message is sent: the newest one, one at a time, and not too often."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.sources import SourceSpec
from s2m3.sources import lanes as module
from s2m3.sources.lanes import COPY_S, MAX_IN_FLIGHT, MAX_TOPICS, Arrival, Ask, Lanes


def source(name: str = "door", subscribe: str = "cams/door", **fields: Any) -> SourceSpec:
    return SourceSpec.model_validate({"source": name, "subscribe": subscribe, "task": "classify"} | fields)


def running(*specs: SourceSpec) -> Lanes:
    made = Lanes()
    made.run({spec.source: spec for spec in specs})
    return made


def message(payload: bytes = b"1", topic: str = "cams/door", *, retained: bool = False) -> Arrival:
    return Arrival(topic, payload, retained=retained)


def payloads(asks: list[Ask]) -> list[bytes]:
    return [ask.message.payload for ask in asks]


def test_a_message_is_sent_at_once_and_other_topics_are_not() -> None:
    lanes = running(source())
    (ask,) = lanes.on_message(message(), 0.0)
    assert (ask.spec.source, ask.message.payload, ask.captures) == ("door", b"1", ())
    assert lanes.on_message(message(topic="cams/garden"), 0.0) == []
    assert lanes.next_due_s() is None


def test_while_a_request_is_in_flight_the_newest_message_waits_and_the_others_are_counted() -> None:
    lanes = running(source(min_interval_s=0))
    (first,) = lanes.on_message(message(b"1"), 0.0)
    for payload in (b"2", b"3", b"4"):
        assert lanes.on_message(message(payload), 0.1) == []
    assert lanes.next_due_s() is None, "only the answer lets the next one begin"
    ended, asks = lanes.on_end(first.ticket, 1.0)
    assert ended is not None
    assert ended.skipped == 2
    assert payloads(asks) == [b"4"]


def test_the_newest_of_an_interval_is_sent_when_it_may_be_without_a_further_message() -> None:
    lanes = running(source(min_interval_s=5))
    (first,) = lanes.on_message(message(b"1"), 10.0)
    ended, asks = lanes.on_end(first.ticket, 10.2)
    assert (ended is not None, asks) == (True, [])
    assert lanes.on_message(message(b"2"), 11.0) == []
    assert lanes.on_message(message(b"3"), 12.0) == []
    assert lanes.next_due_s() == 15.0
    assert lanes.on_time(14.9) == []
    (second,) = lanes.on_time(15.0)
    assert second.message.payload == b"3"
    ended, _ = lanes.on_end(second.ticket, 15.1)
    assert ended is not None
    assert ended.skipped == 1


def test_an_answer_that_comes_late_lets_the_next_one_begin_at_once() -> None:
    lanes = running(source(min_interval_s=1))
    (first,) = lanes.on_message(message(b"1"), 0.0)
    lanes.on_message(message(b"2"), 0.5)
    assert lanes.on_time(3.0) == []
    assert payloads(lanes.on_end(first.ticket, 7.0)[1]) == [b"2"]


def test_the_time_for_which_the_site_asks_for_quiet_is_kept() -> None:
    lanes = running(source(min_interval_s=0))
    (first,) = lanes.on_message(message(b"1"), 0.0)
    lanes.on_end(first.ticket, 1.0, wait_s=4.0)
    assert lanes.on_message(message(b"2"), 1.5) == []
    assert lanes.next_due_s() == 5.0
    assert payloads(lanes.on_time(5.0)) == [b"2"]


def test_each_concrete_topic_of_a_filter_has_its_own_turn() -> None:
    lanes = running(source(subscribe="cams/+/jpeg"))
    asks = [
        ask for name in ("door", "garden", "door") for ask in lanes.on_message(message(topic=f"cams/{name}/jpeg"), 0)
    ]
    assert [ask.captures for ask in asks] == [("door",), ("garden",)]


def test_several_sources_take_one_message() -> None:
    lanes = running(source("a"), source("b", subscribe="cams/+"), source("c", subscribe="other"))
    assert [ask.spec.source for ask in lanes.on_message(message(), 0.0)] == ["a", "b"]


@pytest.mark.parametrize(("retained", "taken"), [("skip", 0), ("take", 1)])
def test_retained_messages_are_taken_only_by_sources_that_say_so(retained: str, taken: int) -> None:
    lanes = running(source(retained=retained))
    assert len(lanes.on_message(message(retained=True), 0.0)) == taken


def test_a_copy_for_an_overlapping_filter_is_no_further_message() -> None:
    lanes = running(source("a"), source("b", subscribe="cams/+", min_interval_s=0))
    asks = lanes.on_message(message(), 0.0)
    assert lanes.on_message(message(), 0.01) == [], "the broker's copy"
    for ask in asks:
        ended, more = lanes.on_end(ask.ticket, 0.1)
        assert ended is not None
        assert (ended.skipped, more) == (0, [])
    assert len(lanes.on_message(message(), 0.2)) == 1, "as many as filters match came: this is a new one"
    assert [ask.spec.source for ask in lanes.on_message(message(), 0.2 + 2 * COPY_S)] == ["a"], "so is a later one"


def test_one_filter_has_no_copies() -> None:
    lanes = running(source("a", min_interval_s=0), source("b", min_interval_s=0))
    asks = lanes.on_message(message(), 0.0)
    lanes.on_message(message(), 0.0)
    assert [len(lanes.on_end(ask.ticket, 0.1)[1]) for ask in asks] == [1, 1]


def test_a_source_that_is_gone_or_changed_drops_what_waits_and_the_answer() -> None:
    door, garden = source(), source("garden", "cams/garden")
    lanes = running(door, garden)
    (first,) = lanes.on_message(message(b"1"), 0.0)
    lanes.on_message(message(b"2"), 0.0)
    (kept,) = lanes.on_message(message(b"3", "cams/garden"), 0.0)
    lanes.run({"door": source(deadline_s=3), "garden": garden})
    assert lanes.on_end(first.ticket, 1.0) == (None, [])
    assert lanes.on_end(kept.ticket, 1.0)[0] is not None
    assert lanes.on_time(100.0) == []
    assert payloads(lanes.on_message(message(b"4"), 100.0)) == [b"4"]
    lanes.run({})
    assert lanes.filters == frozenset()
    assert lanes.on_message(message(b"5"), 101.0) == []
    assert lanes._bytes == 0


def test_requests_of_a_source_in_flight_are_bounded_and_the_others_follow_in_their_order() -> None:
    lanes = running(source(subscribe="cams/+"))
    topics = [f"cams/{number}" for number in range(MAX_IN_FLIGHT + 3)]
    asks = [ask for topic in topics for ask in lanes.on_message(message(topic=topic), 0.0)]
    assert len(asks) == MAX_IN_FLIGHT
    followed = []
    for ask in asks[:5]:
        followed += lanes.on_end(ask.ticket, 1.0)[1]
    assert [ask.message.topic for ask in followed] == topics[MAX_IN_FLIGHT:]


def test_topics_are_bounded_idle_ones_are_forgotten_first() -> None:
    lanes = running(source(subscribe="cams/+"))
    for number in range(MAX_TOPICS + 50):
        for ask in lanes.on_message(message(topic=f"cams/{number}"), float(number)):
            lanes.on_end(ask.ticket, float(number))
    assert len(lanes._running["door"].lanes) == MAX_TOPICS
    assert lanes.dropped == 0


def test_when_all_topics_are_in_use_a_further_one_is_dropped_and_counted() -> None:
    lanes = running(source(subscribe="cams/+"))
    for number in range(MAX_TOPICS + 5):
        lanes.on_message(message(topic=f"cams/{number}"), 0.0)
    assert lanes.dropped == 5


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    lanes = running(source(subscribe="cams/+", min_interval_s=0))
    (first,) = lanes.on_message(message(b"x" * 8, "cams/a"), 0.0)
    assert lanes.on_message(message(b"y" * 8, "cams/b"), 0.0) == []
    assert lanes.dropped == 1
    lanes.on_end(first.ticket, 1.0)
    assert len(lanes.on_message(message(b"y" * 8, "cams/b"), 1.0)) == 1
