"""Names of tasks as a person writes them in a command. Owns the error for a file or a model in their place."""

from __future__ import annotations

import re

from broker.protocol.errors import BadFile
from broker.protocol.specs import ID_PATTERN
from s2m3.catalogue import load_task


def task_name(text: str) -> str:
    """The name of a task as a person wrote it; raises BadFile for a file or a model."""
    if re.fullmatch(ID_PATTERN.removesuffix("$"), text):
        return text
    problem = "names a file or a model, and this takes the name of a task"
    raise BadFile(file=text, problem=problem, fix=f"write {_name_in(text)}")


def _name_in(file: str) -> str:
    """The name of the task of a file or a model, for a sentence."""
    try:
        return load_task(file).task
    except BadFile:
        return "the name that stands in its `task:`"
