"""The pages about models of one's own, followed from first to last line; and a linear head on such an ONNX encoder."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from broker.servers.ports import free_port
from s2m3.cli.main import main
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
PAGES = Path(__file__).parents[2] / "docs" / "how-to"
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


def is_ready(port: int, devices: int = 1) -> bool:
    """Whether an orchestrator leads, and so many devices send heartbeats: by s2m3 status, in this process."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        if main(["status", "--json", "--broker", f"mqtt://127.0.0.1:{port}"]) != 0:
            return False
    seen = json.loads(out.getvalue())
    leads = bool(seen["orchestrator"] and seen["orchestrator"]["online"])
    return leads and sum(bool(device["heartbeat"]) for device in seen["devices"].values()) >= devices


def environment_of(directory: Path, port: int) -> dict[str, str]:
    own_places = {"XDG_CACHE_HOME": str(directory / "cache"), "XDG_STATE_HOME": str(directory / "state")}
    return os.environ | own_places | {"S2M3_BROKER": f"mqtt://127.0.0.1:{port}"}


def follow(page: str, directory: Path, running: ExitStack, port: int) -> list[str]:
    """Write the files of a page and run its commands; returns what each of these printed, of s2m3 request as JSON."""
    environment, said = environment_of(directory, port), list[str]()
    for kind, content in BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8")):
        if kind != "sh":
            file = re.match(r"# (\S+)\n", content)
            assert file, content
            (directory / file[1]).write_text(content)
            continue
        for line in content.splitlines():
            own = line.partition("    #")[0].strip()
            if own.endswith(" &"):
                arguments = own.removesuffix(" &").split()[1:]
                more = ["--port", str(port), "--port-311", "0"] if arguments == ["broker"] else []
                start(running, [sys.executable, "-m", "s2m3", *arguments, *more], directory, environment)
                if more:
                    until(lambda: answers(port))
                continue
            if " deploy " in own:  # which waits for both, but not as long as a busy machine may need
                until(lambda: is_ready(port))
            if " export " in own:  # the page says when
                until(lambda: is_ready(port, devices=2))
            command = re.sub("^s2m3 ", f"{sys.executable} -m s2m3 ", own)
            command = command.replace("python make", f"{sys.executable} make")
            command += " --json" if own.startswith("s2m3 request") else ""
            done = subprocess.run(
                ["sh", "-c", command], cwd=directory, env=environment, text=True, capture_output=True, check=False
            )
            assert done.returncode == 0, (own, done.stdout, done.stderr)
            said.append(done.stdout)
    return said


@pytest.mark.parametrize(("page", "label"), [("own-onnx-model", "7"), ("own-checkpoint", "night")])
def test_the_page_leads_to_an_answer(page: str, label: str, tmp_path: Path, running: ExitStack) -> None:
    said = follow(page, tmp_path, running, free_port())
    assert json.loads(said[-1])["answer"]["label"] == label


@pytest.mark.long
def test_the_page_about_what_if_goes_on_with_the_site_of_the_onnx_model(tmp_path: Path, running: ExitStack) -> None:
    port = free_port()
    follow("own-onnx-model", tmp_path, running, port)
    said = follow("what-if", tmp_path, running, port)
    exported, died, joined = said[1], said[-2], said[-1]
    assert exported.startswith("site: 2 devices (gw-a, gw-b) and 1 task (digits)")
    assert "what if gw-a dies?" in exported
    assert "kill gw-a: It served " in died or "kill gw-a: It served no task: it held only standby copies of" in died
    assert "join gw-a-2: Its first heartbeat came after" in joined


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
