"""Scenarios by name, the requests of the tasks that they name, and the answers that are wanted.

Owns the checks between a scenario and its tasks, and which requests each task has: those of the demo, or a folder of
its own. Of the demo's requests the whole models' answers are wanted, computed once a process. Imports torch when an
answer is computed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from pydantic import JsonValue, ValidationError

from broker.directories import in_home
from broker.files import bad_field, load_spec
from broker.protocol.errors import BadFile, ModuleRefused, RequestFailed
from broker.protocol.sentences import describe
from broker.protocol.specs import ModuleName, ModuleSpec, Revision, TaskName, TaskSpec
from edge_agent.modules import Output
from s2m3 import scenarios
from s2m3.catalogue import load_task
from s2m3.reference import whole
from s2m3.reference.auto_numbers import counted
from s2m3.reference.pictures import REQUESTS, DemoRequest
from s2m3.testbed.replay.requests import FolderRequest, Wanted, read_folder
from s2m3.testbed.replay.scenario import FRONT_DOOR, MODULE, OF_TASKS, STANDBY, WITHOUT, Fault, Scenario
from s2m3.testbed.replay.weights import weights_of

THREADS = 1  # of a forward pass, here and in every agent: bits are equal at the same number

Answer = Mapping[str, JsonValue]
Request = DemoRequest | FolderRequest


def load_scenario(name: str, broker: str | None = None) -> Scenario:
    """Read a scenario by its name in the library or by its path; ``broker`` replaces its own.

    Paths in it are relative to its file.

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
    scenario = _with_places(path, load_spec(path, Scenario))
    specs = specs_of(scenario)
    _check_tasks(path, scenario, [spec.task for spec in specs])
    _check_names(path, scenario, specs)
    for task, spec in zip(scenario.tasks, specs, strict=True):
        _requests(scenario, task, spec)
    if broker is None:
        return scenario
    try:
        return scenario.changed(broker=broker)
    except ValidationError as error:
        field, problem = describe(error.errors()[0])
        fix = "leave this scenario out, or take another broker"
        raise BadFile(file=str(path), field=field, problem=f"with --broker {broker}: {problem}", fix=fix) from error


def _with_places(path: Path, scenario: Scenario) -> Scenario:
    """The scenario with the whole paths of its files and folders."""
    tasks = [str(found) if (found := path.parent / name).is_file() else name for name in scenario.tasks]
    folders = {task: str(path.parent / in_home(folder)) for task, folder in scenario.requests.items()}
    models = scenario.models and str((path.parent / in_home(scenario.models)).absolute())
    if tasks == list(scenario.tasks) and not folders and not models:
        return scenario
    return scenario.changed(tasks=tasks, requests=folders, models=models)


def _check_tasks(path: Path, scenario: Scenario, names: Sequence[TaskName]) -> None:
    """Refuse two tasks of one name, a folder for a task that isn't there, and a folder of models that isn't there."""
    for position, name in enumerate(names):
        if name in names[:position]:
            problem, fix = f"{name} is the name of an earlier one, too", "remove one, or rename it in its file"
            raise bad_field(path, ("tasks", position), problem=problem, fix=fix)
    for task in scenario.requests:
        if task not in names:
            raise bad_field(
                path,
                ("requests", task),
                problem="is not the name of a task of this scenario",
                fix=f"use one of: {', '.join(sorted(names))}",
            )
    if scenario.models is not None and not Path(scenario.models).is_dir():
        problem, fix = f"{scenario.models} is not a folder", "name the models directory of this machine"
        raise bad_field(path, ("models",), problem=problem, fix=fix)


def _check_names(path: Path, scenario: Scenario, specs: Sequence[TaskSpec]) -> None:
    """Refuse a fault that names a task, module or node which the scenario doesn't have."""
    tasks = ", ".join(sorted(spec.task for spec in specs))
    modules = {name for spec in specs for name in spec.modules}
    nodes = {name for spec in specs for name in spec.nodes}

    def check_task(task: str, *place: int | str, names: str = "names") -> None:
        if task not in {spec.task for spec in specs}:
            problem = f"{names} {task}, which is not one of the scenario's: {tasks}"
            raise bad_field(path, place, problem=problem, fix=f"use one of: {tasks}")

    for position, fault in enumerate(scenario.faults):
        place = ("faults", position)
        way, _, name = fault.target.partition(":")
        if f"{way}:" in {MODULE, STANDBY, WITHOUT} and name not in modules:
            problem, fix = f"its tasks have no module {name}", f"use one of: {', '.join(sorted(modules))}"
            raise bad_field(path, (*place, fault.kind), problem=problem, fix=fix)
        if fault.kind in OF_TASKS:
            check_task(fault.target, *place, fault.kind)
        if f"{way}:" == FRONT_DOOR:
            check_task(name, *place, fault.kind, names="names the task")
        if fault.when and fault.when.request:
            check_task(fault.when.request, *place, "when", "request")
        if fault.when and fault.when.node and fault.when.node not in nodes:
            problem, fix = f"its tasks have no node {fault.when.node}", f"use one of: {', '.join(sorted(nodes))}"
            raise bad_field(path, (*place, "when", "node"), problem=problem, fix=fix)
        if fault.kind == "crash" and not any(
            spec.task == fault.target and any(each.kind == "image" for each in spec.inputs.values()) for spec in specs
        ):
            problem, fix = f"{fault.target} takes no picture, which a deadly request is", "name a task that does"
            raise bad_field(path, (*place, "crash"), problem=problem, fix=fix)


def requests_for(scenario: Scenario) -> dict[TaskName, dict[Request, Wanted | None]]:
    """The requests for each task, with the answers that a person expects; the demo's tasks have requests, too.

    Raises:
        BadFile: a task without requests, or with a folder that can't be used.
    """
    named = zip(scenario.tasks, specs_of(scenario), strict=True)
    return {spec.task: _requests(scenario, name, spec) for name, spec in named}


def _requests(scenario: Scenario, name: str, spec: TaskSpec) -> dict[Request, Wanted | None]:
    if spec.task in scenario.requests:
        return dict[Request, Wanted | None](read_folder(Path(scenario.requests[spec.task]), spec).items())
    if demo := demo_requests(spec):
        return dict.fromkeys(demo, None)
    known = ", ".join(sorted({f"pocket/{request.task}" for request in REQUESTS}))
    fix = f"name a folder of them, requests: {{{spec.task}: FOLDER}}; {known} have some"
    raise BadFile(file=name, problem="is a task that the replay has no requests for", fix=fix)


def demo_requests(spec: TaskSpec) -> list[DemoRequest]:
    """The demo's requests for a task, if it computes what the task of the pocket catalogue does."""
    requests = [request for request in REQUESTS if request.task == spec.task]
    return requests if requests and _graph(spec) == _graph(_of_pocket(spec.task)) else []


@cache
def _of_pocket(task: TaskName) -> TaskSpec:
    return load_task(f"pocket/{task}")


def _graph(spec: TaskSpec) -> object:
    nodes = {name: (spec.module_of(name).key, node.needs, node.use) for name, node in spec.nodes.items()}
    return nodes, spec.output, spec.wire, spec.answer, sorted(spec.inputs)


def specs_of(scenario: Scenario) -> list[TaskSpec]:
    """The tasks as they are deployed.

    Raises:
        BadFile: no such task.
    """
    with weights_of(scenario):
        specs = [load_task(name, counted) for name in scenario.tasks]
    if scenario.redundancy == 1:
        return specs
    return [TaskSpec.model_validate(spec.model_dump() | {"redundancy": scenario.redundancy}) for spec in specs]


def revised(spec: TaskSpec, fault: Fault) -> TaskSpec:
    """The revision of a task that a fault deploys: its modules are other ones than those of the first revision."""
    if fault.kind == "rollback":
        return spec
    changes = {name: _revised(name, module, fault) for name, module in spec.modules.items()}
    return TaskSpec.model_validate(spec.model_dump() | {"modules": changes, "replace": bool(fault.replace)})


def _revised(name: ModuleName, module: ModuleSpec, fault: Fault) -> dict[str, object]:
    wrong = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    half = {"dtype": fault.dtype, "memory_bytes": -(-module.memory_bytes // 2)}
    return module.model_dump() | half | {"digest": wrong if fault.broken else None}


def in_order(requests: Mapping[str, Iterable[Request]], seed: int) -> Iterator[Request]:
    """Requests without end: the tasks in turn, each task's requests shuffled again whenever all were asked."""
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    decks: dict[str, list[Request]] = {task: [] for task in requests}
    while True:
        for task, deck in decks.items():
            if not deck:
                deck.extend(requests[task])
                chance.shuffle(deck)
            yield deck.pop()


def answers(requests: Iterable[DemoRequest]) -> dict[DemoRequest, Answer]:
    """The answers of the whole models, computed in this process, each once."""
    return {request: _answers_of(request.task)[request] for request in requests}


def wanted_of_revisions(scenario: Scenario) -> dict[Revision, dict[Request, Wanted]]:
    """The wanted answers of the revisions that a scenario deploys and that can be served.

    What a person expects holds for each revision. Other answers are computed module by module in this process.

    Raises:
        BadFile: a revision can't be computed here.
    """
    from s2m3.reference.split import Split  # noqa: PLC0415 - imports torch

    requests, split = requests_for(scenario), Split()
    first = {spec.task: spec for spec in specs_of(scenario)}
    found: dict[Revision, dict[Request, Wanted]] = {}
    for fault in scenario.faults:
        if fault.kind == "deploy" and not fault.broken:
            spec = revised(first[fault.target], fault)
            if spec.revision in found:
                continue
            try:
                found[spec.revision] = {
                    request: expected or wanted_of(split.run(spec, request.inputs))
                    for request, expected in requests[spec.task].items()
                }
            except (ModuleRefused, RequestFailed) as error:
                problem = f"{fault.target} with dtype {fault.dtype} can't be computed here: {error}"
                raise BadFile(
                    file=scenario.name, field="faults", problem=problem, fix="leave this fault out"
                ) from error
    return found


def wanted_of(output: Output) -> Wanted:
    """The answer of an output; its arrays count where it is nothing else."""
    return Wanted(output.answer, None if output.answer is not None else output.tensors)


@cache
def _answers_of(task: TaskName) -> dict[DemoRequest, Answer]:
    import torch  # noqa: PLC0415 - seconds, and a wrong scenario is refused before

    torch.set_num_threads(THREADS)
    model = whole.load(f"pocket/{task}", load_task(f"pocket/{task}"))
    return {request: model(request.inputs).answer or {} for request in REQUESTS if request.task == task}
