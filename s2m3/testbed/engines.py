"""The engines of a site's agents: the exports that ONNX Runtime needs, and when an answer equals the unsplit model's.

Owns where the exports are kept between runs, and which engine is compared how. Knows no site and no scenario.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, cast

from pydantic import JsonValue

from broker.client import Response
from broker.directories import cache_directory
from broker.protocol.errors import ModuleRefused
from edge_agent.modules.weights import exports
from s2m3.catalogue import load_task
from s2m3.export.compare import TOLERANCE, same_answer
from s2m3.testbed.site import SiteFailed

Engine = Literal["torch", "onnx"]


def exported(tasks: Iterable[str], say: Callable[[str], object], directory: Path | None = None) -> Path:
    """The directory with the exports of all modules of these tasks that torch runs.

    What is missing there, or isn't as it was written, is written first.

    Without a ``directory`` it is that of all runs, which may be deleted.

    Raises:
        SiteFailed: a task can't be exported.
    """
    directory = directory or cache_directory("XDG_CACHE_HOME") / "exports"
    for name in tasks:
        wanted = {module.key for module in load_task(name).modules.values() if module.engine == "torch"}
        if not wanted <= {_key_of(path) for path in exports.found_in(directory)}:
            say(f"exporting the modules of {name} to {directory} ...")
            command = [sys.executable, "-m", "s2m3", "models", "export", name, "--to", str(directory)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SiteFailed(f"`s2m3 {' '.join(command[3:])}` failed: {done.stdout}{done.stderr}")
    return directory


def _key_of(directory: Path) -> str | None:
    """The module of an export; None if one of its files isn't as it was written."""
    try:
        found = exports.read(directory)
        for name, sha256 in {**found.files, **{use.file: use.sha256 for use in found.uses.values()}}.items():
            exports.checked(directory, name, sha256)
    except ModuleRefused:
        return None
    return found.key


def is_equal(engine: Engine, response: Response, wanted: Mapping[str, JsonValue]) -> bool:
    """Whether a response has the wanted answer, as ``is_same`` compares it."""
    return response.ok and is_same(engine, response.result.answer, wanted)


def is_same(engine: Engine, answer: Mapping[str, JsonValue] | None, wanted: Mapping[str, JsonValue]) -> bool:
    """Whether an answer is the wanted one: bit for bit by torch, else the same text and nearly its score.

    ``engine`` is onnx if any agent of the site has it.
    """
    if engine == "torch" or answer is None:
        return answer == wanted
    one, other = (cast("float", each.get("score", 0.0)) for each in (answer, wanted))
    return same_answer(wanted, answer) and abs(one - other) <= TOLERANCE
