"""Random weights of real size, where a benchmark has no real ones. Other processes write them: no torch here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from broker.protocol.specs import TaskSpec
from s2m3.testbed.site import SiteFailed


def repositories(tasks: Iterable[TaskSpec]) -> list[str]:
    """The hub repositories that tasks take weights from, each once."""
    sources = [module.source for task in tasks for module in task.modules.values()]
    return list(dict.fromkeys(source.hub for source in sources if source and source.hub))


def provide(models: Path, tasks: Iterable[TaskSpec], progress: Callable[[str], None]) -> None:
    """Write random weights into a models directory for those repositories of tasks that it doesn't have.

    Raises:
        SiteFailed: one can't be written, with the reason.
    """
    for repository in repositories(tasks):
        if not (models / repository).is_dir():
            progress(f"writing random weights of {repository}")
            command = [sys.executable, "-m", "s2m3", "models", "random", repository, "--into", str(models)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SiteFailed(f"no weights of {repository}: {last_line(done.stderr)}")


def last_line(output: str) -> str:
    """The last line that a process printed."""
    return (output.strip().splitlines() or ["it printed nothing"])[-1]
