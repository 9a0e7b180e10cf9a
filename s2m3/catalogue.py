"""Finds task specs by name: the catalogue that is installed, or a file.

Owns how a person names a task. Knows nothing of what a spec says.
"""

from __future__ import annotations

from pathlib import Path

import catalog
from broker.errors import BadFile
from broker.files import load_spec
from broker.specs import TaskSpec


def load_task(name: str) -> TaskSpec:
    """Read a task spec by catalogue name (``pocket/classify``) or by path (``mine.yaml``).

    Raises:
        BadFile: neither, or the file is wrong.
    """
    if name in catalog.names():
        return load_spec(catalog.path(name), TaskSpec)
    if name.endswith((".yaml", ".yml", ".json")) or Path(name).is_file():
        return load_spec(name, TaskSpec)
    known = ", ".join(catalog.names())
    raise BadFile(file=name, problem="is neither in the catalogue nor a file", fix=f"name a file, or one of: {known}")
