"""Fits a linear head, and writes it as a repository of the models directory and a task spec.

Owns the fit and the files. Knows no broker and no device.

The features are computed in this process, by the same module that the devices hold. Equal modules give equal bits, so
the head is the same, the training data doesn't cross the broker, and the devices are free for requests.

The weights are written to DIR/local/NAME of the models directory (``S2M3_MODELS``), where agents look for weights that
no hub has. The directory is shared with the devices or copied to them. The task spec names the repository and the
digest of its content, so an agent refuses a copy that is missing, old or damaged. The spec doesn't contain the weights:
it is a retained message, and part of the assignment of each device that holds the head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from broker.protocol.errors import BadFile
from broker.protocol.specs import ID_PATTERN, InputSpec, ModuleSpec, NodeSpec, Source, TaskSpec
from edge_agent.modules.families import heads
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import SINGLE, Checkpoint
from edge_agent.modules.weights.hub import LOCAL, Repository
from s2m3.bench.datasets import Dataset
from s2m3.catalogue import load_task
from s2m3.reference.split import Split

FAMILY, PART, NODE = "heads.linear", "linear", "head"
HELD_OUT = 0.25  # of the records, which the head is tried on and never sees
MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class Features:
    """The features of records."""

    name: str  # of the encoder's array
    rows: NDArray[np.float32]  # (n, width)
    labels: NDArray[np.int64]  # (n,)


@dataclass(frozen=True)
class Fitted:
    """A linear head."""

    weight: NDArray[np.float32]  # (c, width)
    bias: NDArray[np.float32]  # (c,)


def encoder(name: str) -> TaskSpec:
    """The task that gives an encoder's features: a catalogue name or a file, or a node of one as ``NAME:NODE``.

    Raises:
        BadFile: there is no such task or node, or it takes several inputs.
    """
    file, _, node = name.partition(":")
    task = load_task(file)
    output = node or task.output
    if output not in task.nodes:
        known = ", ".join(task.nodes)
        raise BadFile(file=name, problem=f"{task.task} has no node {output}", fix=f"name one of: {known}")
    needed = _needed(task, output)
    nodes = {each: spec for each, spec in task.nodes.items() if each in needed}
    inputs = {each: spec for each, spec in task.inputs.items() if each in needed}
    if len(inputs) != 1:
        given = ", ".join(inputs)
        raise BadFile(
            file=name, problem=f"{output} takes {given}", fix="name the encoder of one input, such as pocket/vision"
        )
    modules = {spec.module: task.modules[spec.module] for spec in nodes.values()}
    return task.model_copy(update={"inputs": inputs, "nodes": nodes, "output": output, "modules": modules})


def _needed(task: TaskSpec, node: str) -> set[str]:
    if node not in task.nodes:
        return {node}
    return {node}.union(*(_needed(task, need) for need in task.nodes[node].needs))


def features(split: Split, task: TaskSpec, dataset: Dataset, positions: Iterable[int]) -> Features:
    """The features of records, each computed as a request of its own.

    Args:
        split: Where the encoder is held.
        task: As ``encoder`` gives it.
        dataset: Labelled records.
        positions: Which of them.

    Raises:
        BadFile: the data isn't labelled or of another medium, or the encoder gives no features.
        RequestFailed: the encoder can't read a record.
    """
    ((input_, spec),) = task.inputs.items()
    check_data(dataset, task.task, spec)
    rows, labels, name = [], [], ""
    for position in positions:
        record = dataset.read(position)
        arrays = split.run(task, {input_: record.media}).tensors
        if len(arrays) != 1 or next(iter(arrays.values())).shape[:-1] != (1,):
            shapes = ", ".join(f"{each} {array.shape}" for each, array in arrays.items())
            fix = "name an encoder that gives one array (1, width)"
            raise BadFile(file=task.task, field=task.output, problem=f"gives {shapes}", fix=fix)
        ((name, array),) = arrays.items()
        rows.append(array[0])
        labels.append(record.label)
    return Features(name, np.stack(rows), np.asarray(labels, dtype=np.int64))


def check_data(dataset: Dataset, task: str, input_: InputSpec) -> None:
    """Refuse data that no classifier of this input can be fitted on.

    Raises:
        BadFile: it isn't labelled, or of another medium.
    """
    if dataset.kind != "classification":
        fix = "name data with classes"
        raise BadFile(file=dataset.format, problem=f"is {dataset.kind} data, and a head needs labels", fix=fix)
    if dataset.medium != input_.kind:
        problem = f"holds {dataset.medium}s, and {task} takes {input_.kind}"
        raise BadFile(file=dataset.format, problem=problem, fix="name another encoder or other data")


def parts(labels: NDArray[np.int64], classes: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Positions to fit on and positions to try on: a quarter of each class, drawn by the seed.

    Raises:
        BadFile: a class has fewer than two records.
    """
    random = np.random.default_rng(seed)
    held_out: list[int] = []
    for label, name in enumerate(classes):
        own = np.flatnonzero(labels == label)
        if len(own) < 2:  # noqa: PLR2004 - one to fit on, one to try on
            problem = f"has {len(own)} records"
            raise BadFile(file=name, problem=problem, fix="give each class at least two records, or raise --limit")
        held_out.extend(random.permutation(own)[: max(1, round(HELD_OUT * len(own)))].tolist())
    chosen = set(held_out)
    return [at for at in range(len(labels)) if at not in chosen], sorted(held_out)


def fit(found: Features, positions: Sequence[int], *, regularisation: float) -> Fitted:
    """Fit multinomial logistic regression (scikit-learn's, by L-BFGS) on standardised features.

    The standardisation is folded into the weights, so that the head takes the features as they are.

    Args:
        found: Features of records.
        positions: Which of them to fit on.
        regularisation: Scikit-learn's C: the smaller, the simpler the head.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - slow, and only for this

    rows, labels = found.rows[positions].astype(np.float64), found.labels[positions]
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread[spread == 0] = 1.0
    model = LogisticRegression(C=regularisation, max_iter=MOST_ITERATIONS).fit((rows - mean) / spread, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # of two classes only their difference is fitted
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    weight = weight / spread
    bias = bias - weight @ mean
    return Fitted(np.ascontiguousarray(weight, dtype=np.float32), bias.astype(np.float32))


def write(
    directory: Path, name: str, *, fitted: Fitted, found: Features, classes: Sequence[str], task: TaskSpec
) -> TaskSpec:
    """Write DIR/local/NAME/{config.json, model.safetensors}, and make the task that uses it.

    Args:
        directory: The models directory.
        name: Of the head and the task.
        fitted: The head.
        found: The features that it takes.
        classes: The names of its classes.
        task: The encoder's, as ``encoder`` gives it.

    Returns:
        The encoder's graph with the head at its end; its numbers are counted, its digest is that of what was written.

    Raises:
        BadFile: the files can't be written.
    """
    repository = directory / LOCAL / name
    config = {
        "model_type": heads.LINEAR,
        "features": found.name,
        "width": int(fitted.weight.shape[1]),
        "id2label": {str(index): label for index, label in enumerate(classes)},
    }
    tensors = {"classifier.weight": torch.from_numpy(fitted.weight), "classifier.bias": torch.from_numpy(fitted.bias)}
    made_by = {"encoder": task.module_of(task.output).key, "made by": "s2m3 head train"}
    try:
        repository.mkdir(parents=True, exist_ok=True)
        save_file(tensors, repository / SINGLE, metadata=made_by)
        (repository / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadFile(
            file=str(repository), problem=error.strerror or "can't be written", fix="name another --models"
        ) from error
    part = heads.PARTS[PART]
    counted = model_parts.count(part, config)
    checkpoint = Checkpoint(Repository(f"{LOCAL}/{name}", None, repository))
    head = ModuleSpec(
        family=FAMILY,
        source=Source(hub=f"{LOCAL}/{name}", part=PART),
        memory_bytes=counted.memory_bytes,
        flops=counted.flops,
        output_bytes=counted.output_bytes,
        digest=model_parts.content_digest(FAMILY, part, checkpoint, tensors),
    )
    node = NODE if NODE not in task.nodes.keys() | task.inputs.keys() else f"{name}-{NODE}"
    module = f"{name}/{PART}"
    return TaskSpec(
        task=name,
        description=f"one of {len(classes)} classes, by a linear head on the features of {task.task}",
        inputs=task.inputs,
        nodes={**task.nodes, node: NodeSpec(module=module, needs=(task.output,))},
        output=node,
        modules={**task.modules, module: head},
    )


def check_name(name: str) -> str:
    """A name that a task may have.

    Raises:
        BadFile: it isn't one.
    """
    if not re.fullmatch(ID_PATTERN, name):
        raise BadFile(
            file="--name", problem=f"must be a name of a-z, 0-9 and -, got {name!r}", fix="use at most 63 of these"
        )
    return name
