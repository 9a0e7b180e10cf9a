"""Measured memory of real processes: a site's agents, and the whole model in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from s2m3.bench.memory import counts
from s2m3.cli.main import main
from s2m3.testbed import site


@pytest.mark.long
def test_both_sides_are_measured_and_answer_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(site, "Popen", subprocess.Popen)  # a forked process shares memory that it would have alone
    path = tmp_path / "mixes.yaml"
    own = "small:\n  description: the smallest task\n  tasks: [pocket/classify]\n"
    path.write_text(counts.MIXES.read_text() + own)
    monkeypatch.setattr(counts, "MIXES", path)
    assert main(["bench", "memory", "--measure", "small", "--agents", "1", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["answers_equal"] == {"pocket/classify": True}
    assert measured["split"].keys() == {"broker (mosquitto)", "orchestrator", "device-1"}
    assert measured["split"]["device-1"]["holds"] == ["efficientnet-lite0/classifier", "efficientnet-lite0/encoder"]
    weights = measured["exact"]["unshared_bytes"]
    occupied = {each["module"]: each["occupied_bytes"] - each["weights_bytes"] for each in measured["footprints"]}
    assert sorted(occupied) == measured["split"]["device-1"]["holds"]
    assert min(occupied.values()) >= 0
    assert measured["agent_budget_bytes"] > sum(each["occupied_bytes"] for each in measured["footprints"])
    for process, before in (
        (measured["split"]["device-1"], "idle"),
        (measured["unsplit"]["pocket/classify"], "imported"),
    ):
        assert process["weights_bytes"] == weights
        memory = process["memory"]
        # the allocator may use for them what it had free before
        assert memory["loaded"]["uss_bytes"] - memory[before]["uss_bytes"] > weights / 2
        assert memory["answered"]["anonymous_bytes"] > weights, "weights are in the process's own memory"
    parts = [process["memory"]["answered"]["uss_bytes"] for process in measured["split"].values()]
    assert measured["total"]["split"]["uss_bytes"] == sum(parts)
    assert measured["weights"] == "as pip delivers them"
    one = measured["one_agent"]
    assert one["peak_rss_bytes"] >= one["rss_bytes"] > one["uss_bytes"] > weights


def test_onnx_is_measured_for_the_weights_of_pip_only(
    exit_code: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["bench", "memory", "--measure", "paper", "--engine", "onnx"]) == 2
    assert "--engine: onnx is measured for weights that pip delivers; measure a mix" in capsys.readouterr().err


@pytest.mark.long
def test_agents_with_onnx_are_measured_and_answer_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--measure", "pocket", "--agents", "1", "--engine", "onnx", "--models", str(tmp_path)]
    assert main(["bench", "memory", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "one onnx agent with all modules: " in printed
    assert "answers that differ: none" in printed
