"""A head for labelled data: fits it, writes it, and tries it on records that it never saw.

Owns the order of the steps, the files and the report. Knows no broker and no device.

The features are computed in this process, by the same module that the devices hold. Equal modules give equal bits, so
the head is the same, the training data doesn't cross the broker, and the devices are free for requests.

The weights are written to DIR/local/NAME of the models directory (``S2M3_MODELS``), where agents look for weights that
no hub has. The task spec names the repository and the digest of its content, so an agent refuses a copy that is
missing, old or damaged. The spec, a retained message, doesn't contain the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save_file

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.sizes import show_count
from broker.protocol.specs import ID_PATTERN, InputSpec, ModuleSpec, NodeSpec, Source, TaskSpec
from edge_agent.modules.families import heads
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint
from edge_agent.modules.weights.hub import LOCAL, Repository
from edge_agent.modules.weights.layout import SINGLE
from s2m3.bench.accuracy_metrics import accuracy
from s2m3.bench.datasets import Dataset, evenly, open_data
from s2m3.catalogue import load_task
from s2m3.reference.split import Split
from s2m3.reference.whole import load, same

FAMILY, PART, NODE = "heads.linear", "linear", "head"
HELD_OUT = 0.25  # of the records, which the head is tried on and never sees
MOST_ITERATIONS = 1000

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


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
    """Fit a head, write its weights and its task, and try it split and unsplit; ``say`` gets what takes long.

    Returns:
        The new task, and the report for ``--json``.

    Raises:
        BadFile: the data, the encoder or a name is wrong, or a file can't be written.
        RequestFailed: the encoder can't read a record.
    """
    dataset = open_data(asked.data, asked.format)
    name = _check_name(asked.name or Path(asked.data).resolve().name.lower())
    encoder = _encoder(asked.encoder)
    split = Split()
    _check_data(dataset, encoder.task, next(iter(encoder.inputs.values())))
    chosen = evenly(dataset.size, asked.limit)
    say(f"{show_count(len(chosen), 'record')} through {encoder.task}")
    features, rows, labels = _features(split, encoder, dataset, chosen)
    fitting, trying = _parts(labels, dataset.classes, asked.seed)
    weight, bias = _fit(rows[fitting], labels[fitting], regularisation=asked.regularisation)
    config = {
        "model_type": heads.LINEAR,
        "features": features,
        "width": int(weight.shape[1]),
        "id2label": {str(index): label for index, label in enumerate(dataset.classes)},
    }
    tensors = {"classifier.weight": torch.from_numpy(weight), "classifier.bias": torch.from_numpy(bias)}
    repository = asked.models / LOCAL / name
    head = _write_head(repository, config, tensors, encoder)
    task = _with_head(encoder, name, head, len(dataset.classes))
    out = Path(asked.out or f"{name}.yaml")
    _write_task(out, task)
    return task, {
        **_try(task, dataset, {chosen[at]: dataset.classes[labels[at]] for at in trying}, split),
        "task": str(out),
        "weights": str(repository),
        "fitted_on": len(fitting),
        "head_bytes": head.memory_bytes,
        "digest": head.digest,
        "encoder_bytes": sum(module.memory_bytes for module in encoder.modules.values()),
    }


def _encoder(name: str) -> TaskSpec:
    """The task that gives an encoder's features: a catalogue name or a file, or a node of one as ``NAME:NODE``."""
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


def _features(split: Split, task: TaskSpec, dataset: Dataset, positions: Iterable[int]) -> tuple[str, Floats, Labels]:
    """The name of the encoder's array, the features (n, width), and the labels (n,); each a request of its own."""
    (input_,) = task.inputs
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
    return name, np.stack(rows), np.asarray(labels, dtype=np.int64)


def _check_data(dataset: Dataset, task: str, input_: InputSpec) -> None:
    """Refuse data that no classifier of this input can be fitted on."""
    if dataset.kind != "classification":
        fix = "name data with classes"
        raise BadFile(file=dataset.format, problem=f"is {dataset.kind} data, and a head needs labels", fix=fix)
    if dataset.medium != input_.kind:
        problem = f"holds {dataset.medium}s, and {task} takes {input_.kind}"
        raise BadFile(file=dataset.format, problem=problem, fix="name another encoder or other data")


def _parts(labels: Labels, classes: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Positions to fit on and positions to try on: a quarter of each class, drawn by the seed."""
    random = np.random.default_rng(seed)
    held_out: list[int] = []
    for label, name in enumerate(classes):
        own = np.flatnonzero(labels == label)
        if len(own) < 2:  # noqa: PLR2004 - one to fit on, one to try on
            problem = f"has {show_count(len(own), 'record')}"
            raise BadFile(file=name, problem=problem, fix="give each class at least two records, or raise --limit")
        held_out.extend(random.permutation(own)[: max(1, round(HELD_OUT * len(own)))].tolist())
    chosen = set(held_out)
    return [at for at in range(len(labels)) if at not in chosen], sorted(held_out)


def _fit(rows: Floats, labels: Labels, *, regularisation: float) -> tuple[Floats, Floats]:
    """Fit multinomial logistic regression (scikit-learn's, by L-BFGS) on standardised features.

    Returns:
        The weight (c, width) and the bias (c,), with the standardisation folded in: the head takes the features as
        they are.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - slow, and only for this

    wide = rows.astype(np.float64)
    mean, spread = wide.mean(axis=0), wide.std(axis=0)
    spread[spread == 0] = 1.0
    model = LogisticRegression(C=regularisation, max_iter=MOST_ITERATIONS).fit((wide - mean) / spread, labels)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # of two classes only their difference is fitted
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    weight = weight / spread
    bias = bias - weight @ mean
    return np.ascontiguousarray(weight, dtype=np.float32), bias.astype(np.float32)


def _write_head(
    repository: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], encoder: TaskSpec
) -> ModuleSpec:
    """Write {config.json, model.safetensors}; returns the module, with the numbers and the digest of these files."""
    made_by = {"encoder": encoder.module_of(encoder.output).key, "made by": "s2m3 head train"}
    try:
        repository.mkdir(parents=True, exist_ok=True)
        save_file(tensors, repository / SINGLE, metadata=made_by)
        (repository / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadFile(
            file=str(repository), problem=error.strerror or "can't be written", fix="name another --models"
        ) from error
    part = heads.PARTS[PART]
    hub = f"{LOCAL}/{repository.name}"
    counted = model_parts.count(part, config)
    return ModuleSpec(
        family=FAMILY,
        source=Source(hub=hub, part=PART),
        memory_bytes=counted.memory_bytes,
        flops=counted.flops,
        output_bytes=counted.output_bytes,
        digest=model_parts.content_digest(FAMILY, part, Checkpoint(Repository(hub, None, repository)), tensors),
    )


def _with_head(encoder: TaskSpec, name: str, head: ModuleSpec, classes: int) -> TaskSpec:
    """The encoder's graph with the head at its end."""
    node = NODE if NODE not in encoder.nodes.keys() | encoder.inputs.keys() else f"{name}-{NODE}"
    module = f"{name}/{PART}"
    return TaskSpec(
        task=name,
        description=f"one of {classes} classes, by a linear head on the features of {encoder.task}",
        inputs=encoder.inputs,
        nodes={**encoder.nodes, node: NodeSpec(module=module, needs=(encoder.output,))},
        output=node,
        modules={**encoder.modules, module: head},
    )


def _check_name(name: str) -> str:
    """A name that a task may have."""
    if not re.fullmatch(ID_PATTERN, name):
        problem = f"must be a name of a-z, 0-9 and -, got {name!r}"
        raise BadFile(file="--name", problem=problem, fix="use at most 63 of these")
    return name


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
