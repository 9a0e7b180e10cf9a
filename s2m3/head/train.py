"""A head for labelled data, from the records to the task's file, and its accuracy on records that it never saw.

Owns the order of the steps and the report. Knows no broker and no device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from s2m3.bench.accuracy_metrics import accuracy
from s2m3.bench.datasets import Dataset, evenly, open_data
from s2m3.head import fit
from s2m3.reference.split import Split
from s2m3.reference.whole import load, same


@dataclass(frozen=True)
class Training:
    """The order for a training."""

    encoder: str  # the task whose features are used, or a node of it as TASK:NODE
    data: str  # a directory of labelled data, or digits
    format: str | None  # of the data; None for what it looks like
    name: str | None  # of the head and its task; None for the data's
    limit: int | None  # how many records, evenly from all of them; None for all
    seed: int  # of the quarter that is held out
    regularisation: float  # scikit-learn's C
    models: Path  # the models directory, which gets the weights
    out: str | None  # the task's file; None for NAME.yaml


def train(asked: Training, say: Callable[[str], object]) -> tuple[TaskSpec, dict[str, Any]]:
    """Fit a head, write its weights and its task, and try it split and unsplit.

    Args:
        asked: what is to be trained.
        say: called with what takes long.

    Returns:
        The new task, and the report for ``--json``.

    Raises:
        BadFile: the data, the encoder or a name is wrong, or a file can't be written.
    """
    dataset = open_data(asked.data, asked.format)
    name = fit.check_name(asked.name or Path(asked.data).resolve().name.lower())
    encoder = fit.encoder(asked.encoder)
    split = Split()
    fit.check_data(dataset, encoder.task, next(iter(encoder.inputs.values())))
    chosen = evenly(dataset.size, asked.limit)
    say(f"{len(chosen)} records through {encoder.task}")
    found = fit.features(split, encoder, dataset, chosen)
    fitting, trying = fit.parts(found.labels, dataset.classes, asked.seed)
    fitted = fit.fit(found, fitting, regularisation=asked.regularisation)
    task = fit.write(asked.models, name, fitted=fitted, found=found, classes=dataset.classes, task=encoder)
    out = Path(asked.out or f"{name}.yaml")
    _write_task(out, task)
    head = task.module_of(task.output)
    return task, {
        **_try(task, dataset, {chosen[at]: dataset.classes[found.labels[at]] for at in trying}, split),
        "task": str(out),
        "weights": str(asked.models / "local" / name),
        "fitted_on": len(fitting),
        "head_bytes": head.memory_bytes,
        "digest": head.digest,
        "encoder_bytes": sum(module.memory_bytes for module in encoder.modules.values()),
    }


def _write_task(path: Path, task: TaskSpec) -> None:
    content = yaml.safe_dump(task.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise BadFile(file=str(path), problem=error.strerror or "can't be written", fix="name another --out") from error
    if load_spec(path, TaskSpec) != task:
        raise BadFile(file=str(path), problem="reads back as another task", fix="report this")


def _try(task: TaskSpec, dataset: Dataset, classes: Mapping[int, str], split: Split) -> dict[str, Any]:
    """Accuracy on records that the head never saw, split and unsplit; ``classes`` is position -> right class."""
    try:
        whole = load(task.task, task)
    except BadFile:
        whole = None
    ((input_, _),) = task.inputs.items()
    answered, answered_whole, differing = [], [], 0
    for position in classes:
        inputs = {input_: dataset.read(position).media}
        output = split.run(task, inputs)
        answered.append((output.answer or {})["label"])
        if whole is not None:
            expected = whole(inputs)
            answered_whole.append((expected.answer or {})["label"])
            differing += not same(output, expected)
    return {
        "tried_on": len(classes),
        "accuracy": accuracy(answered, list(classes.values())),
        "unsplit_accuracy": accuracy(answered_whole, list(classes.values())) if whole is not None else None,
        "differing": differing if whole is not None else None,
    }
