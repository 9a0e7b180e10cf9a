"""``s2m3 bench throughput``: its command line and its tables. ``s2m3.bench.throughput`` measures."""

from __future__ import annotations

import argparse
from typing import Any

from broker.arguments import count, number
from s2m3.cli.arguments import add_json, add_site_broker, site_broker
from s2m3.cli.bench.measured import cell_of, cells_of, print_measured
from s2m3.cli.output import console, show_progress, table
from s2m3.testbed import NO_CACHE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench throughput``."""
    parser.add_argument("--devices", type=count(1, 26), default=2, metavar="N", help="default %(default)s")
    text = "of each device, relative to this machine; below 1 by waiting; default %(default)s"
    parser.add_argument("--speed", type=number(0.001, 1), default=0.5, metavar="X", help=text)
    seconds, deadline = number(1, 3600, unit="seconds"), number(0.1, 3600, unit="seconds")
    parser.add_argument("--seconds", type=seconds, default=15.0, metavar="S", help="of each load; default %(default)s")
    text = "of each request; default %(default)s"
    parser.add_argument("--deadline", type=deadline, default=3.0, metavar="S", help=text)
    add_site_broker(parser, "default mosquitto")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; 0 if the goodput at three times the capacity is at least 90 % of its peak."""
    from s2m3.bench.throughput import measure  # noqa: PLC0415 - after the arguments: a wrong one is refused at once

    found = measure(
        devices=arguments.devices,
        speed=arguments.speed,
        seconds=arguments.seconds,
        deadline_s=arguments.deadline,
        broker=site_broker(arguments) or "mosquitto",
        progress=show_progress,
    )
    return print_measured(arguments, found, _show)


def _show(found: dict[str, Any]) -> None:
    settings = found["settings"]
    title = (
        f"{settings['devices']} devices of speed {settings['speed']:g}, deadline {settings['deadline_s']:g} s, "
        f"{settings['seconds']:g} s each; capacity {found['capacity_per_s']:.1f} requests/s"
    )
    made = table("load", "offered/s", "answered in time/s", "p50 ms", "p95 ms", "late", "errors", title=title)
    for row in found["loads"]:
        made.add_row(
            f"{row['factor']:g}x",
            f"{row['offered_per_s']:.1f}",
            f"{row['goodput_per_s']:.1f}",
            *cells_of(row["latency_s"]),
            str(row["late"]),
            cell_of(row["errors"]),
        )
    printed = console()
    printed.print(made)
    printed.print(f"goodput at 3x: {100 * found['goodput_kept_at_most_load']:.0f} % of its peak; {NO_CACHE}")
    for task, share in found["fairness"].items():
        asked, answered = share["offered_per_s"], share["answered_per_s"]
        text = f"3x again, in unequal shares: {task} asks {asked:.1f}/s and is answered {answered:.1f}/s"
        printed.print(text)
