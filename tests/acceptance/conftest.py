"""A whole site of real processes over a real Mosquitto, and the command line to use it with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.site import Site

Run = Callable[..., subprocess.CompletedProcess[str]]


def agents(**memory: str) -> list[AgentConfig]:
    """Agents by id (with ``_`` for ``-``) and memory."""
    return [AgentConfig.model_validate({"id": name.replace("_", "-"), "memory": size}) for name, size in memory.items()]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Two devices that serve all three tasks; the vision modules fit the first, the text encoder only the second."""
    specs = [load_task(f"pocket/{name}") for name in ("classify", "zero-shot", "vqa")]
    with Site("mosquitto", agents(gw_a="48MiB", gw_b="160MiB")) as running:
        running.serve(specs)
        yield running


@pytest.fixture
def plain(exit_code: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line, in this process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = exit_code(arguments)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture
def s2m3(site: Site, plain: Run) -> Run:
    """Run the command line against the site, in this process."""

    def run(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = plain(*arguments, "--broker", site.url)
        assert done.returncode == expect, done
        return done

    return run


@pytest.fixture
def jpeg() -> Path:
    """A real photograph, as a camera would send it."""
    return picture("rocket.jpg").path


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document that a command printed."""
    return json.loads(done.stdout)
