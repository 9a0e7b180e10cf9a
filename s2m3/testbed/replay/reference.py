"""The requests of a replay and the answers of the whole models to them.

Owns the requests of each task (those of the demo). Each is answered once a process, before the load starts. Imports
torch when an answer is computed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from pydantic import JsonValue

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskName, TaskSpec
from s2m3.catalogue import load_task
from s2m3.reference import whole
from s2m3.reference.pictures import REQUESTS, DemoRequest

THREADS = 1  # of a forward pass, here and in every agent: bits are equal at the same number

Inputs = Mapping[str, RawInput]
Answer = Mapping[str, JsonValue]


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


@cache
def inputs_of(request: DemoRequest) -> Inputs:
    """The request's inputs, read once."""
    return request.inputs


def answers(requests: Iterable[DemoRequest]) -> dict[DemoRequest, Answer]:
    """The answers of the whole models, computed in this process, each once."""
    return {request: _answers_of(request.task)[request] for request in requests}


@cache
def _answers_of(task: TaskName) -> dict[DemoRequest, Answer]:
    import torch  # noqa: PLC0415 - seconds, and a wrong scenario is refused before

    torch.set_num_threads(THREADS)
    model = whole.load(f"pocket/{task}", load_task(f"pocket/{task}"))
    return {request: model(inputs_of(request)).answer or {} for request in REQUESTS if request.task == task}
