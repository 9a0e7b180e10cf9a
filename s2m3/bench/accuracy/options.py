"""The cost and the gain of options that trade accuracy for bytes: ``s2m3 bench accuracy --dtype --wire``.

Owns the options and the table's rows. The first row is float32 everywhere, compared bit for bit with the unsplit model.
An option's answers are compared with that model's by the name that each gives. Scores always differ a little, so they
are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from broker.protocol.errors import BadFile
from broker.protocol.specs import ModuleSpec, TaskSpec, Wire
from s2m3.bench.accuracy import questions, run
from s2m3.bench.datasets import Dataset
from s2m3.reference import zoo


@dataclass(frozen=True)
class Option:
    """A dtype of the weights, and one of the arrays between nodes."""

    dtype: str = "float32"
    wire: Wire = "float32"

    def __str__(self) -> str:
        return f"{self.dtype} weights, {self.wire} wire"


def chosen(dtypes: Sequence[str], wires: Sequence[Wire]) -> list[Option]:
    """All pairs of dtypes and wires, float32 everywhere first. An empty list means float32."""
    wanted: Sequence[Wire] = wires or ["float32"]
    pairs = [Option(dtype, wire) for dtype, wire in product(dtypes or ["float32"], wanted)]
    return list(dict.fromkeys([Option(), *pairs]))


def applied(task: TaskSpec, option: Option) -> TaskSpec:
    """A task with an option: a module gets the dtype if its family computes in it and it makes the module smaller.

    Raises:
        BadFile: no module becomes smaller.
        ModuleRefused: a module's configuration is missing.
    """
    modules: dict[str, ModuleSpec] = {}
    for name, spec in task.modules.items():
        size_bytes = zoo.memory_bytes(task, name, option.dtype)
        smaller = size_bytes is not None and size_bytes < spec.memory_bytes
        changes = {"dtype": option.dtype, "memory_bytes": size_bytes, "digest": None}
        modules[name] = spec.model_copy(update=changes) if smaller else spec
    if option.dtype != "float32" and modules == task.modules:
        fix = "name another dtype, or leave it out"
        raise BadFile(file=task.task, problem=f"has no module that {option.dtype} makes smaller", fix=fix)
    return task.model_copy(update={"modules": modules, "wire": option.wire})


def rows(
    name: str,
    task: TaskSpec,
    dataset: Dataset,
    settings: run.Settings,
    options: Sequence[Option],
    *,
    results: Path | None,
    progress: run.Progress,
) -> list[dict[str, Any]]:
    """One row an option: one benchmark run with each of them.

    The task is in float32, and the first option is ``Option()``. ``results`` is a directory for one results file an
    option. All else is as ``run.run`` takes it.

    Returns:
        Each option's summary, with ``weight_bytes``, ``wire_bytes`` (the arrays between nodes, for one record) and
        ``differing``.

    Raises:
        BadFile, ModuleRefused: as ``run.run`` does.
    """
    found: list[dict[str, Any]] = []
    expected: list[dict[str, Any]] = []
    for option in options:
        changed = applied(task, option)
        file = results / f"{option.dtype}-{option.wire}.jsonl" if results else None
        own = settings if not found else replace(settings, unsplit=0)
        summary, records = run.run(name, changed, dataset, own, results=file, progress=progress)
        row = {"option": str(option), "dtype": option.dtype, "wire": option.wire} | summary
        row["weight_bytes"] = sum({spec.key: spec.memory_bytes for spec in changed.modules.values()}.values())
        if not found:
            compared = records[: summary["compared"]]
            expected = [record["split"] if record["unsplit"] is None else record["unsplit"] for record in compared]
        else:
            row["compared"] = len(expected)
            pairs = zip((record["split"] for record in records), expected, strict=False)
            row["differing"] = sum(questions.named(one) != questions.named(other) for one, other in pairs)
        found.append(row)
    return found
