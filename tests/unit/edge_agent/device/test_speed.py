"""The speed of an engine, measured in a process that ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from edge_agent.device import profile
from edge_agent.device.speed import begin_to_measure
from edge_agent.runtime import engines
from tests.patience import run_python

FIX = "install the [onnx] extra again, or write engine: torch"


def test_the_engine_is_measured_and_is_not_imported_here() -> None:
    code = "import sys; from edge_agent.device.speed import begin_to_measure"
    said = run_python(f"{code}; print(begin_to_measure('onnx', 1)('cpu') > 1e6, 'onnxruntime' in sys.modules)")
    assert said.split() == ["True", "False"]


def test_an_engine_that_cannot_be_imported_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text('raise OSError("lib.so: no such file")', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engines, "PACKAGES", {"onnx": "broken"})
    with pytest.raises(BadFile) as caught:
        begin_to_measure("onnx", 1, "gw-a.yaml")("cpu")
    problem = "broken is installed here and can't be imported (lib.so: no such file)"
    assert str(caught.value) == f"gw-a.yaml: engine: {problem}; {FIX}"


def test_an_engine_that_cannot_compute_here_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends() -> float:
        os.kill(os.getpid(), signal.SIGILL)  # as a library does that was built for another processor
        return 0.0

    def fails() -> float:
        raise RuntimeError("no kernel\nmore")

    for does, how in ((ends, "SIGILL"), (fails, "no kernel")):
        monkeypatch.setattr(profile, "compute_flops_per_s", lambda does=does, **_: does())
        with pytest.raises(BadFile) as caught:
            begin_to_measure("onnx", 1, "gw-a.yaml")("cpu")
        problem = f"onnxruntime is installed here and can't compute ({how})"
        assert str(caught.value) == f"gw-a.yaml: engine: {problem}; {FIX}"
