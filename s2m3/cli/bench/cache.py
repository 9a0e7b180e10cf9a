"""``s2m3 bench cache``: its command line and its tables. ``s2m3.bench.cache`` measures."""

from __future__ import annotations

import argparse
from typing import Any

from broker.arguments import count
from s2m3.cli.arguments import add_json, add_site_broker, site_broker
from s2m3.cli.bench.measured import print_measured
from s2m3.cli.output import console, show_progress, table, yes_or_no

CACHE_BYTES = 16 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench cache``."""
    parser.add_argument("--frames", type=count(1, 10_000), default=30, metavar="N", help="default %(default)s")
    add_site_broker(parser, "default mosquitto")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; 0 if a frame costs one encoding and each text was encoded once."""
    from s2m3.bench.cache import measure  # noqa: PLC0415 - after the arguments: a wrong one is refused at once

    found = measure(
        count=arguments.frames,
        cache_bytes=CACHE_BYTES,
        broker=site_broker(arguments) or "mosquitto",
        progress=show_progress,
    )
    return print_measured(arguments, found, _show)


def _show(found: dict[str, Any]) -> None:
    settings, printed = found["settings"], console()
    tasks = ", ".join(settings["tasks"])
    title = f"{settings['frames']} frames, each to {len(settings['tasks'])} tasks at once ({tasks}); medians of a frame"
    columns = ("ms to the last answer", "ms of one task alone", "compute ms", "one encoding", "all other nodes")
    made = table("cache", *columns, title=title, right=columns)
    sites = {"off": found["without_cache"], "on": found["with_cache"]}
    for name, site in sites.items():
        keys = ("seconds", "seconds_of_one_task", "compute_s", "one_encoding_s", "other_nodes_s")
        made.add_row(name, *(f"{1000 * site[each]:.1f}" for each in keys))
    printed.print(made)
    counts = ("nodes", "computed, cache off", "computed, cache on")
    made = table("module", *counts, title="all frames, with those of the warm-up", right=counts)
    for module, nodes in found["with_cache"]["nodes"].items():
        made.add_row(module, str(nodes), *(str(site["computed"][module]) for site in sites.values()))
    printed.print(made)
    for goal, holds in found["goals"].items():
        printed.print(goal.replace("_", " ") + ":", yes_or_no(holds=holds))
