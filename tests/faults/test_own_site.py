"""A running site with a task of one's own is exported, planned and replayed: a device dies, and one more joins."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from broker.files import load_spec
from broker.protocol.specs import FleetSpec
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.cli.main import main
from s2m3.reference.auto_numbers import counted
from s2m3.testbed.replay.library import load_scenario
from s2m3.testbed.replay.report import report
from s2m3.testbed.replay.run import play_all
from s2m3.testbed.site import Site
from s2m3.testbed.what_if import changed_scenario

TASK = """
task: shade
inputs: {image: {kind: image, bytes: 20000}}
nodes: {reader: {module: shade/classifier, needs: [image]}}
output: reader
modules:
  shade/classifier:
    family: onnx.classifier
    source: {hub: local/shade, part: classifier}
    memory_bytes: auto
    flops: auto
    output_bytes: auto
    prepare: {picture: {size: [8, 8], resample: box}}
    labels: [dark, light]
"""


def write_model(file: Path) -> None:
    """A classifier of a picture's mean: below a half it is dark."""
    weight, bias = np.array([[-8.0, 8.0]], np.float32), np.array([4.0, -4.0], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["row"]),
        helper.make_node("Gemm", ["row", "weight", "bias"], ["logits"]),
    ]
    stored = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(bias, "bias"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    takes = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])
    gives = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "shade", [takes], [gives], stored)
    file.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))


def test_a_site_is_exported_and_what_if_is_planned_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, folder = tmp_path / "models", tmp_path / "site"
    write_model(models / "local" / "shade" / "model.onnx")
    (tmp_path / "shade.yaml").write_text(TASK)
    monkeypatch.setenv("S2M3_MODELS", str(models))
    task = load_task(str(tmp_path / "shade.yaml"), counted)
    monkeypatch.delenv("S2M3_MODELS")
    devices = [
        AgentConfig.model_validate({"id": name, "memory": "64MiB", "engine": "onnx", "models": str(models)})
        for name in ("gw-a", "gw-b")
    ]
    with Site("mosquitto", devices) as site:
        site.serve([task])
        assert main(["fleet", "export", str(folder), "--broker", site.url, "--models", str(models), "--json"]) == 0
        held = {name: each.memory_bytes for name, each in site.observer.heartbeats.items()}
    told = json.loads(capsys.readouterr().out)
    assert (told["devices"], told["tasks"], told["made_up_requests"]) == (["gw-a", "gw-b"], ["shade"], ["shade"])

    fleet = load_spec(folder / "fleet.yaml", FleetSpec)
    assert {each.id: each.memory_bytes for each in fleet.devices if each.tasks is None} == held
    assert any("shade/classifier" in each.compute_s for each in fleet.devices)
    plan = ["plan", "--fleet", str(folder / "fleet.yaml"), "--tasks", str(folder / "tasks"), "--json"]
    assert main([*plan, "--without", "gw-a"]) == 0
    assert json.loads(capsys.readouterr().out)["placement"] == {"shade/classifier": "gw-b"}
    assert main([*plan, "--one-more", "gw-a"]) == 0
    assert "gw-a-2" in json.loads(capsys.readouterr().out)["memory_bytes"]["per_device"]

    (folder / "tasks" / "shade.yaml").write_text(TASK)  # as a person writes it
    scenario = load_scenario(str(folder / "scenario.yaml")).shortened()
    ((_, played, recording),) = play_all(
        {"own": changed_scenario(scenario, ["gw-a"], ["gw-a"])}, lambda _: None, short=False, logs=None
    )
    found = report(recording, played.expect)
    assert found.ok, json.dumps(asdict(found), indent=1)
    assert found.sent == found.answered > 0
    died, joined = found.faults
    assert (died.kind, died.target, joined.kind, joined.target) == ("kill", "gw-a", "join", "gw-a-2")
    assert "it was announced as offline after" in died.explained
    assert joined.explained.startswith("Its first heartbeat came after")
    assert "gw-a-2" not in {device for outcome in recording.outcomes[:4] for device in outcome.devices}
