"""The orchestrator's resident memory: what it imports, and freed memory that it returns."""

from __future__ import annotations

import pytest

from orchestrator.freed_memory import AFTER_S, FreedMemory
from tests.builders import chain, device, module
from tests.patience import run_python

CONNECT = """
import broker.process, rich, structlog, sys

def connect():
    password = "hun" + "ter2"
    raise ValueError("no such host")

sys.stderr.isatty = lambda: True
broker.process.log_to_stderr()
sys.stderr = sys.stdout
try:
    connect()
except ValueError:
    structlog.get_logger().exception("connection_failed")
"""

REPAIR = """
import orchestrator.__main__, sys
from broker.protocol.specs import DeviceSpec, TaskSpec
from orchestrator.planner.spares import spares

task, *devices = sys.argv[1:]
task, devices = TaskSpec.model_validate_json(task), [DeviceSpec.model_validate_json(each) for each in devices]
home = {each.key: "a" for each in task.modules.values()}
chosen = spares(devices, [task], home, only=dict.fromkeys(home, ("b", "c")))
print(*{name for there in chosen.standby.values() for name in there}, "numpy" in sys.modules)
"""


def test_the_orchestrators_own_process_chooses_spares_without_numpy() -> None:
    task = chain("see", module("eye"), module("head"), devices=("a", "b"))
    devices = [device("a"), device("b").model_copy(update={"engines": ("torch", "onnx")}), device("c", speed=99e9)]
    given = [each.model_dump_json() for each in (task, *devices)]
    assert run_python(REPAIR, *given).split() == ["b", "False"]


@pytest.mark.parametrize(
    "module", ["orchestrator.__main__", "orchestrator.planner_process.__main__", "edge_agent.__main__"]
)
def test_a_service_imports_no_rich(module: str) -> None:
    imported = run_python(f"import {module}, sys; print(*sys.modules)").split()
    assert "pydantic" in imported
    assert not {"rich", "pygments", "torch", "transformers"}.intersection(imported)


def test_rich_can_be_imported_later_and_tracebacks_at_a_terminal_list_no_local_variables() -> None:
    printed = run_python(CONNECT)
    assert "connection_failed" in printed
    assert "ValueError: no such host" in printed
    assert "hunter2" not in printed


def test_freed_memory_is_returned_some_time_after_work_and_rarely() -> None:
    returned: list[float] = []
    now_s = 0.0
    memory = FreedMemory(lambda: returned.append(now_s))
    for now_s in range(100):
        if 5 <= now_s < 28:
            memory.on_work(now_s)
        memory.return_if_due(now_s)
    assert returned == [5 + AFTER_S, 16 + AFTER_S, 27 + AFTER_S]
