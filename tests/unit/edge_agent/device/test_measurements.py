"""Measurements on the device's disk: they come back, and no damage to the file is ever a failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent.device.measurements import MAX_FILE_BYTES, MAX_MODULES, Measurement, Measurements, setting
from tests.builders import module


def measurement(name: str = "a", compute_s: float | None = 0.5) -> Measurement:
    return Measurement(spec=module(name, memory_bytes=100), memory_bytes=120, compute_s=compute_s)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "gw-a.json"


def test_what_is_kept_is_there_in_the_next_life(path: Path) -> None:
    Measurements(path, "here").keep(measurement())
    again = Measurements(path, "here")
    assert again.modules == {measurement().spec.key: measurement()}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_measurements_of_another_setting_do_not_count_and_are_replaced(path: Path) -> None:
    Measurements(path, "one thread").keep(measurement("a"))
    other = Measurements(path, "two threads")
    assert other.modules == {}
    other.keep(measurement("b"))
    assert list(Measurements(path, "two threads").modules) == [measurement("b").spec.key]


def test_the_newest_of_too_many_are_kept(path: Path) -> None:
    kept = Measurements(path)
    for index in range(MAX_MODULES + 2):
        kept.keep(measurement(f"m{index}"))
    kept.keep(measurement("m2"))
    assert len(Measurements(path).modules) == MAX_MODULES
    assert next(iter(Measurements(path).modules)) == measurement("m3").spec.key


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"setting": "", "modules": {"k": 7}}',
        b'{"setting": ""}',
        b" " * (MAX_FILE_BYTES + 1),
        json.dumps({"setting": "", "modules": {}}).encode()[:-1],
        measurement().model_dump_json().encode(),
    ],
)
def test_a_damaged_file_is_no_failure_and_is_written_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    kept = Measurements(path)
    assert kept.modules == {}
    kept.keep(measurement())
    assert len(Measurements(path).modules) == 1


def test_seconds_that_are_none_in_a_file_are_damage(path: Path) -> None:
    Measurements(path).keep(measurement())
    path.write_text(path.read_text().replace("0.5", "NaN"))
    assert Measurements(path).modules == {}


def test_a_place_that_can_not_be_read_or_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    (tmp_path / "directory.json").mkdir()
    for nowhere in (tmp_path / "file" / "gw-a.json", tmp_path / "directory.json"):
        kept = Measurements(nowhere)
        kept.keep(measurement())
        assert list(kept.modules) == [measurement().spec.key]
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in {".json", ""}] == []


def test_a_setting_names_what_changes_seconds() -> None:
    assert setting(1, "torch 2") != setting(2, "torch 2")
    assert setting(1, "torch 2") != setting(1, "torch 3")
    assert setting(1, "torch 2") == setting(1, "torch 2")
