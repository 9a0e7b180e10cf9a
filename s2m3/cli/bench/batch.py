"""``s2m3 bench batch``: its command line and its table. ``s2m3.bench.batch`` measures."""

from __future__ import annotations

import argparse
from typing import Any

from broker.arguments import count, number
from broker.protocol.messages import MAX_BATCH
from s2m3.catalogue import load_task
from s2m3.cli.arguments import add_json, add_site_broker, site_broker
from s2m3.cli.bench.measured import cell_of, cells_of, print_measured
from s2m3.cli.output import console, show_progress, table, yes_or_no


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench batch``."""
    parser.add_argument(
        "task", metavar="TASK", nargs="?", default="pocket/zero-shot", help="a name of the catalogue, or a task file"
    )
    text = "the most requests in one pass; default %(default)s"
    parser.add_argument("--batch", type=count(2, MAX_BATCH), default=32, metavar="N", help=text)
    text = "as in an agent's file; default %(default)s"
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="auto", help=text)
    parser.add_argument("--models", metavar="DIR", help="the models directory of the agent")
    text = "requests under way; default %(default)s"
    parser.add_argument("--in-flight", type=count(1, 1000), default=128, metavar="N", help=text)
    text = "of each of the two sites; default %(default)s"
    parser.add_argument("--seconds", type=number(1, 3600, unit="seconds"), default=10.0, metavar="S", help=text)
    add_site_broker(parser, "default mosquitto")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; 0 if batches give at least 1.3 times as many answers, and the same ones."""
    from s2m3.bench.batch import measure  # noqa: PLC0415 - after the arguments: a wrong one is refused at once

    found = measure(
        load_task(arguments.task),
        {"accelerator": arguments.accelerator, "models": arguments.models},
        batch=arguments.batch,
        in_flight=arguments.in_flight,
        seconds=arguments.seconds,
        broker=site_broker(arguments) or "mosquitto",
        progress=show_progress,
    )
    return print_measured(arguments, found, _show)


def _show(found: dict[str, Any]) -> None:
    settings, printed = found["settings"], console()
    load = f"{settings['in_flight']} requests in flight, {settings['seconds']:g} s each"
    title = f"{settings['task']} on {found['device']}, {load}"
    columns = ("answers/s", "p50 ms", "p95 ms", "same answers", "largest difference of a score", "errors")
    made = table("batch", *columns, title=title, right=columns)
    for name, site in (("1", found["without"]), (str(settings["batch"]), found["batched"])):
        difference = site["largest_score_difference"]
        made.add_row(
            name,
            f"{site['per_s']:.1f}",
            *cells_of(site["latency_s"]),
            f"{site['same_answers']} of {site['answers']}",
            "-" if difference is None else f"{difference:.1e}",
            cell_of(site["errors"]),
        )
    printed.print(made)
    printed.print(f"batches give {found['ratio']:.2f} times as many answers")
    goal = f"at least {found['goal']:g} times as many, the same ones, and no error:"
    printed.print(goal, yes_or_no(holds=found["ok"]))
