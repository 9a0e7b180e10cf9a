"""Memory of a mix, measured: the agents of a real site against one real process for each whole model.

Owns the choice of weights, the totals, and the report. Loads no model itself and doesn't import torch, so that it is
not one more process that maps the libraries.

Both sides run on this machine, one after the other, each process with one thread. Nothing is subtracted: every process
is reported as the kernel counts it, before and after it loads weights, and an empty process beside them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from broker.protocol.specs import TaskSpec
from s2m3.bench import machine, weights
from s2m3.bench.memory import counts, sides
from s2m3.bench.memory.processes import NOTHING, Memory
from s2m3.bench.memory.sides import Process, Processes
from s2m3.bench.memory.unsplit import ANSWERED, EMPTY, TRANSFORMERS

SLACK = 1.1  # an agent's budget over an even share: modules don't divide evenly
ROOM_BYTES = 32 * 1024 * 1024  # in addition: a module occupies some megabytes more than its weights


def measure(
    chosen: Mapping[str, TaskSpec], *, agents: int, models: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The report of both sides of a mix, the split one on this number of agents, measured.

    Without a models directory, weights that pip doesn't deliver are random ones of the real sizes.

    Raises:
        BadFile: Mosquitto or ``/proc`` is missing.
        SiteFailed: a process ended, or the tasks don't fit the agents.
    """
    exact = counts.mix(chosen)
    budget_bytes = ROOM_BYTES + round(SLACK * max(exact["largest_module_bytes"], exact["shared_bytes"] / agents))
    with ExitStack() as stack:
        directory = models
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2m3-models-")))
            weights.provide(directory, chosen.values(), progress)
        progress(f"split: {agents} agents with {budget_bytes / 1e6:.0f} MB each")
        split, answers = sides.split(chosen, directory, agents, budget_bytes)
        progress(f"unsplit: {len(chosen)} processes")
        unsplit, expected = sides.unsplit(chosen, directory)
    empty = unsplit.pop(EMPTY)
    return {
        "tasks": list(chosen),
        "weights": _origin(chosen, models),
        "machine": machine.description_for_memory(),
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

    The last two figures, and only these, subtract an empty process for each process with weights.
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


def _origin(chosen: Mapping[str, TaskSpec], models: Path | None) -> str:
    if models:
        return str(models)
    return "random, of the real sizes" if weights.repositories(chosen.values()) else "as pip delivers them"
