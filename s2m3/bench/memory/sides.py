"""The two measured sides: a site of agents, and a process for each task that holds its whole model.

Owns starting and ending them, one request to each task, and the moments of measuring: before a process holds weights,
with all weights loaded, and after every task answered. All processes of a side are measured at the same moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from broker.client import Client
from broker.protocol.specs import TaskSpec
from broker.servers.mosquitto import MosquittoBroker
from edge_agent.config import AgentConfig
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from s2m3.bench.memory import counts
from s2m3.bench.memory.processes import Memory, memory_of
from s2m3.bench.memory.unsplit import ANSWERED, EMPTY, IMPORTED, LOADED, TORCH, TRANSFORMERS
from s2m3.bench.requests import requests
from s2m3.bench.weights import last_line
from s2m3.testbed.site import Site, SiteFailed

SERVE_S = 300.0  # reading gigabytes
DEADLINE_S = 120.0
GOODBYE_S = 10.0
IDLE = "idle"  # an agent before it holds a module

Answers = dict[str, Any]
"""Task -> its answer, as a sensor gets it."""


@dataclass(frozen=True)
class Process:
    """A process of one side."""

    holds: list[str]  # the modules or tasks of its weights
    weights_bytes: int  # exact
    memory: dict[str, Memory]  # by stage


Processes = dict[str, Process]


def split(chosen: Mapping[str, TaskSpec], models: Path, agents: int, budget_bytes: int) -> tuple[Processes, Answers]:
    """The processes of a site that serves the tasks (agents, orchestrator, Mosquitto), and the answers.

    Raises:
        BadFile: Mosquitto or ``/proc`` is missing.
        SiteFailed: a process ended, or a task isn't served, or it fails.
    """
    configs = [
        AgentConfig(id=f"device-{number}", memory=budget_bytes, models=str(models.resolve()))
        for number in range(1, agents + 1)
    ]
    with MosquittoBroker() as broker, Site(broker.url, configs, spares=False) as site:
        site.serve([], SERVE_S)
        pids = {"broker (mosquitto)": broker.pid, "orchestrator": site.pid("orchestrator")}
        pids |= {device: site.pid(device) for device in site.devices}
        memory = {name: {IDLE: memory_of(pid)} for name, pid in pids.items()}
        site.serve(list(chosen.values()), SERVE_S)
        for name, pid in pids.items():
            memory[name][LOADED] = memory_of(pid)
        answers = {name: _ask(site.client, task, name) for name, task in chosen.items()}
        for name, pid in pids.items():
            memory[name][ANSWERED] = memory_of(pid)
        site.observer.look()
        held = {device: heartbeat.modules for device, heartbeat in site.observer.heartbeats.items()}
    weights = {spec.key: spec.memory_bytes for task in chosen.values() for spec in task.modules.values()}
    processes = {
        name: Process(
            holds=sorted(module.module for module in held.get(name, {}).values()),
            weights_bytes=sum(weights[key] for key in held.get(name, {})),
            memory=stages,
        )
        for name, stages in memory.items()
    }
    return processes, answers


def _ask(client: Client, task: TaskSpec, name: str) -> Any:  # noqa: ANN401 - JSON
    response = client.request(task.task, requests(task)[0], deadline_s=DEADLINE_S)
    if response.result.error is not None:
        raise SiteFailed(f"{name}: {response.result.error.code}: {response.result.error.message}")
    return response.result.answer


def unsplit(chosen: Mapping[str, TaskSpec], models: Path) -> tuple[Processes, Answers]:
    """The process of each task and its answer, and an empty process under the name ``EMPTY``.

    Raises:
        BadFile: ``/proc`` is missing.
        SiteFailed: a process ended.
    """
    with ExitStack() as stack:
        children = {name: stack.enter_context(_Child(name, models)) for name in (EMPTY, *chosen)}
        answers: Answers = {}
        memory: dict[str, dict[str, Memory]] = {name: {} for name in children}
        for stage, of_empty in ((IMPORTED, TORCH), (LOADED, TRANSFORMERS), (ANSWERED, None)):
            for name in chosen:
                answers[name] = children[name].reach(stage)
            if of_empty is not None:
                children[EMPTY].reach(of_empty)
            for name in chosen:  # all at one stage, so that shared pages are divided alike
                memory[name][stage] = memory_of(children[name].pid)
            if of_empty is not None:
                memory[EMPTY][of_empty] = memory_of(children[EMPTY].pid)
    processes = {
        name: Process(
            holds=[name] if name in chosen else [],
            weights_bytes=counts.single(name, chosen[name])["unsplit_bytes"] if name in chosen else 0,
            memory=stages,
        )
        for name, stages in memory.items()
    }
    return processes, answers


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
        self._started = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

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
            last = last_line(self._errors.read().decode(errors="replace"))
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
