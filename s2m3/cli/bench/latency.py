"""``s2m3 bench latency``: its command line and its tables. ``compare`` and ``branches`` measure."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from broker.arguments import count
from broker.files import load_spec
from s2m3.bench import machine, weights
from s2m3.bench.latency.settings import LatencySettings
from s2m3.bench.latency.workloads import WORKLOADS, Workload, named
from s2m3.cli.arguments import add_json, positive
from s2m3.cli.output import console, print_json, print_result, show_progress, table
from s2m3.testbed import NO_CACHE

MODES = ("cloud", "local", "split")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench latency``."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--compare", choices=["cloud"], help="split against all modules on a cloud machine, and all on one device"
    )
    what.add_argument("--routing", action="store_true", help="branches in parallel against one after the other")
    text = "machines and links; again for more; default: 20 Mbit/s, 50 ms"
    parser.add_argument("--settings", action="append", metavar="FILE", help=text)
    names = ", ".join(workload.name for workload in WORKLOADS)
    parser.add_argument(
        "--workload", action="append", metavar="NAME", help=f"one of {names}; again for more; default all"
    )
    text = "requests to each site, after the warm-up; default %(default)s"
    parser.add_argument("--requests", type=positive, default=20, metavar="N", help=text)
    text = "--routing: captions in the request; default %(default)s"
    parser.add_argument("--captions", type=count(1, 50), default=44, metavar="N", help=text)
    text = "weights; missing ones are written there at random; default: a directory that is removed"
    parser.add_argument("--models", metavar="DIR", help=text)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; 0 if every site gave the same answers."""
    settings = [load_spec(file, LatencySettings) for file in arguments.settings or ()] or [LatencySettings()]
    workloads = named(arguments.workload)
    with ExitStack() as stack:
        directory = arguments.models or stack.enter_context(tempfile.TemporaryDirectory(prefix="s2m3-models-"))
        if arguments.routing:
            return _routing(arguments, Path(directory))
        return _compare(arguments, settings, workloads, Path(directory))


def _compare(
    arguments: argparse.Namespace, settings: Iterable[LatencySettings], workloads: Iterable[Workload], models: Path
) -> int:
    from s2m3.bench.latency.compare import compare  # noqa: PLC0415 - after the arguments: a wrong one is refused at once

    weights.provide(models, [workload.task for workload in workloads], show_progress)
    found, same = [], True
    for setting in settings:
        rows = [
            compare(workload, setting, models=models, requests=arguments.requests, progress=show_progress)
            for workload in workloads
        ]
        same = same and all(row["same_answers"] for row in rows)
        found.append({"settings": setting.model_dump(), "machine": machine.description(), "workloads": rows})
        if not arguments.json:
            _show(setting, rows)
    if arguments.json:
        print_json(found)
    return 0 if same else 1


def _routing(arguments: argparse.Namespace, models: Path) -> int:
    from s2m3.bench.latency.branches import compare_branches  # noqa: PLC0415 - see above

    weights.provide(models, [workload.task for workload in named(["hub/retrieval-clip-b16"])], show_progress)
    found = compare_branches(
        models=models, requests=arguments.requests, captions=arguments.captions, progress=show_progress
    )
    print_result(arguments, found | {"machine": machine.description()}, _show_routing)
    return 0


def _show_routing(found: dict[str, Any]) -> None:
    made = table("routing", "p50 ms", "p95 ms", title=f"{found['workload']}, {found['captions']} captions")
    for name in ("sequential", "parallel", "front_door"):
        latency_s = found[f"{name}_s"]
        made.add_row(name.replace("_", " "), *(f"{1000 * latency_s[each]:.0f}" for each in ("p50", "p95")))
    printed = console()
    printed.print(made)
    encoders = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in found["encoder_s"].items())
    printed.print(
        f"medians: {encoders}; parallel takes {100 * found['reduction']:.1f} % less than sequential; {NO_CACHE}"
    )


def _show(setting: LatencySettings, rows: Iterable[dict[str, Any]]) -> None:
    up, link = setting.uplink, setting.network
    speeds = ", ".join(f"{each.id} {each.speed:g}" for each in (setting.cloud, *setting.devices))
    title = (
        f"{setting.name}\nuplink {up.up_bits_per_s / 1e6:g} Mbit/s up, {up.down_bits_per_s / 1e6:g} down, "
        f"{1000 * up.round_trip_s:g} ms; site {link.bits_per_s / 1e6:g} Mbit/s, {1000 * link.round_trip_s:g} ms; "
        f"speeds: {speeds}; {NO_CACHE}"
    )
    columns = ["workload", *(f"{mode} p50/p95 ms" for mode in MODES), "split against cloud", "fastest", "split on"]
    made = table(*columns, title=title)
    for row in rows:
        times = [row[mode]["latency_s"] for mode in MODES]
        less = row["reduction_against_cloud"]
        used = sorted({device for node in row["split"]["nodes"].values() for device in node["devices"]})
        made.add_row(
            row["workload"],
            *(f"{1000 * each['p50']:.0f} / {1000 * each['p95']:.0f}" for each in times),
            f"{-100 * less['p50']:+.1f} % / {-100 * less['p95']:+.1f} %",
            row["fastest"] + ("" if row["same_answers"] else " (ANSWERS DIFFER)"),
            ", ".join(used),
        )
    console().print(made)
