"""A real site of two engines: one agent runs torch, one runs ONNX exports, and either answers when the other dies."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from broker.protocol.messages import DeviceState
from s2m3.export.write import export
from s2m3.testbed.engines import exported
from s2m3.testbed.replay import stage
from s2m3.testbed.replay.library import load_scenario
from s2m3.testbed.replay.report import report
from s2m3.testbed.replay.run import play

NAME = "mixed-engines"


def test_when_one_engine_dies_the_other_gives_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = load_scenario(NAME).shortened()
    made = export(scenario.tasks[0], tmp_path, "float32", lambda _: None, most=1)  # in this process: its torch is warm
    assert made["ok"], made
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("export.json")}
    monkeypatch.setattr(stage, "exported", lambda tasks, say: exported(tasks, say, tmp_path))
    with stage.Stage(scenario) as site:
        recording = play(scenario, site)
        states = [(s.id, s.message) for s in recording.sightings if isinstance(s.message, DeviceState)]
        keys = {module.key for spec in site.specs for module in spec.modules.values()}
    assert {path: path.stat().st_mtime_ns for path in written} == written, "they were there, and are used as they are"
    found = report(recording, scenario.expect)
    assert found.ok, json.dumps(asdict(found), indent=1)
    profiles = {name: state.profile for name, state in states if state.profile}
    assert {name: profile.engines[0] for name, profile in profiles.items()} == {"gw-torch": "torch", "gw-onnx": "onnx"}
    assert profiles["gw-onnx"].exports.keys() == keys
    (fault,) = found.faults
    survivor = ({"gw-torch", "gw-onnx"} - {fault.target}).pop()
    ways = [outcome.devices for outcome in recording.outcomes]
    assert fault.target in ways[0]
    assert ways[-1] == (survivor,)
