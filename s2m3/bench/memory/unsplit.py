"""A process that holds the whole model of one task: ``python -m s2m3.bench.memory.unsplit TASK``.

Owns the dialogue with the process that measures it. It imports what the model needs, loads it, and answers one request.
After each of these stages it prints one line of JSON and waits for a line on standard input; it ends when that closes.
It holds nothing else: no broker, no agent, nothing of another task. The task ``empty`` imports torch, then
transformers, and loads nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

EMPTY = "empty"
TORCH, TRANSFORMERS = "torch", "transformers"  # stages of the empty process
IMPORTED, LOADED, ANSWERED = "imported", "loaded", "answered"


def main(name: str) -> int:
    """Goes through the stages of a task of the catalogue, or of ``empty``, and can be measured after each."""
    for stage, answer in _empty() if name == EMPTY else _stages(name):
        print(json.dumps({"stage": stage, "answer": answer}), flush=True)
        if not sys.stdin.readline():
            break
    return 0


def _empty() -> Iterator[tuple[str, Any]]:
    _import_torch()
    yield TORCH, None
    import s2m3.reference.whole.pretrained  # noqa: F401, PLC0415 - as every whole model of the hub does

    yield TRANSFORMERS, None


def _stages(name: str) -> Iterator[tuple[str, Any]]:
    _import_torch()
    from s2m3.catalogue import load_task  # noqa: PLC0415 - the empty process does without
    from s2m3.reference import whole  # noqa: PLC0415 - the same

    task = load_task(name)
    load = whole.importer(name, task)
    yield IMPORTED, None
    model = load(task)
    yield LOADED, None
    from s2m3.bench.requests import requests  # noqa: PLC0415 - its imports are no part of a model

    yield ANSWERED, model(requests(task)[0]).answer


def _import_torch() -> None:
    import torch  # noqa: PLC0415 - as late as possible: its import is measured

    torch.set_num_threads(1)  # as an agent has by default


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
