"""``s2m3 bench accuracy``: one benchmark, or with ``--table`` all benchmarks below a directory.

``--equivalence`` compares every model at real size, split against whole. ``--dtype``, ``--wire`` and ``--options`` show
what trades accuracy for bytes.

Owns the command line and the tables. The table of benchmarks pairs every task with every benchmark that fits it, writes
the results of each pair into a file of its own, and resumes where those files end.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from broker.arguments import count
from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.sizes import mebibytes, show_bytes, show_count
from broker.protocol.specs import ModuleSpec, Wire
from edge_agent import catalog
from s2m3.catalogue import load_task
from s2m3.cli.arguments import add_json, positive
from s2m3.cli.output import ProgressLines, console, print_result, table

if TYPE_CHECKING:
    from s2m3.bench.accuracy.run import Settings
    from s2m3.bench.datasets import Dataset

RESULTS = "s2m3-accuracy"
DTYPES = get_args(ModuleSpec.model_fields["dtype"].annotation)
WIRES = get_args(Wire)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench accuracy``."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="DIR", help="one benchmark, or digits (scikit-learn's)")
    what.add_argument("--table", metavar="DIR", help="every benchmark below a directory, resumed where it stopped")
    text = "split against whole, at real size: every model below 500 M parameters"
    what.add_argument("--equivalence", action="store_true", help=text)
    parser.add_argument(
        "--task", action="append", metavar="T", help="a catalogue name or a file; again for more; default all"
    )
    parser.add_argument("--format", metavar="NAME", help="--data: its format; by default detected from file names")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="records of each benchmark, evenly from all of them"
    )
    parser.add_argument(
        "--unsplit", type=count(0), metavar="N", help="compare with the unsplit model on N records; default all"
    )
    parser.add_argument("--templates", type=positive, metavar="N", help="prompts for each class; default all")
    text = f"to resume: a file, or a directory for options and --table; default of --table DIR/{RESULTS}"
    parser.add_argument("--results", metavar="PATH", type=Path, help=text)
    parser.add_argument(
        "--dtype", action="append", default=[], choices=DTYPES, help="--data: the weights' dtype; again for more rows"
    )
    text = "--data: the dtype between nodes; again for more rows"
    parser.add_argument("--wire", action="append", default=[], choices=WIRES, help=text)
    parser.add_argument("--options", choices=("all",), help="--data: every dtype with every wire")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs; 0 if everything was run and no answer differs."""
    if arguments.equivalence:
        return _equivalence(arguments)
    from s2m3.bench.accuracy.run import Settings  # noqa: PLC0415 - torch is imported when a command needs it

    settings = Settings(limit=arguments.limit, unsplit=arguments.unsplit, templates=arguments.templates)
    return _table(arguments, settings) if arguments.table else _one(arguments, settings)


def _one(arguments: argparse.Namespace, settings: Settings) -> int:
    from s2m3.bench import datasets  # noqa: PLC0415 - see above
    from s2m3.bench.accuracy import run  # noqa: PLC0415

    if not arguments.task or len(arguments.task) != 1:
        raise BadFile(file="--task", problem="must be given once with --data", fix="name one, such as pocket/classify")
    (name,) = arguments.task
    dataset = datasets.open_data(arguments.data, arguments.format)
    if arguments.options or arguments.dtype or arguments.wire:
        return _options(arguments, settings, dataset)
    progress = ProgressLines(f"{arguments.data} {name}")
    summary, _ = run.run(name, load_task(name), dataset, settings, results=arguments.results, progress=progress)
    records = show_count(summary["records"], "record")
    text = f"{name} on {records} of {summary['benchmark']}: split {_metrics(summary['split'])}"
    if summary["compared"]:
        both = f"split {_metrics(summary['split_of_compared'])}, unsplit {_metrics(summary['unsplit'])}"
        text += f"\ncompared on {summary['compared']}: {both}; {summary['differing']} answers differ"
    print_result(arguments, summary, text)
    return 1 if summary["differing"] else 0


def _options(arguments: argparse.Namespace, settings: Settings, dataset: Dataset) -> int:
    from s2m3.bench.accuracy import options  # noqa: PLC0415 - see above

    dtypes, wires = (DTYPES, WIRES) if arguments.options else (arguments.dtype, arguments.wire)
    if arguments.results:
        _make(arguments.results)
    (name,) = arguments.task
    chosen, progress = options.chosen(dtypes, wires), ProgressLines(f"{arguments.data} {name}")
    task, results = load_task(name), arguments.results
    rows = options.rows(name, task, dataset, settings, chosen, results=results, progress=progress)
    first = rows[0]
    print_result(arguments, {"rows": rows, "ok": not first["differing"]}, lambda _: _print_options(name, rows))
    return 1 if first["differing"] else 0


def _print_options(name: str, rows: list[dict[str, Any]]) -> None:
    made = table("weights", "wire", "split", "differing", "weights (MiB)", "sent a record", "split (s)")
    for row in rows:
        differing = f"{row['differing']} of {row['compared']}" if row["compared"] else ""
        sizes = (mebibytes(row["weight_bytes"]), show_bytes(row["wire_bytes"]), str(row["split_seconds"]))
        made.add_row(row["dtype"], row["wire"], _metrics(row["split"]), differing, *sizes)
    console().print(made)
    first = rows[0]
    if first["compared"]:
        records = show_count(first["records"], "record")
        print(f"{name} on {records} of {first['benchmark']}; unsplit {_metrics(first['unsplit'])}")
        text = "bit for bit in the first row, by the named answer in the others"
        print(f"differing from the unsplit float32 model: {text}")


def _make(results: Path) -> None:
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = error.strerror or "can't be made"
        raise BadFile(file=str(results), problem=problem, fix="name a directory with --results") from error


def _equivalence(arguments: argparse.Namespace) -> int:
    from s2m3.bench.accuracy import equivalence  # noqa: PLC0415 - see above

    rows = []
    for row in equivalence.rows(arguments.task or equivalence.names()):
        rows.append(row)
        print(f"{row['task']}: {_equality(row)}", file=sys.stderr, flush=True)
    tried = [row for row in rows if "skipped" not in row]
    ok = bool(tried) and not any("error" in row or row["differing"] for row in tried)
    print_result(arguments, {"rows": rows, "ok": ok}, lambda _: _print_equivalence(rows))
    return 0 if ok else 1


def _print_equivalence(rows: list[dict[str, Any]]) -> None:
    made = table("model", "parameters", "weights", "outputs compared", "differing", "seconds")
    for row in rows:
        left_out = row.get("skipped") or row.get("error")
        numbers = (left_out,) if left_out else (str(row["inputs"]), str(row["differing"]), str(row["seconds"]))
        made.add_row(row["task"], f"{row['parameters']:,}", row.get("weights", ""), *numbers)
    console().print(made)


def _equality(row: dict[str, Any]) -> str:
    if left_out := row.get("skipped") or row.get("error"):
        return str(left_out)
    return f"{row['differing']} of {row['inputs']} outputs differ, {row['weights']} weights, {row['seconds']} s"


def _table(arguments: argparse.Namespace, settings: Settings) -> int:
    from s2m3.bench import datasets  # noqa: PLC0415 - see above
    from s2m3.bench.accuracy import run  # noqa: PLC0415
    from s2m3.bench.accuracy.questions import Unfit  # noqa: PLC0415

    top = Path(arguments.table)
    found = datasets.find(top)
    results = arguments.results or top / RESULTS
    _make(results)
    rows: list[dict[str, Any]] = []
    for name in arguments.task or catalog.names():
        task = load_task(name)
        for benchmark, (directory, format_) in found.items():
            row: dict[str, Any] = {"data": benchmark, "task": name}
            file = results / f"{benchmark}--{name}.jsonl".replace("/", "-")
            try:
                dataset = datasets.open_data(directory, format_)
                row["benchmark"] = format_
                progress = ProgressLines(f"{benchmark} {name}")
                summary, _ = run.run(name, task, dataset, settings, results=file, progress=progress)
                row |= summary
            except Unfit as error:
                row["unfit"] = error.problem
            except (BadFile, ModuleRefused) as error:
                row["error"] = str(error)
            rows.append(row)
    asked = [row for row in rows if "unfit" not in row]
    ok = bool(asked) and not any(row.get("error") or row.get("differing") for row in asked)
    print_result(arguments, {"rows": rows, "ok": ok}, lambda _: _print(asked, rows))
    return 0 if ok else 1


def _print(asked: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    made = table("data", "task", "records", "split", "compared", "unsplit", "differing")
    for row in asked:
        if "error" in row:
            made.add_row(row["data"], row["task"], "", row["error"])
            continue
        compared = (str(row["compared"]), _metrics(row["unsplit"]), str(row["differing"])) if row["compared"] else ()
        made.add_row(row["data"], row["task"], str(row["records"]), _metrics(row["split"]), *compared)
    console().print(made)
    if unfit := len(rows) - len(asked):
        print(f"{unfit} pairs of data and task don't fit each other; --json lists them with the reasons")


def _metrics(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2%}" for name, value in found.items())
