"""``s2m3 bench latency`` on real agents: the small workload, few requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2m3.cli.main import main

SETTINGS = """
name: a slow line
uplink: {up_bits_per_s: 4e+6, round_trip_s: 0.2}
devices: [{id: camera}]
"""


@pytest.mark.long
def test_a_cloud_behind_a_slow_line_takes_at_least_the_line_and_every_answer_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(SETTINGS)
    asked = ["--compare", "cloud", "--settings", str(file), "--workload", "pocket/vqa", "--requests", "2", "--json"]
    assert main(["bench", "latency", *asked]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["settings"]["uplink"]["up_bits_per_s"] == 4e6
    (row,) = report["workloads"]
    assert row["same_answers"]
    # the line has been crossed both ways, the larger input with its bytes; how fast the rest is, nobody promises
    assert row["cloud"]["latency_s"]["min"] > 0.2 + 8 * row["input_bytes"]["image"] / 4e6
    for mode, device in (("cloud", "cloud"), ("local", "camera"), ("split", "camera")):
        assert row[mode]["requests"] == 2
        assert {name for node in row[mode]["nodes"].values() for name in node["devices"]} == {device}
    taken = row["split"]["latency_s"]["p50"] / row["cloud"]["latency_s"]["p50"]
    assert row["reduction_against_cloud"]["p50"] == pytest.approx(1 - taken)
