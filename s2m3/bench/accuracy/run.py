"""One benchmark with one task: the split and the unsplit model on the same records, and how many answers differ.

Owns the loop over the records, and its resumption. Knows no kind of question and no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile, RequestFailed
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from s2m3.bench.accuracy import questions
from s2m3.bench.accuracy.journal import Journal
from s2m3.bench.datasets import Dataset, evenly
from s2m3.reference import whole
from s2m3.reference.split import Split

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """The parts of a benchmark that a run uses."""

    limit: int | None = None  # records, taken evenly from all
    unsplit: int | None = None  # the first records, which the unsplit model answers too; all by default
    templates: int | None = None  # prompts for each class; all by default


def run(
    name: str,
    task: TaskSpec,
    dataset: Dataset,
    settings: Settings,
    *,
    results: Path | None,
    progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Asks a task about a benchmark, from where its results file ends.

    The task's name is that in the catalogue, or its file. Without a results file nothing is kept. ``progress`` is
    called with the number of records done, and of all.

    Returns:
        The summary: metrics of the split model, metrics of both models on the records that both answered, and the
        number of answers that differ; and each record's line.

    Raises:
        BadFile: the data or the results file is wrong, or the task doesn't fit the data.
        ModuleRefused: a module can't be loaded.
    """
    chosen = evenly(dataset.size, settings.limit)
    asked = questions.about(dataset, task, chosen, templates=settings.templates)
    compared = len(chosen) if settings.unsplit is None else min(settings.unsplit, len(chosen))
    journal = Journal(results, _identity(name, task, dataset, settings))
    if journal.summary is not None:
        return journal.summary, journal.records
    split = Split(remembers=len(task.inputs) > 1)
    split.hold([task])
    began_s, begun_at = time.monotonic(), len(journal.records)
    model = whole.load(name, task) if begun_at < compared else None
    for at, position in enumerate(chosen[begun_at:], start=begun_at):
        record = dataset.read(position)
        requests = asked.requests(record)
        sent_before, asked_s = split.sent_bytes, time.monotonic()
        outputs = _answers(lambda inputs: split.run(task, inputs), requests, record.id)
        took_s = round(time.monotonic() - asked_s, 6)
        line: dict[str, Any] = {"id": record.id, "split": asked.verdict(record, outputs)}
        line |= {"split_s": took_s, "sent_bytes": split.sent_bytes - sent_before}
        if model is not None and at < compared:
            expected = _answers(model, requests, record.id)
            line["same"] = all(whole.same(one, other) for one, other in zip(outputs, expected, strict=True))
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
        **asdict(settings),
    }


def _answers(
    model: Callable[[Mapping[str, RawInput]], Output], requests: Sequence[Mapping[str, RawInput]], record: str
) -> list[Output]:
    try:
        return [model(inputs) for inputs in requests]
    except RequestFailed as error:
        raise BadFile(
            file=record, problem=f"can't be answered ({error.message})", fix="correct or remove it"
        ) from error


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
