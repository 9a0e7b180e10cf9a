"""``s2m3 bench accuracy``: one benchmark, or with ``--table`` all that lie below a directory.

Owns the command line and the table. The table asks every task about every benchmark that it can be asked about, writes
the results of each pair into a file of its own, and goes on where those files end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import catalog
from broker.errors import BadFile, ModuleRefused
from s2m3.catalogue import load_task

RESULTS = "s2m3-accuracy"
PROGRESS_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench accuracy``."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="DIR", help="one benchmark, or digits (scikit-learn's)")
    what.add_argument("--table", metavar="DIR", help="every benchmark below a directory, resumed where it stopped")
    parser.add_argument(
        "--task", action="append", metavar="T", help="a catalogue name or a file; again for more; --table: default all"
    )
    parser.add_argument("--format", metavar="NAME", help="of --data; by default what it looks like")
    parser.add_argument("--limit", type=int, metavar="N", help="records of each benchmark, evenly from all of them")
    parser.add_argument(
        "--unsplit", type=int, metavar="N", help="compare with the unsplit model on N records; default all"
    )
    parser.add_argument("--templates", type=int, metavar="N", help="prompts a class; default all of the usual ones")
    parser.add_argument(
        "--results", metavar="PATH", help=f"--data: a file, to resume; --table: a directory, default DIR/{RESULTS}"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=bench)


def bench(arguments: argparse.Namespace) -> int:
    """Run; 0 when everything asked for was run and no answer differs.

    Raises:
        BadFile: the data, a task or an option is wrong.
    """
    for name, least in (("limit", 1), ("unsplit", 0), ("templates", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise BadFile(file=f"--{name}", problem=f"{value} is too few", fix=f"take at least {least}")
    return _table(arguments) if arguments.table else _one(arguments)


def _one(arguments: argparse.Namespace) -> int:
    from s2m3.accuracy import run  # noqa: PLC0415 - torch is imported when a command needs it

    if not arguments.task or len(arguments.task) != 1:
        raise BadFile(file="--task", problem="one is wanted with --data", fix="name one, such as pocket/classify")
    (name,) = arguments.task
    dataset = run.open_data(arguments.data, arguments.format)
    results = Path(arguments.results) if arguments.results else None
    summary = run.run(
        name,
        load_task(name),
        dataset,
        _settings(arguments),
        results=results,
        progress=_Progress(f"{arguments.data} {name}"),
    )
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(f"{name} on {summary['records']} records of {summary['benchmark']}: split {_metrics(summary['split'])}")
        if summary["compared"]:
            both = f"split {_metrics(summary['split_of_compared'])}, unsplit {_metrics(summary['unsplit'])}"
            print(f"compared on {summary['compared']}: {both}; {summary['differing']} answers differ")
    return 1 if summary["differing"] else 0


def _table(arguments: argparse.Namespace) -> int:
    from s2m3 import datasets  # noqa: PLC0415 - see above
    from s2m3.accuracy import run  # noqa: PLC0415

    top = Path(arguments.table)
    found = datasets.find(top)
    results = Path(arguments.results) if arguments.results else top / RESULTS
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = error.strerror or "can't be made"
        raise BadFile(file=str(results), problem=problem, fix="name a directory with --results") from error
    rows: list[dict[str, Any]] = []
    for name in arguments.task or catalog.names():
        task = load_task(name)
        for benchmark, (directory, format_) in found.items():
            row: dict[str, Any] = {"data": benchmark, "task": name}
            file = results / f"{benchmark}--{name}.jsonl".replace("/", "-")
            try:
                dataset = run.open_data(str(directory), format_)
                row |= {"benchmark": format_, **_fits(task, dataset, _settings(arguments))}
                if "unfit" not in row:
                    row |= run.run(
                        name,
                        task,
                        dataset,
                        _settings(arguments),
                        results=file,
                        progress=_Progress(f"{benchmark} {name}"),
                    )
            except (BadFile, ModuleRefused) as error:
                row["error"] = str(error)
            rows.append(row)
    asked = [row for row in rows if "unfit" not in row]
    ok = bool(asked) and not any(row.get("error") or row.get("differing") for row in asked)
    if arguments.json:
        print(json.dumps({"rows": rows, "ok": ok}))
    else:
        _print(asked, rows)
    return 0 if ok else 1


def _settings(arguments: argparse.Namespace) -> Any:  # noqa: ANN401 - run is imported when a command needs it
    from s2m3.accuracy.run import Settings  # noqa: PLC0415

    return Settings(limit=arguments.limit, unsplit=arguments.unsplit, templates=arguments.templates)


def _fits(task: Any, dataset: Any, settings: Any) -> dict[str, str]:  # noqa: ANN401 - the same
    from s2m3.accuracy import questions, run  # noqa: PLC0415

    try:
        questions.about(dataset, task, run.evenly(dataset.size, settings.limit), templates=settings.templates)
    except BadFile as error:
        return {"unfit": error.problem}
    return {}


def _print(asked: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    table = Table("data", "task", "records", "split", "compared", "unsplit", "differing")
    for row in asked:
        if "error" in row:
            table.add_row(row["data"], row["task"], "", row["error"])
            continue
        compared = (str(row["compared"]), _metrics(row["unsplit"]), str(row["differing"])) if row["compared"] else ()
        table.add_row(row["data"], row["task"], str(row["records"]), _metrics(row["split"]), *compared)
    Console().print(table)
    if len(asked) < len(rows):
        print(f"{len(rows) - len(asked)} pairs of data and task don't fit each other; --json names them and says why")


def _metrics(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2%}" for name, value in found.items())


class _Progress:
    """A line on stderr now and then."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._told_s = time.monotonic()

    def __call__(self, done: int, size: int) -> None:
        if time.monotonic() - self._told_s > PROGRESS_S:
            self._told_s = time.monotonic()
            print(f"{self._what}: {done} of {size}", file=sys.stderr, flush=True)
