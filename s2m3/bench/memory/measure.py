"""Memory of a mix, measured: the agents of a real site against one real process for each whole model.

Owns the choice of weights, starting and ending both sides, the moments of measuring, and the report. Loads no model
itself and doesn't import torch, so that it is not one more process that maps the libraries.

What a module occupies beside its weights depends on the processor and on libraries. So one agent measures that first,
and the agents of the split side are as large as the modules need here.

Both sides run on this machine, one after the other, each process with one thread. All processes of a side are measured
at the same moments: before a process holds weights, with all weights loaded, and after every task answered. Nothing is
subtracted: every process is reported as the kernel counts it, and an empty process beside them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from broker.client import Client
from broker.protocol.errors import BadFile
from broker.protocol.specs import ModuleKey, TaskSpec
from broker.servers.mosquitto import MosquittoBroker
from edge_agent.config import AgentConfig
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from s2m3.bench import machine, weights
from s2m3.bench.memory import counts
from s2m3.bench.memory.processes import NOTHING, Memory, memory_of, memory_with_children
from s2m3.bench.memory.unsplit import ANSWERED, EMPTY, IMPORTED, LOADED, TORCH, TRANSFORMERS
from s2m3.bench.requests import requests
from s2m3.testbed.engines import Engine, exported, is_same
from s2m3.testbed.site import Site, SiteFailed

SLACK = 1.1  # an agent's budget over an even share: modules don't divide evenly
ROOM_BYTES = 32 * 1024 * 1024  # in addition: on each agent the first module brings its libraries' own memory
AMPLE = 4  # times the weights, and this is enough for one agent that holds all of them, on any processor
SERVE_S = 300.0  # reading gigabytes
DEADLINE_S = 120.0
GOODBYE_S = 10.0
IDLE = "idle"  # an agent before it holds a module

Answers = dict[str, Any]
"""Task -> its answer, as a sensor gets it."""


@dataclass(frozen=True)
class Footprint:
    """The bytes of a module's weights, and those that an agent measured when it loaded the module."""

    module: str
    weights_bytes: int
    occupied_bytes: int


@dataclass(frozen=True)
class Process:
    """A process of one side."""

    holds: list[str]  # the modules or tasks of its weights
    weights_bytes: int  # exact
    memory: dict[str, Memory]  # by stage; with its own child processes


Processes = dict[str, Process]


def measure(
    chosen: Mapping[str, TaskSpec],
    *,
    agents: int,
    models: Path | None,
    progress: Callable[[str], None],
    engine: Engine = "torch",
) -> dict[str, Any]:
    """The report of both sides of a mix, the split one on this number of agents, measured.

    Without a models directory, weights that pip doesn't deliver are random ones of the real sizes. Agents with the
    engine onnx run exports; those that the models directory, or by default the cache directory, lacks are written
    there. The unsplit processes run torch.

    Raises:
        BadFile: Mosquitto or ``/proc`` is missing, or onnx is asked for weights that pip doesn't deliver.
        SiteFailed: a process ended, or the tasks don't fit the agents.
    """
    exact = counts.mix(chosen)
    if engine == "onnx" and weights.repositories(chosen.values()):
        fix = "measure a mix of pip's weights, such as pocket, or leave --engine out"
        raise BadFile(file="--engine", problem="onnx is measured for weights that pip delivers", fix=fix)
    with ExitStack() as stack:
        directory = exported(chosen, progress, models) if engine == "onnx" else models
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2m3-models-")))
            weights.provide(directory, chosen.values(), progress)
        progress("one agent measures what each module really occupies here")
        ample_bytes = ROOM_BYTES + AMPLE * exact["shared_bytes"]
        footprints, one_agent = measure_footprints(chosen, directory, ample_bytes, engine)
        budget_bytes = even_budget([each.occupied_bytes for each in footprints], agents)
        progress(f"split: {agents} agents with {budget_bytes / 2**20:.0f} MiB each")
        split, answers = measure_split(chosen, directory, agents, budget_bytes, engine)
        progress(f"unsplit: {len(chosen)} processes")
        unsplit, empty, expected = measure_unsplit(chosen, directory)
    return {
        "tasks": list(chosen),
        "engine": engine,
        "weights": _origin(chosen, models),
        "machine": machine.description_for_memory(),
        "exact": {name: exact[name] for name in ("unshared_bytes", "shared_bytes", "saved_percent")},
        "footprints": [asdict(footprint) for footprint in footprints],
        "one_agent": asdict(one_agent),
        "agent_budget_bytes": budget_bytes,
        "empty": {stage: asdict(memory) for stage, memory in empty.items()},
        "split": {name: asdict(process) for name, process in split.items()},
        "unsplit": {name: asdict(process) for name, process in unsplit.items()},
        "total": totals(split, unsplit),
        "answers_equal": {name: is_same(engine, answers[name], expected[name]) for name in chosen},
    }


def totals(split: Processes, unsplit: Processes) -> dict[str, Any]:
    """Sums over each side's processes after every task answered, and what the split side saves."""
    whole, parts = _sum(unsplit.values()), _sum(split.values())
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
    }


def _sum(processes: Iterable[Process]) -> Memory:
    return sum((process.memory[ANSWERED] for process in processes), NOTHING)


def _origin(chosen: Mapping[str, TaskSpec], models: Path | None) -> str:
    if models:
        return str(models)
    return "random, of the real sizes" if weights.repositories(chosen.values()) else "as pip delivers them"


def measure_footprints(
    chosen: Mapping[str, TaskSpec], models: Path, budget_bytes: int, engine: Engine
) -> tuple[list[Footprint], Memory]:
    """The real bytes of each module of the tasks here, as one agent with all of them measures them, and its own memory.

    Its memory is taken after every task answered.

    Raises:
        BadFile: Mosquitto or ``/proc`` is missing.
        SiteFailed: a process ended, or a task isn't served.
    """
    config = AgentConfig(id="device", memory=budget_bytes, models=str(models.resolve()), engine=engine)
    with MosquittoBroker() as broker, Site(broker.url, [config], spares=False) as site:
        site.serve(list(chosen.values()), SERVE_S)
        for name, task in chosen.items():
            _ask(site.client, task, name)
        memory = memory_with_children(site.pid(config.id))
        site.observer.look()
        held = site.observer.heartbeats[config.id].modules
    sizes = _sizes(chosen)
    return [Footprint(module.module, sizes[key], module.memory_bytes) for key, module in held.items()], memory


def even_budget(occupied_bytes: Sequence[int], agents: int) -> int:
    """The bytes for each of so many agents that hold modules of these sizes together, in shares about as large."""
    return ROOM_BYTES + round(SLACK * max(*occupied_bytes, sum(occupied_bytes) / agents))


def _sizes(chosen: Mapping[str, TaskSpec]) -> dict[ModuleKey, int]:
    return {spec.key: spec.memory_bytes for task in chosen.values() for spec in task.modules.values()}


def measure_split(
    chosen: Mapping[str, TaskSpec], models: Path, agents: int, budget_bytes: int, engine: Engine
) -> tuple[Processes, Answers]:
    """The processes of a site that serves the tasks (agents, orchestrator, Mosquitto), and the answers.

    Raises:
        BadFile: Mosquitto or ``/proc`` is missing.
        SiteFailed: a process ended, or a task isn't served, or it fails.
    """
    configs = [
        AgentConfig(id=f"device-{number}", memory=budget_bytes, models=str(models.resolve()), engine=engine)
        for number in range(1, agents + 1)
    ]
    with MosquittoBroker() as broker, Site(broker.url, configs, spares=False) as site:
        site.serve([], SERVE_S)
        pids = {"broker (mosquitto)": broker.pid, "orchestrator": site.pid("orchestrator")}
        pids |= {device: site.pid(device) for device in site.devices}
        memory = {name: {IDLE: memory_with_children(pid)} for name, pid in pids.items()}
        site.serve(list(chosen.values()), SERVE_S)
        for name, pid in pids.items():
            memory[name][LOADED] = memory_with_children(pid)
        answers = {name: _ask(site.client, task, name) for name, task in chosen.items()}
        for name, pid in pids.items():
            memory[name][ANSWERED] = memory_with_children(pid)
        site.observer.look()
        held = {device: heartbeat.modules for device, heartbeat in site.observer.heartbeats.items()}
    sizes, processes = _sizes(chosen), {}
    for name, stages in memory.items():
        modules = held.get(name, {})
        holds = sorted(module.module for module in modules.values())
        processes[name] = Process(holds, sum(sizes[key] for key in modules), stages)
    return processes, answers


def _ask(client: Client, task: TaskSpec, name: str) -> Any:  # noqa: ANN401 - JSON
    response = client.request(task.task, requests(task)[0], deadline_s=DEADLINE_S)
    if response.result.error is not None:
        raise SiteFailed(f"{name}: {response.result.error.code}: {response.result.error.message}")
    return response.result.answer


def measure_unsplit(chosen: Mapping[str, TaskSpec], models: Path) -> tuple[Processes, dict[str, Memory], Answers]:
    """The process of each task, the memory of an empty process by stage, and the answer of each task.

    Raises:
        BadFile: ``/proc`` is missing.
        SiteFailed: a process ended.
    """
    with ExitStack() as stack:
        children = {name: stack.enter_context(_Child(name, models)) for name in (EMPTY, *chosen)}
        answers: Answers = {}
        memory: dict[str, dict[str, Memory]] = {name: {} for name in children}
        for stage, of_empty in ((IMPORTED, {EMPTY: TORCH}), (LOADED, {EMPTY: TRANSFORMERS}), (ANSWERED, {})):
            stages = dict.fromkeys(chosen, stage) | of_empty
            for name, own in stages.items():
                answers[name] = children[name].reach(own)
            for name, own in stages.items():  # all at one stage, so that shared pages are divided alike
                memory[name][own] = memory_of(children[name].pid)
    processes = {
        name: Process([name], counts.single(name, task)["unsplit_bytes"], memory[name]) for name, task in chosen.items()
    }
    return processes, memory[EMPTY], answers


class _Child:
    """A child that runs ``s2m3.bench.memory.unsplit``; it has ended when the ``with`` block ends."""

    def __init__(self, name: str, models: Path) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process is gone
        self._child = subprocess.Popen(
            [sys.executable, "-m", "s2m3.bench.memory.unsplit", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {DIRECTORY_VARIABLE: str(models.resolve())},
            start_new_session=True,  # a Ctrl-C in the terminal reaches only this process, which ends the child
        )
        self.pid = self._child.pid
        self._started = False

    def reach(self, stage: str) -> Any:  # noqa: ANN401 - JSON
        """Let the child continue to its next stage; returns its answer there."""
        if self._child.stdin is None or self._child.stdout is None:
            raise SiteFailed(f"{self._name} has no pipes")
        try:
            if self._started:
                self._child.stdin.write(b"\n")
                self._child.stdin.flush()
            self._started = True
            said = json.loads(self._child.stdout.readline())
        except (OSError, ValueError) as error:
            self._errors.seek(0)
            last = weights.last_line(self._errors.read().decode(errors="replace"))
            raise SiteFailed(f"the unsplit process of {self._name} ended before {stage}: {last}") from error
        if said["stage"] != stage:
            raise SiteFailed(f"the unsplit process of {self._name} is at {said['stage']}, not {stage}")
        return said["answer"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._child.communicate(timeout=GOODBYE_S)  # closes its input, and it ends
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.communicate()
        self._errors.close()
