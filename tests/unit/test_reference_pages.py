"""``docs/reference`` has a row for each key of the agent's file and of a task file, and for no other."""

from __future__ import annotations

import re
from pathlib import Path

from broker.protocol.specs import ModuleSpec, TaskSpec, Variant
from broker.transport.connection import ConnectionKeys
from edge_agent.config import AgentConfig

PAGES = Path(__file__).parents[2] / "docs" / "reference"
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def test_each_key_of_the_agents_file_is_explained_once() -> None:
    page = (PAGES / "agent-file.md").read_text(encoding="utf-8")
    rows = ROW.findall(page)
    own = AgentConfig.model_fields.keys() - ConnectionKeys.model_fields.keys()
    assert sorted(rows) == sorted(own)
    assert all(f"`{key}`" in page for key in ConnectionKeys.model_fields)


def test_each_key_of_a_task_file_is_explained_once() -> None:
    page = (PAGES / "task-file.md").read_text(encoding="utf-8")
    tables = [ROW.findall(table) for table in page.split("| key of a")]
    of_task, of_module, of_variant = tables
    assert sorted(of_task) == sorted(TaskSpec.model_fields)
    assert sorted(of_module) == sorted(ModuleSpec.model_fields)
    assert sorted(of_variant) == sorted(Variant.model_fields)
