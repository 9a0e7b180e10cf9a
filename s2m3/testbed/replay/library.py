"""Scenarios by name, the requests of the tasks that they name, and the whole models' answers to them.

Owns the checks between a scenario and its tasks, and the requests of each task (those of the demo). Each is answered
once a process. Imports torch when an answer is computed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import JsonValue, ValidationError

from broker.files import bad_field, load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskName, TaskSpec, describe
from s2m3 import scenarios
from s2m3.catalogue import load_task
from s2m3.reference import whole
from s2m3.reference.pictures import REQUESTS, DemoRequest
from s2m3.testbed.replay.scenario import MODULE, STANDBY, WITHOUT, Scenario

THREADS = 1  # of a forward pass, here and in every agent: bits are equal at the same number

Answer = Mapping[str, JsonValue]


def load_scenario(name: str, broker: str | None = None) -> Scenario:
    """Read a scenario by its name in the library or by its path; ``broker`` replaces its own.

    Raises:
        BadFile: there is no such scenario, the file is wrong, or this broker can't be used for it.
    """
    if name in scenarios.names():
        path = scenarios.path(name)
    elif Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        path = Path(name)
    else:
        known = ", ".join(scenarios.names())
        raise BadFile(file=name, problem="is neither in the library nor a file", fix=f"name a file, or one of: {known}")
    scenario = load_spec(path, Scenario)
    requests_for(scenario.tasks)
    _check_names(path, scenario)
    if broker is None:
        return scenario
    try:
        return Scenario.model_validate(scenario.model_dump() | {"broker": broker})
    except ValidationError as error:
        field, problem = describe(error.errors()[0])
        fix = "leave this scenario out, or take another broker"
        raise BadFile(file=str(path), field=field, problem=f"with --broker {broker}: {problem}", fix=fix) from error


def _check_names(path: Path, scenario: Scenario) -> None:
    """Refuse a fault that names a module or node which the scenario's tasks don't have."""
    specs = specs_of(scenario.tasks, scenario.redundancy)
    modules = {name for spec in specs for name in spec.modules}
    nodes = {name for spec in specs for name in spec.nodes}
    for position, fault in enumerate(scenario.faults):
        way, _, module = fault.target.partition(":")
        if f"{way}:" in {MODULE, STANDBY, WITHOUT} and module not in modules:
            problem, fix = f"its tasks have no module {module}", f"use one of: {', '.join(sorted(modules))}"
            raise bad_field(path, ("faults", position, fault.kind), problem=problem, fix=fix)
        if fault.when and fault.when.node and fault.when.node not in nodes:
            problem, fix = f"its tasks have no node {fault.when.node}", f"use one of: {', '.join(sorted(nodes))}"
            raise bad_field(path, ("faults", position, "when", "node"), problem=problem, fix=fix)


def requests_for(names: Sequence[str]) -> dict[str, list[DemoRequest]]:
    """The requests that can be asked of these tasks, by the name under which each is deployed.

    Raises:
        BadFile: no such task, or one that the replay knows no requests for.
    """
    found: dict[str, list[DemoRequest]] = {}
    for name in names:
        spec = load_task(name)
        requests = [request for request in REQUESTS if request.task == spec.task]
        if not requests or name != f"pocket/{spec.task}":
            known = ", ".join(sorted({f"pocket/{request.task}" for request in REQUESTS}))
            raise BadFile(file=name, problem="is a task that the replay has no requests for", fix=f"use {known}")
        found[spec.task] = requests
    return found


def specs_of(names: Sequence[str], redundancy: int) -> list[TaskSpec]:
    """The tasks as they are deployed.

    Raises:
        BadFile: no such task.
    """
    specs = [load_task(name) for name in names]
    if redundancy == 1:
        return specs
    return [TaskSpec.model_validate(spec.model_dump() | {"redundancy": redundancy}) for spec in specs]


def in_order(requests: Mapping[str, Sequence[DemoRequest]], seed: int) -> Iterator[DemoRequest]:
    """Requests without end: the tasks in turn, each task's requests shuffled again whenever all were asked."""
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    decks: dict[str, list[DemoRequest]] = {task: [] for task in requests}
    while True:
        for task, deck in decks.items():
            if not deck:
                deck.extend(requests[task])
                chance.shuffle(deck)
            yield deck.pop()


def answers(requests: Iterable[DemoRequest]) -> dict[DemoRequest, Answer]:
    """The answers of the whole models, computed in this process, each once."""
    return {request: _answers_of(request.task)[request] for request in requests}


@cache
def _answers_of(task: TaskName) -> dict[DemoRequest, Answer]:
    import torch  # noqa: PLC0415 - seconds, and a wrong scenario is refused before

    torch.set_num_threads(THREADS)
    model = whole.load(f"pocket/{task}", load_task(f"pocket/{task}"))
    return {request: model(request.inputs).answer or {} for request in REQUESTS if request.task == task}
