"""docs/how-to/own-onnx-model.md, followed from its first to its last line; and a linear head on such an encoder."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from broker.servers.ports import free_port
from s2m3.export import write
from s2m3.head.train import Training, train
from tests.patience import PATIENCE_S, until

ENCODER = """
task: grey
inputs: {image: {kind: image, bytes: 20000}}
nodes: {encoder: {module: grey/encoder, needs: [image]}}
output: encoder
modules:
  grey/encoder:
    family: onnx.encoder
    source: {hub: local/grey, part: encoder}
    memory_bytes: 20000
    flops: 192
    output_bytes: 256
    prepare: {picture: {size: [8, 8], resample: box}}
"""
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-onnx-model.md"
BLOCK = re.compile(r"```(python|sh|yaml)\n(.*?)```", re.DOTALL)


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Whatever it started has ended after the test."""
    with ExitStack() as stack:
        yield stack


def start(running: ExitStack, command: list[str], directory: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL)
    running.callback(process.wait, PATIENCE_S)
    running.callback(process.terminate)


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def status(directory: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "s2m3", "status"]
    done = subprocess.run(command, cwd=directory, env=environment, text=True, capture_output=True, check=False)
    return done.stdout


def test_the_page_leads_to_an_answer(tmp_path: Path, running: ExitStack) -> None:
    port = free_port()
    own_places = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "state")}
    environment = os.environ | own_places | {"S2M3_BROKER": f"mqtt://127.0.0.1:{port}"}
    said = ""
    for kind, content in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind != "sh":
            file = re.match(r"# (\S+)\n", content)
            assert file, content
            (tmp_path / file[1]).write_text(content)
            continue
        for line in content.splitlines():
            own = line.partition("    #")[0].strip()
            if own.endswith(" &"):
                arguments = own.removesuffix(" &").split()[1:]
                more = ["--port", str(port)] if arguments == ["broker"] else []
                start(running, [sys.executable, "-m", "s2m3", *arguments, *more], tmp_path, environment)
                if more:
                    until(lambda: answers(port))
                continue
            if " deploy " in own:  # which waits for an orchestrator, but not as long as a busy machine may need
                until(lambda: ", online" in status(tmp_path, environment))
            command = own.replace("s2m3 ", f"{sys.executable} -m s2m3 ").replace(
                "python make", f"{sys.executable} make"
            )
            command += " --json" if "request" in command else ""
            done = subprocess.run(
                ["sh", "-c", command], cwd=tmp_path, env=environment, text=True, capture_output=True, check=False
            )
            assert done.returncode == 0, (own, done.stdout, done.stderr)
            said = done.stdout
    assert json.loads(said)["answer"]["label"] == "7"


def test_a_linear_head_is_fitted_on_an_encoder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "local" / "grey").mkdir(parents=True)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["grey"], axes=[1]),
        helper.make_node("Flatten", ["grey"], ["row"]),
    ]
    takes = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])
    graph = helper.make_graph(nodes, "grey", [takes], [helper.make_empty_tensor_value_info("row")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(tmp_path / "models" / "local" / "grey" / "model.onnx"))
    (tmp_path / "grey.yaml").write_text(ENCODER)
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path / "models"))
    asked = Training(
        encoder=str(tmp_path / "grey.yaml"),
        data="digits",
        format=None,
        name=None,
        limit=400,
        seed=0,
        regularisation=1.0,
        models=tmp_path / "models",
        out=str(tmp_path / "digits.yaml"),
    )
    task, report = train(asked, lambda _: None)
    assert [task.module_of(node).family for node in task.order] == ["onnx.encoder", "heads.linear"]
    assert report["accuracy"] > 0.8, "digits of 8 x 8 pixels are easy"
    exported = write.export(str(tmp_path / "digits.yaml"), tmp_path / "models", "float32", lambda _: None, most=3)
    assert exported["ok"]
    assert [each["state"] for each in exported["modules"]] == ["not needed", "exported"]
