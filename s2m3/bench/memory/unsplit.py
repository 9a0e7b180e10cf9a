"""Holds the whole model of one task, as it is deployed unsplit: ``python -m s2m3.bench.memory.unsplit TASK``.

Owns the dialogue with who measures it: it imports what the task needs, loads, answers one request, and after each of
these steps says so in one line of JSON on standard output and waits for a line on standard input; it ends when that
closes. It holds nothing else: no broker, no agent, nothing of another task. With ``empty`` for a task it imports torch,
then transformers, and loads nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from broker.protocol.errors import BadFile

if TYPE_CHECKING:  # each process imports only what its task needs
    from broker.protocol.codec import RawInput
    from broker.protocol.specs import TaskSpec

EMPTY = "empty"
TORCH, TRANSFORMERS = "torch", "transformers"  # stages of the empty process
IMPORTED, LOADED, ANSWERED = "imported", "loaded", "answered"
Answer = Callable[[Mapping[str, "RawInput"]], Any]


def main(name: str) -> int:
    """Go through the stages of a task of the catalogue, or of ``empty``; be measured after each."""
    for stage, answer in _empty() if name == EMPTY else _stages(name):
        print(json.dumps({"stage": stage, "answer": answer}), flush=True)
        if not sys.stdin.readline():
            break
    return 0


def _empty() -> Iterator[tuple[str, Any]]:
    import torch  # noqa: PLC0415 - that is what is measured

    torch.set_num_threads(1)
    yield TORCH, None
    import s2m3.reference.whole  # noqa: F401, PLC0415 - as every whole model does

    yield TRANSFORMERS, None


def _stages(name: str) -> Iterator[tuple[str, Any]]:
    from s2m3.catalogue import load_task  # noqa: PLC0415 - the empty process does without

    task = load_task(name)
    load = _import(name, task)
    yield IMPORTED, None
    answer = load()
    yield LOADED, None
    from s2m3.bench.memory.examples import example  # noqa: PLC0415 - its imports are no part of a model

    yield ANSWERED, answer(example(name, task))


def _import(name: str, task: TaskSpec) -> Callable[[], Answer]:
    """Import what the task's whole model is made of; what then loads it.

    Raises:
        BadFile: nobody wrote its whole model.
    """
    unknown = BadFile(file=name, problem="no whole model of it is known", fix="take a task of the catalogue with one")
    import torch  # noqa: PLC0415 - as late as the rest

    torch.set_num_threads(1)  # as an agent has by default
    if name.startswith("pocket/"):
        from s2m3.reference.unsplit import NEEDS, Unsplit  # noqa: PLC0415 - only for these

        if task.task not in NEEDS:
            raise unknown

        def whole_pocket() -> Answer:
            model = Unsplit()
            model.load(task.task)
            return lambda inputs: model.answer(task.task, inputs)

        return whole_pocket
    from s2m3.reference import whole  # noqa: PLC0415 - the same

    if name not in whole.FILES:
        raise unknown
    whole.family(name)  # imports the model's classes

    def whole_hub() -> Answer:
        model = whole.load(name, task)
        return lambda inputs: model(inputs).answer

    return whole_hub


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
