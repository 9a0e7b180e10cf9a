"""Resident memory of a mix, measured: the agents of a real site against one real process a task, unsplit.

Owns the weights that both sides load, the totals, and the report. Loads no model itself, and doesn't import torch, so
that it isn't a further process that maps the libraries.

Both sides run on this machine, one after the other, each process at one thread. Nothing is taken off: every process is
reported as the kernel counts it, with what it had before it held a weight, and an empty process beside them.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from broker.protocol.specs import TaskSpec
from s2m3.bench.memory import counts, sides
from s2m3.bench.memory.processes import NOTHING, Memory
from s2m3.bench.memory.sides import Process, Processes
from s2m3.bench.memory.unsplit import ANSWERED, EMPTY, TRANSFORMERS
from s2m3.testbed.site import SiteFailed

SLACK = 1.1  # of an agent's budget over an even share: modules don't divide evenly
ROOM_BYTES = 32 * 1024 * 1024  # beside that: a module occupies some megabytes more than its weights

Say = Callable[[str], None]


def measure(chosen: Mapping[str, TaskSpec], *, agents: int, models: Path | None, say: Say) -> dict[str, Any]:
    """Measure both sides of a mix.

    Args:
        chosen: The tasks by catalogue name.
        agents: How many devices the split side has.
        models: The models directory with what isn't delivered by pip; None writes random weights of the real sizes
            for that, and removes them.
        say: Told what is being done.

    Raises:
        BadFile: there is no Mosquitto, or no ``/proc``.
        SiteFailed: a process ended, or the tasks don't fit the agents.
    """
    sources = [module.source for task in chosen.values() for module in task.modules.values()]
    repositories = list(dict.fromkeys(source.hub for source in sources if source and source.hub))
    exact = counts.mix(chosen)
    budget_bytes = ROOM_BYTES + round(SLACK * max(exact["largest_module_bytes"], exact["shared_bytes"] / agents))
    with ExitStack() as stack:
        directory = models
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2m3-models-")))
            _write_random(repositories, directory, say)
        say(f"split: {agents} agents with {budget_bytes / 1e6:.0f} MB each")
        split, answers = sides.split(chosen, directory, agents, budget_bytes)
        say(f"unsplit: {len(chosen)} processes")
        unsplit, expected = sides.unsplit(chosen, directory)
    empty = unsplit.pop(EMPTY)
    return {
        "tasks": list(chosen),
        "weights": str(models) if models else "random, of the real sizes" if repositories else "as pip delivers them",
        "machine": _machine(),
        "exact": {name: exact[name] for name in ("unshared_bytes", "shared_bytes", "saved_percent")},
        "agent_budget_bytes": budget_bytes,
        "empty": asdict(empty)["memory"],
        "split": {name: asdict(process) for name, process in split.items()},
        "unsplit": {name: asdict(process) for name, process in unsplit.items()},
        "total": totals(split, unsplit, empty.memory[TRANSFORMERS]),
        "answers_equal": {name: answers[name] == expected[name] for name in chosen},
    }


def totals(split: Processes, unsplit: Processes, empty: Memory) -> dict[str, Any]:
    """Sums over each side's processes after every task answered, and what the split side saves.

    Args:
        split: All of the split side's; an agent is one that holds modules.
        unsplit: All of the unsplit side's.
        empty: A process with the libraries and no weights; as many are taken off for the last figure as there are
            processes with weights, and only there.
    """
    agents = [process for process in split.values() if process.holds]
    whole, parts = _sum(unsplit.values()), _sum(split.values())
    above_empty = {
        "unsplit": whole.uss_bytes - len(unsplit) * empty.uss_bytes,
        "split": _sum(agents).uss_bytes - len(agents) * empty.uss_bytes,
    }
    return {
        "unsplit": asdict(whole),
        "split": asdict(parts),
        "saved_percent": {
            name: counts.saved_percent(before, asdict(parts)[name]) for name, before in asdict(whole).items()
        },
        "largest_process_uss_bytes": {
            "unsplit": max(process.memory[ANSWERED].uss_bytes for process in unsplit.values()),
            "split": max(process.memory[ANSWERED].uss_bytes for process in split.values()),
        },
        "uss_above_empty_bytes": above_empty,
        "uss_above_empty_saved_percent": counts.saved_percent(above_empty["unsplit"], above_empty["split"]),
    }


def _sum(processes: Iterable[Process]) -> Memory:
    return sum((process.memory[ANSWERED] for process in processes), NOTHING)


def _write_random(repositories: Iterable[str], models: Path, say: Say) -> None:
    """Random weights of repositories, each written by a process of its own."""
    for repository in repositories:
        say(f"writing random weights of {repository}")
        command = [sys.executable, "-m", "s2m3", "models", "random", repository, "--into", str(models)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise SiteFailed(f"no weights of {repository}: {last[0]}")


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
