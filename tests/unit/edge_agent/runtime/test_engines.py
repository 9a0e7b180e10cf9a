"""The engine that an agent's file asks for, and the error where it isn't installed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from edge_agent.config import AgentConfig
from edge_agent.runtime import engines
from tests.patience import run_python


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Collection[str]:
    """The engines that are installed; a test changes them."""
    names = {"torch", "onnx", "ctranslate2"}
    monkeypatch.setattr(engines, "is_installed", names.__contains__)
    return names


def test_auto_is_torch_where_it_is_installed_and_else_onnx(installed: set[str]) -> None:
    assert engines.chosen("auto") == "torch"
    installed.remove("torch")
    assert engines.chosen("auto") == "onnx"
    assert AgentConfig(id="gw-a").engine == "auto"


@pytest.mark.parametrize(("wanted", "package", "extra"), [("torch", "torch", "agent"), ("onnx", "onnxruntime", "onnx")])
def test_an_engine_that_is_not_installed_is_told_with_the_extra_that_brings_it(
    installed: set[str], wanted: engines.AgentEngine, package: str, extra: str
) -> None:
    installed.remove(wanted)
    with pytest.raises(BadFile) as caught:
        engines.chosen(wanted, "gw-a.yaml")
    assert str(caught.value) == (
        f"gw-a.yaml: engine: {wanted} needs the Python package {package}, which is not installed here; "
        f"install the [{extra}] extra, or write engine: auto"
    )


def test_a_machine_without_any_engine_is_told_both_extras(installed: set[str]) -> None:
    installed.clear()
    with pytest.raises(BadFile, match=r"neither torch nor onnxruntime is installed here; install the \[agent\] extra"):
        engines.chosen("auto")


def test_cuda_without_torch_names_the_field_that_asks_for_it(installed: set[str]) -> None:
    assert engines.chosen("auto", needs_cuda=True) == "torch"
    installed.remove("torch")
    with pytest.raises(BadFile) as caught:
        engines.chosen("auto", "gw-a.yaml", needs_cuda=True)
    assert str(caught.value) == (
        "gw-a.yaml: accelerator: cuda needs the Python package torch, which is not installed here; "
        "install the [agent] extra, or write accelerator: cpu"
    )


@pytest.mark.parametrize(
    ("engine", "fix"),
    [
        ("torch", "install the [agent] extra again, or write engine: onnx"),
        ("onnx", "install the [onnx] extra again, or write engine: torch"),
    ],
)
@pytest.mark.parametrize("raises", ["ImportError", "OSError", "RuntimeError"])
def test_an_engine_that_is_installed_and_broken_ends_an_agent_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: engines.AgentEngine, fix: str, raises: str
) -> None:
    (tmp_path / "broken.py").write_text(f'raise {raises}("lib.so: no such file\\nmore")', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engines, "PACKAGES", {engine: "broken"})
    with pytest.raises(BadFile) as caught:
        engines.imported(engine, "gw-a.yaml")
    problem = "broken is installed here and can't be imported (lib.so: no such file)"
    assert str(caught.value) == f"gw-a.yaml: engine: {problem}; {fix}"


def test_an_agent_with_onnx_never_runs_torch(installed: set[str]) -> None:
    assert engines.usable("onnx") == ("onnx", "ctranslate2")
    assert engines.usable("torch") == ("torch", "ctranslate2", "onnx")
    installed.remove("ctranslate2")
    assert engines.usable("onnx") == ("onnx",)


def test_looking_for_engines_imports_none() -> None:
    code = "from edge_agent.runtime import engines; from edge_agent.device.about import about; import sys"
    found = run_python(f"{code}; engines.chosen('auto'); about(); print(*sys.modules)").split()
    assert not {"torch", "transformers", "onnxruntime", "ctranslate2"} & set(found)


def test_onnx_runtime_sends_no_usage_data_and_keeps_no_database() -> None:
    code = """
import os
import edge_agent
import onnxruntime
print(os.environ["ORT_DISABLE_TELEMETRY"])
for name in os.listdir("/proc/self/fd"):
    if os.path.lexists(f"/proc/self/fd/{name}"):
        print(os.readlink(f"/proc/self/fd/{name}"))
"""
    first, *opened = run_python(code).splitlines()
    assert first == "1"
    assert not [each for each in opened if "onnxruntime.db" in each]
