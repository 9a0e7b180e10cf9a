"""``s2m3 bench placement``: the command line and the table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import s2m3
from broker.protocol.errors import BadFile
from broker.protocol.specs import FleetSpec, TaskSpec
from s2m3.bench.placement import instances, scale
from s2m3.bench.placement.compare import Result, compare, document, summarise
from s2m3.bench.placement.plot import plot
from s2m3.bench.placement.solve import TIME_LIMIT_S
from s2m3.cli.arguments import add_json, positive_seconds
from s2m3.cli.output import console, print_result, show_progress, table

INSTANCES = Path(s2m3.__file__).resolve().parents[1] / "benchmarks" / "placement" / "instances"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench placement``."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--scale", action="store_true", help="how the greedy solver's time grows with the fleet instead")
    what.add_argument("--write", metavar="DIR", help="draw the 95 instances, write them there, and solve nothing")
    what.add_argument("--instances", metavar="DIR", help="other instances; default: the 95 of the repository")
    what.add_argument("--seed", metavar="N", help="95 others of the same distribution, drawn with this seed")
    parser.add_argument(
        "--time-limit", type=positive_seconds, default=TIME_LIMIT_S, metavar="S", help="of exact; default 60"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the result, such as placement.svg")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Solve, print, and draw on demand; 0 when refined is optimal wherever that is known."""
    if arguments.scale:
        print_result(arguments, scale.document(), _print_scale)
        return 0
    if arguments.write:
        instances.write(Path(arguments.write))
        return 0
    results = compare(
        _instances(arguments),
        time_limit_s=arguments.time_limit,
        progress=lambda name: show_progress(f"instance {name}"),
    )
    show_progress("")
    if arguments.plot:
        plot(results, Path(arguments.plot))
    print_result(arguments, document(results), lambda _: _print(results))
    return 0 if all(result.solvers["refined"].optimal is not False for result in results) else 1


def _instances(arguments: argparse.Namespace) -> Sequence[tuple[str, FleetSpec, Sequence[TaskSpec]]]:
    if arguments.seed is not None:
        drawn = [instances.draw(number, seed=arguments.seed) for number in range(1, instances.COUNT + 1)]
        return [(instance.name, instance.fleet, instance.tasks) for instance in drawn]
    directory = Path(arguments.instances or INSTANCES)
    found = instances.read(directory)
    if not found:
        fix = "name their directory, or write them with `s2m3 bench placement --write DIR`"
        raise BadFile(file=str(directory), problem="holds no instances", fix=fix)
    return found


def _print(results: Sequence[Result]) -> None:
    headings = ("solver", "optimal", "no plan", "mean gap", "worst gap", "median (s)", "slowest (s)")
    made = table(*headings, title=f"{len(results)} instances")
    for line in summarise(results):
        gaps = (f"{line[name]:.2%}" for name in ("mean_gap", "worst_gap"))
        times = (f"{line[name]:.3g}" for name in ("median_solve_s", "worst_solve_s"))
        made.add_row(line["solver"], f"{line['optimal']} of {line['instances']}", str(line["no_plan"]), *gaps, *times)
    console().print(made)
    missed = [result.instance for result in results if result.solvers["refined"].optimal is False]
    unproven = [result.instance for result in results if result.solvers["exact"].optimal is not True]
    if missed:
        print(f"refined misses the optimum of: {', '.join(missed)}")
    if unproven:
        print(f"no proof within the time limit: {', '.join(unproven)}")


def _print_scale(measured: dict[str, Any]) -> None:
    headings = ("modules", "devices", "tasks", "fleet (s)", "greedy (s)", "one device lost (s)", "its modules", "moved")
    made = table(*headings, title="greedy: processor seconds of one core")
    for site in measured["scale"]:
        made.add_row(*(f"{figure:.4f}" if isinstance(figure, float) else str(figure) for figure in site.values()))
    console().print(made)
