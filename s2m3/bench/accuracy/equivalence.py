"""Split against whole at real size: ``s2m3 bench accuracy --equivalence``.

Owns the choice of weights, and a row for each model. Weights are real if they are on this machine (pip's,
a models directory, the hub's cache). Otherwise they are random ones of the real configuration, written into a temporary
directory, one model at a time, and removed. Nothing is downloaded. Random weights prove the arithmetic as well as real
ones, and nothing about accuracy.

Two outputs are equal if their answers and all their arrays are, bit for bit. Generated token ids are an array.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import TaskSpec
from edge_agent import catalog
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.packaged import is_here
from s2m3.bench.requests import requests
from s2m3.catalogue import load_task
from s2m3.reference import random_weights, whole, zoo
from s2m3.reference.split import Split

MOST_PARAMETERS = 500_000_000  # larger models are left out: split and whole must fit into 8 GB together


def names() -> tuple[str, ...]:
    """The tasks that have a whole model to compare with."""
    return tuple(name for name in catalog.names() if name in whole.CLASSES)


def rows(wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each model in turn: how many of its outputs differ, or why it was left out.

    Raises:
        BadFile: a file of the catalogue is wrong.
    """
    for name in wanted:
        task = load_task(name)
        sizes = {spec.key: zoo.count(task, module).parameters for module, spec in task.modules.items()}
        row: dict[str, Any] = {"task": name, "parameters": sum(sizes.values())}
        if row["parameters"] >= MOST_PARAMETERS:
            yield row | {"skipped": f"{MOST_PARAMETERS:,} parameters or more"}
            continue
        began_s = time.monotonic()
        try:
            with _weights(task) as kind:
                row |= {"weights": kind} | _compare(name, task)
        except ModuleRefused as error:
            row["error"] = str(error)
        gc.collect()  # before the next model comes into memory
        yield row | {"seconds": round(time.monotonic() - began_s, 1)}


def _compare(name: str, task: TaskSpec) -> dict[str, Any]:
    asked = requests(task)
    split = Split()
    outputs = [split.run(task, inputs) for inputs in asked]
    model = whole.load(name, task)
    differing = sum(not whole.same(one, model(inputs)) for one, inputs in zip(outputs, asked, strict=True))
    arrays = {(repr(one.answer), *(array.tobytes() for array in one.tensors.values())) for one in outputs}
    return {"inputs": len(asked), "distinct": len(arrays), "differing": differing}


def _without_timestamps(published: zoo.Published) -> dict[str, Any]:
    """The changes that stop random Whisper weights from writing timestamps, which trained ones don't after this prompt.

    transformers' ``generate`` would listen again from each; see ``edge_agent/modules/families/whisper.py``.
    """
    fields = published.files.get("generation_config.json", {})
    if "no_timestamps_token_id" not in fields:
        return {}
    timestamps = range(fields["no_timestamps_token_id"] + 1, published.config["vocab_size"])
    never = [*fields.get("suppress_tokens", ()), *timestamps]
    return {"generation_config.json": {"suppress_tokens": never}}


@contextlib.contextmanager
def _weights(task: TaskSpec) -> Iterator[str]:
    """Keeps a task's weights where its modules look for them; says whether they are real or random."""
    sources = {module.source.hub: module.source for module in task.modules.values() if module.source}
    sources.pop(None, None)  # pip's and the catalogue's are real
    if all(is_here(source) for source in sources.values()):
        yield "real"
        return
    with tempfile.TemporaryDirectory(prefix="s2m3-models-") as directory:
        published = sorted(map(zoo.published, sources), key=lambda each: each.frozen is not None)
        for seed, each in enumerate(published):  # frozen copies come after their originals
            random_weights.write(each, Path(directory), seed=seed, changes=_without_timestamps(each))
        with mock.patch.dict(os.environ, {hub.DIRECTORY_VARIABLE: directory}):
            yield "random"
