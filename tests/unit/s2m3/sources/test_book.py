"""Which sources run: those of files first, and then those that the broker retains."""

from __future__ import annotations

from typing import Any

from broker.protocol.sources import SourceSpec
from s2m3.sources.book import MAX_SOURCES, Book

PREFIX = "s2m3/v1"


def source(name: str, **fields: Any) -> SourceSpec:
    return SourceSpec.model_validate({"source": name, "subscribe": f"cams/{name}", "task": "classify"} | fields)


def test_a_file_wins_over_what_the_broker_retains() -> None:
    of_file, retained = source("door"), source("door", deadline_s=3)
    book = Book(PREFIX, {"door": of_file})
    book.on_spec("door", retained)
    book.on_spec("garden", source("garden"))
    book.choose()
    assert book.running == {"door": of_file, "garden": source("garden")}
    book.on_spec("door", None)
    book.choose()
    assert book.names == {"door", "garden"}


def test_a_retained_source_is_changed_and_removed() -> None:
    book = Book(PREFIX, {})
    book.on_spec("door", source("door"))
    book.on_spec("door", source("door", deadline_s=3))
    book.choose()
    assert book.running["door"].deadline_s == 3
    book.on_spec("door", None)
    book.choose()
    assert book.running == {}


def test_what_cant_run_is_refused_with_its_reason_and_runs_when_it_can() -> None:
    book = Book(PREFIX, {"door": source("door", publish="home/door")}, ["homeassistant/device/s2m3/+/config"])
    book.on_spec("loop", source("loop", subscribe="home/#"))
    book.on_spec("site", source("site", subscribe="s2m3/#"))
    book.on_spec("other", source("name"))
    book.on_spec("broken", "SourceSpec: task: is missing")
    book.choose()
    assert book.running.keys() == {"door"}
    assert book.refused.keys() == {"loop", "site", "other", "broken"}
    assert "publish of the source door is a loop: the source loop reads home/#" in book.refused["loop"]
    assert "publish it at sources/name/spec" in book.refused["other"]
    book.on_spec("loop", source("loop", subscribe="garden/#"))
    book.choose()
    assert book.running.keys() == {"door", "loop"}


def test_after_a_new_link_what_the_broker_lacks_is_gone() -> None:
    book = Book(PREFIX, {"door": source("door")})
    book.on_spec("garden", source("garden"))
    book.on_spec("yard", source("yard"))
    book.choose()
    book.on_link_up()
    book.on_spec("garden", source("garden"))
    book.choose()
    assert book.running.keys() == {"door", "garden", "yard"}, "it may still come"
    book.settle()
    assert book.running.keys() == {"door", "garden"}


def test_retained_sources_are_bounded() -> None:
    book = Book(PREFIX, {})
    for number in range(MAX_SOURCES + 2):
        book.on_spec(f"s{number:04}", source(f"s{number:04}"))
    book.choose()
    assert len(book.running) == MAX_SOURCES
    assert all("retained sources" in reason for reason in book.refused.values())
