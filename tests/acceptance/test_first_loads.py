"""Two boxes whose files of one name differ: the first ones are served, and the other box says that it has others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from broker.servers.ports import free_port
from tests.patience import PATIENCE_S, until

LABELS = ("--labels", "dark,bright")


def write(models: Path, bias: float) -> None:
    """A file that tells dark pictures from bright ones."""
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Gemm", ["column", "weight", "bias"], ["logits"]),
    ]
    numbers = {"weight": np.array([[-9.0, 9.0]], np.float32), "bias": np.array([bias, 0.0], np.float32)}
    weights = [numpy_helper.from_array(each, name) for name, each in numbers.items()]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "last"))
    takes = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])
    graph = helper.make_graph(nodes, "light", [takes], [helper.make_empty_tensor_value_info("logits")], weights)
    folder = models / "local" / "light"
    folder.mkdir(parents=True)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(folder / "model.onnx"))


class Site:
    """A broker, an orchestrator, and agents of ONNX Runtime, each with a models directory of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack, self._port = folder, stack, free_port()
        places = {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
        self._environ = os.environ | places | {"S2M3_BROKER": f"mqtt://127.0.0.1:{self._port}", "COLUMNS": "1000"}
        self.start("broker", "--port", str(self._port), "--port-311", "0")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "s2m3", *arguments]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=self.folder, env=self._environ, stdout=quiet, stderr=quiet)
        self._stack.callback(process.wait, PATIENCE_S)
        self._stack.callback(process.terminate)
        return process

    def agent(self, name: str) -> subprocess.Popen[bytes]:
        (self.folder / f"{name}.yaml").write_text(f"id: {name}\nmodels: models-{name}\nengine: onnx\nmemory: 64MiB\n")
        return self.start("agent", "--config", f"{name}.yaml")

    def run(self, *arguments: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "s2m3", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self._environ, text=True, capture_output=True, check=False)
        assert expect is None or done.returncode == expect, (arguments, done.stdout, done.stderr)
        return done

    def is_ready(self) -> bool:
        """Whether an orchestrator leads, and a device sends heartbeats."""
        done = self.run("status", "--json", expect=None)
        seen = json.loads(done.stdout) if done.returncode == 0 else {"devices": {}}
        return any(device["heartbeat"] for device in seen["devices"].values())

    def status(self) -> dict[str, object]:
        seen = json.loads(self.run("status", "--json", expect=None).stdout)
        found: dict[str, object] = seen["statuses"].get("light", {})
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


@pytest.mark.long
def test_a_box_with_other_files_serves_them_only_when_the_task_file_says_so(site: Site, tmp_path: Path) -> None:
    write(tmp_path / "models-gw-a", 0.0)
    write(tmp_path / "models-gw-b", 1.0)
    leader, first = site.start("orchestrator"), site.agent("gw-a")
    shutil.copy(Path(__file__).parents[2] / "docs" / "images" / "dashboard-dark.png", tmp_path / "dark.png")
    (tmp_path / "light.yaml").write_text(site.run("models", "task", "models-gw-a/local/light", *LABELS).stdout)
    until(site.is_ready)
    site.run("deploy", "light.yaml")
    until(lambda: bool(site.status().get("digests")))
    site.agent("gw-b")
    first.terminate()
    first.wait(PATIENCE_S)
    until(lambda: "gw-b doesn't load its weights of onnx.classifier hub:local/light" in shown(site))
    assert "write digest: sha256:" in shown(site)
    leader.kill()
    site.start("orchestrator")
    until(lambda: "gw-a first loaded sha256:" in shown(site))
    stated = site.run("models", "task", "models-gw-b/local/light", "--digest", *LABELS).stdout
    (tmp_path / "light.yaml").write_text(stated)
    assert "classifier on gw-b" in site.run("deploy", "light.yaml").stdout
    answer = json.loads(site.run("request", "light", "--image", "dark.png", "--json").stdout)
    assert answer["answer"]["label"] in {"dark", "bright"}


def shown(site: Site) -> str:
    """The words of the status, without the frames and the line breaks of its tables."""
    words = site.run("status", expect=None).stdout.replace("│", " ").split()
    return " ".join(words)
