"""``s2m3 bench wire``: its command line and its tables. ``s2m3.bench.wire`` measures."""

from __future__ import annotations

import argparse
from typing import Any

from broker.arguments import count
from s2m3.cli.arguments import add_json
from s2m3.cli.bench.measured import print_measured
from s2m3.cli.output import console, show_progress, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench wire``."""
    text = "mosquitto or embedded; again for both; default both"
    parser.add_argument("--broker", action="append", choices=("mosquitto", "embedded"), help=text)
    text = "bytes of the arrays of a hop; again for more; default 2,048 to 5,000,000"
    parser.add_argument("--size", action="append", type=count(4, 16_000_000), metavar="N", help=text)
    text = "blocks of each kind, in turn; default %(default)s"
    parser.add_argument("--rounds", type=count(1, 1000), default=7, metavar="N", help=text)
    text = "hops, or requests, in a block, and a tenth of them from 1,000,000 bytes on; default %(default)s"
    parser.add_argument("--hops", type=count(1, 100_000), default=100, metavar="N", help=text)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; 0 if every ratio is within its goal."""
    from s2m3.bench.wire.measure import BROKERS, SIZES, measure  # noqa: PLC0415 - after the arguments

    found = measure(
        brokers=arguments.broker or BROKERS,
        sizes=arguments.size or SIZES,
        rounds=arguments.rounds,
        hops=arguments.hops,
        progress=show_progress,
    )
    return print_measured(arguments, found, _show)


def _show(found: dict[str, Any]) -> None:
    printed = console()
    for name, at in found["brokers"].items():
        title = f"{name} ({at['version']})"
        made = table("bytes", "paho p50 ms", "p95", "agents p50 ms", "p95", "ratio", "of the rounds", title=title)
        for row in at["hops"]:
            made.add_row(
                str(row["bytes"]), *_times(row["paho_s"], row["agents_s"]), f"{row['ratio']:.2f}", _range(row["ratios"])
            )
        printed.print(made)
        request = at["request"]
        made = table("one request", "p50 ms", "p95", "hops of paho", "of the rounds", title=f"{title}: requests")
        made.add_row("a hop of paho", *_times(request["paho_s"]), "1.00", "")
        made.add_row("relays of paho: the floor", *_times(request["floor_s"]), *_hops(request, "floor_"))
        made.add_row("agents", *_times(request["request_s"]), *_hops(request, ""))
        printed.print(made)
    goals = found["goals"]
    printed.print(f"goals: a hop {goals['hop']:g} of paho's, a request {goals['request']:g} hops of paho")


def _times(*figures: dict[str, float]) -> list[str]:
    return [f"{1000 * each[share]:.2f}" for each in figures for share in ("p50", "p95")]


def _hops(request: dict[str, Any], prefix: str) -> tuple[str, str]:
    return f"{request[f'{prefix}hops']:.2f}", _range(request[f"{prefix}ratios"])


def _range(ratios: list[float]) -> str:
    return f"{min(ratios):.2f} to {max(ratios):.2f}"
