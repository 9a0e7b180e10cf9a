"""The description of a module's steps, as an exported module has it."""

from __future__ import annotations

import json
from pathlib import Path

from edge_agent.modules import Module, RequestSteps
from edge_agent.modules.inputs import steps


def made_again(made: RequestSteps, directory: Path) -> RequestSteps:
    """The steps that an export of these steps has, from its JSON and its files."""
    for name, content in steps.files(made).items():
        (directory / name).write_bytes(content)
    return steps.from_description(json.loads(json.dumps(steps.described(made))), directory)


def assert_made_again(module: Module, directory: Path) -> None:
    """Fail unless each use's steps, made again from their description, prepare the same arrays."""
    for use, chosen in module.passes.items():
        again, values = made_again(chosen.steps, directory), chosen.steps.sample()
        assert values is not None
        ours, theirs = chosen.steps.prepare(values), again.prepare(values)
        assert ours.texts == theirs.texts, use
        assert {n: a.tobytes() for n, a in ours.arrays.items()} == {n: a.tobytes() for n, a in theirs.arrays.items()}
