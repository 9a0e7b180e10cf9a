"""``s2m3 sources check``: what files would do, without a broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

RATE = "  rate      at most one request in 0.5 s for each topic; the newest message is sent, older ones are skipped"
RATE += " and counted"
Run = Callable[[Sequence[str]], int]
CAMS = """\
homeassistant: true
sources:
- source: cams
  subscribe: cams/+/jpeg
  task: zero-shot
  payload: {json: {image: "$.picture"}}
  inputs: {text: [a cat, a dog]}
  min_interval_s: 0.5
  retained: take
  publish: home/{1}/label
"""


@pytest.fixture
def cams(tmp_path: Path) -> str:
    (tmp_path / "cams.yaml").write_text(CAMS)
    return str(tmp_path / "cams.yaml")


def test_it_says_what_each_source_reads_asks_and_answers(
    exit_code: Run, cams: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["sources", "check", cams]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cams",
        "  reads     cams/+/jpeg; retained messages are taken",
        "  asks      zero-shot, with image at $.picture of the message; text: a cat | a dog",
        RATE,
        "  deadline  10 s",
        "  answers   s2m3/v1/sources/cams/answer and home/{1}/label",
        "Home Assistant finds devices and sources below homeassistant/",
    ]


def test_it_says_it_as_json_and_for_a_site_with_a_prefix(
    exit_code: Run, cams: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["sources", "check", cams, "--site", "plant-4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["homeassistant"] == "homeassistant"
    (source,) = told["sources"]
    assert source["answers"] == ["plant-4/s2m3/v1/sources/cams/answer", "home/{1}/label"]
    assert (source["captures"], source["min_interval_s"], source["retained"]) == (1, 0.5, "take")


def test_a_wrong_file_is_one_line_for_both_commands(
    exit_code: Run, cams: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(cams).write_text(CAMS.replace("cams/+/jpeg", "home/#").replace("{1}", "x"))
    for arguments in (["sources", "check", cams], ["sources", "--config", cams]):
        assert exit_code(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"s2m3: {cams}:10: sources.0.publish: is a loop: this source reads home/#")
        assert told.count("\n") == 1
