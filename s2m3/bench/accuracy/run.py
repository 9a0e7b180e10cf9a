"""One benchmark with one task: the split and the unsplit model on the same records, and how many answers differ.

Owns going through the records and going on after an interruption. Knows no kind of question and no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile, RequestFailed
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from s2m3.bench import datasets
from s2m3.bench.accuracy import questions, reference
from s2m3.bench.accuracy.journal import Journal
from s2m3.bench.datasets import Dataset, digits
from s2m3.reference.split import MAX_REMEMBERED, Split

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What a run may leave out."""

    limit: int | None = None  # records, taken evenly from all
    unsplit: int | None = None  # records that the unsplit model answers too, the first ones; all by default
    templates: int | None = None  # prompts a class; all by default

    def without_unsplit(self) -> Settings:
        """The same, and nothing is compared."""
        return replace(self, unsplit=0)


def nobody(done: int, size: int) -> None:
    """Progress that nobody looks at."""


def open_data(name: str, format_: str | None = None) -> Dataset:
    """Open a directory, or scikit-learn's digits under that name.

    Raises:
        BadFile: it holds no data of the format.
    """
    return digits.dataset() if name == digits.NAME else datasets.open_dataset(Path(name), format_)


def evenly(size: int, limit: int | None) -> list[int]:
    """Positions spread evenly over all, so that a few records of sorted data hold all classes.

    Raises:
        BadFile: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise BadFile(file="--limit", problem=f"{limit} is too few", fix="take at least 1")
    count = size if limit is None else min(limit, size)
    return [at * size // count for at in range(count)]


def same(split: Output, unsplit: Output) -> bool:
    """Whether two outputs are equal, bit for bit: the answers, and the arrays that the unsplit model gives."""
    return split.answer == unsplit.answer and all(
        name in split.tensors
        and np.array_equal(array, split.tensors[name])
        and array.dtype == split.tensors[name].dtype
        for name, array in unsplit.tensors.items()
    )


def run(
    name: str,
    task: TaskSpec,
    dataset: Dataset,
    settings: Settings,
    *,
    results: Path | None = None,
    progress: Progress = nobody,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Go through a benchmark, from where its results file ends.

    Args:
        name: The task's name in the catalogue, or its file.
        task: The task.
        dataset: The benchmark.
        settings: What to leave out.
        results: The results file; None keeps nothing.
        progress: Is told the records done and their number.

    Returns:
        The summary: metrics of the split model, of both on the records that both answered, and what differs; and each
        record's line.

    Raises:
        BadFile: the data or the results file is wrong, or the task can't be asked about this data.
        ModuleRefused: a module can't be loaded.
    """
    chosen = evenly(dataset.size, settings.limit)
    asked = questions.about(dataset, task, chosen, templates=settings.templates)
    compared = len(chosen) if settings.unsplit is None else min(settings.unsplit, len(chosen))
    journal = Journal(results, _identity(name, task, dataset, settings))
    if journal.summary is not None:
        return journal.summary, journal.records
    split = Split(remembers=MAX_REMEMBERED if len(task.inputs) > 1 else 0)
    split.hold([task])
    began_s, begun_at = time.monotonic(), len(journal.records)
    whole = reference.load(name, task) if begun_at < compared else None
    for at, position in enumerate(chosen[begun_at:], start=begun_at):
        record = dataset.read(position)
        requests = asked.requests(record)
        sent_before, asked_s = split.sent_bytes, time.monotonic()
        outputs = _answers(lambda inputs: split.run(task, inputs), requests, record.id)
        took_s = round(time.monotonic() - asked_s, 6)
        line: dict[str, Any] = {"id": record.id, "split": asked.verdict(record, outputs)}
        line |= {"split_s": took_s, "sent_bytes": split.sent_bytes - sent_before}
        if whole is not None and at < compared:
            expected = _answers(whole, requests, record.id)
            line["same"] = all(same(one, other) for one, other in zip(outputs, expected, strict=True))
            verdict = asked.verdict(record, expected)
            line["unsplit"] = None if verdict == line["split"] else verdict  # null: the same
        journal.add(line)
        progress(at + 1, len(chosen))
    summary = _summary(asked, journal.records, compared)
    summary |= {"benchmark": dataset.format, "kind": dataset.kind, "task": name}
    summary |= {"seconds": round(time.monotonic() - began_s, 1), "resumed_at": begun_at}
    journal.finish(summary)
    return summary, journal.records


def _identity(name: str, task: TaskSpec, dataset: Dataset, settings: Settings) -> dict[str, Any]:
    return {
        "task": name,
        "modules": {module: spec.key for module, spec in task.modules.items()},
        "wire": task.wire,
        "format": dataset.format,
        "records": dataset.size,
        "limit": settings.limit,
        "unsplit": settings.unsplit,
        "templates": settings.templates,
    }


def _answers(
    model: Callable[[Mapping[str, RawInput]], Output], requests: Sequence[Mapping[str, RawInput]], record: str
) -> list[Output]:
    try:
        return [model(inputs) for inputs in requests]
    except RequestFailed as error:
        raise BadFile(file=record, problem=f"can't be answered ({error.message})", fix="mend or remove it") from error


def _summary(asked: questions.Questions, records: Sequence[Mapping[str, Any]], compared: int) -> dict[str, Any]:
    split = [record["split"] for record in records]
    both = records[:compared]
    unsplit = [record["split"] if record["unsplit"] is None else record["unsplit"] for record in both]
    return {
        "records": len(records),
        "split_seconds": round(sum(record["split_s"] for record in records), 1),
        "wire_bytes": round(sum(record["sent_bytes"] for record in records) / len(records)),
        "split": asked.summary(split),
        "compared": len(both),
        "split_of_compared": asked.summary(split[:compared]) if both else None,
        "unsplit": asked.summary(unsplit) if both else None,
        "differing": sum(not record["same"] for record in both) if both else None,
    }
