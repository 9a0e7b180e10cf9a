"""The numbers in the catalogue's files against those that the published configurations give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from broker.protocol.errors import BadFile
from edge_agent import catalog
from s2m3.catalogue import load_task
from s2m3.reference import zoo

_NUMBERS = ("memory_bytes", "flops", "output_bytes")


def compare(*, write: bool) -> list[dict[str, Any]]:
    """Every number of a hub task that differs from what its configuration gives; ``write`` corrects the files.

    Raises:
        BadFile: a file of the catalogue is wrong.
    """
    differences = []
    for name in zoo.hub_names():
        task, path = load_task(name), catalog.path(name)
        for module, spec in task.modules.items():
            counted = zoo.count(task, module)
            for field in _NUMBERS:
                written, real = getattr(spec, field), getattr(counted, field) or 1
                if written != real:
                    found = {"name": name, "module": module, "field": field, "written": written, "counted": real}
                    differences.append(found)
                    if write:
                        replace_number(path, module, field, real)
    return differences


def replace_number(path: Path, module: str, field: str, value: int) -> None:
    """Replace one number of one module in a task file, and nothing else.

    Raises:
        BadFile: the number doesn't stand on a line of its own.
    """
    text = path.read_text(encoding="utf-8")
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for step in ("modules", module, field):
        node = next((each for key, each in getattr(node, "value", []) if key.value == step), None)
        if node is None:
            raise BadFile(file=str(path), field=f"modules.{module}.{field}", problem="is missing", fix="write 1 there")
    lines = text.splitlines(keepends=True)
    line = node.start_mark.line
    lines[line] = re.sub(rf"({field}:\s*)[^\s,}}#]+", rf"\g<1>{value}", lines[line], count=1)
    path.write_text("".join(lines), encoding="utf-8")
