"""``docs/reference`` has a row for each key of an agent's, a task's and a source's file, and each status of HTTP.

The list of how-tos has all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from broker.protocol.sources import SourceSpec
from broker.protocol.specs import ModuleSpec, TaskSpec, Variant
from broker.transport.connection import ConnectionKeys
from edge_agent.config import AgentConfig
from s2m3.http.refusals import STATUSES
from s2m3.sources.files import SourcesFile

PAGES = Path(__file__).parents[2] / "docs" / "reference"
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def test_each_how_to_is_in_the_list_that_the_readme_names() -> None:
    folder = PAGES.parent / "how-to"
    listed = re.findall(r"\]\(([a-z0-9.-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(page.name for page in folder.glob("*.md") if page.name != "README.md")
    assert "(docs/how-to/README.md)" in (PAGES.parents[1] / "README.md").read_text(encoding="utf-8")


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


def test_each_key_of_a_source_file_is_explained_once() -> None:
    page = (PAGES / "source-file.md").read_text(encoding="utf-8")
    of_source, of_file = (ROW.findall(table) for table in page.split("| key beside"))
    assert of_source == list(SourceSpec.model_fields)
    assert of_file == list(SourcesFile.model_fields)


def test_each_error_code_has_its_status_over_http_in_the_page() -> None:
    page = (PAGES / "http.md").read_text(encoding="utf-8")
    assert [code for code, status in STATUSES.items() if f"| {status} | `{code}` |" not in page] == []
