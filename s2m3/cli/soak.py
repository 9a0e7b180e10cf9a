"""``s2m3 soak``: faults at random for half an hour; nothing may be lost, and no process may grow."""

from __future__ import annotations

import argparse
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from broker.arguments import number
from broker.protocol.errors import BadFile
from s2m3.bench.flatness import Verdict
from s2m3.bench.soak import ErrorVerdict, draw_scenario, soak
from s2m3.cli.arguments import add_json
from s2m3.cli.output import console, print_json, table, yes_or_no
from s2m3.cli.replay import check_plot, draw_to, show_replays


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    minutes = number(1, 24 * 60, unit="minutes")
    parser.add_argument("--minutes", type=minutes, default=30.0, metavar="M", help="of load, 1 to 1440; default 30")
    parser.add_argument("--seed", type=int, help="of faults and load; a new one, which is printed, when not given")
    add_json(parser)
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the timeline")
    parser.add_argument("--logs", metavar="DIR", type=Path, help="keep there what the processes print, and the samples")


def run(arguments: argparse.Namespace) -> int:
    """Soak; 0 when nothing was lost or wrong, few requests ended in errors, and every process stayed flat."""
    if importlib.util.find_spec("psutil") is None:
        raise BadFile(file="s2m3 soak", problem="psutil is missing", fix="install the [bench] extra")
    if arguments.plot:
        check_plot(arguments.plot)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    printed = console(to_stderr=arguments.json)
    scenario = draw_scenario(arguments.minutes * 60, seed)
    printed.print(f"seed {seed}: {len(scenario.faults)} faults in {arguments.minutes:g} minutes")
    found = soak(scenario, arguments.logs)
    if arguments.plot:
        draw_to(arguments.plot, scenario, found.recording, found.report)
    if arguments.json:
        processes = [verdict.__dict__ for verdict in found.processes]
        print_json({**asdict(found.report), "processes": processes, "ok": found.ok})
    show_replays(printed, [found.report])
    _show_errors(printed, found.errors)
    _show_processes(printed, found.processes)
    if found.unjudged:
        printed.print(f"no life of {', '.join(found.unjudged)} was long enough to judge: soak for longer")
    return 0 if found.ok else 1


def _show_errors(printed: Console, verdicts: Sequence[ErrorVerdict]) -> None:
    made = table("error", "requests", "at most", "holds", title="errors", right={"requests", "at most"})
    for each in verdicts:
        made.add_row(each.errors, str(each.count), each.allowed, yes_or_no(holds=each.holds))
    printed.print(made)


def _show_processes(printed: Console, verdicts: Sequence[Verdict]) -> None:
    figures = ("seconds", "MiB", "growth MiB", "with the same modules MiB", "threads", "files", "flat")
    made = table("process", *figures, title="processes that lived long enough to judge", right=figures)
    for verdict in verdicts:
        made.add_row(
            verdict.process,
            f"{verdict.seconds:.0f}",
            f"{verdict.memory_bytes / 2**20:.1f}",
            f"{verdict.resident_growth_bytes / 2**20:+.2f}",
            f"{verdict.growth_bytes / 2**20:+.2f}",
            f"{verdict.threads[0]:g} > {verdict.threads[1]:g}",
            f"{verdict.files[0]:g} > {verdict.files[1]:g}",
            yes_or_no(holds=verdict.flat),
        )
    printed.print(made)
