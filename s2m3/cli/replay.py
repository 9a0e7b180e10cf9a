"""``s2m3 replay SCENARIO...``: what a failure would cost, found out before it happens; with the tables for ``soak``."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from broker.protocol.errors import BadFile
from broker.transport.connection import Connection
from s2m3 import scenarios
from s2m3.cli.arguments import add_json, add_site_broker, add_what_if, site_broker
from s2m3.cli.output import console, print_json, printable, table, yes_or_no
from s2m3.testbed import NO_CACHE
from s2m3.testbed.replay.goals import Detection, Goal, Played, detections, judge
from s2m3.testbed.replay.library import load_scenario
from s2m3.testbed.replay.recording import Recording, Report
from s2m3.testbed.replay.report import report
from s2m3.testbed.replay.run import play_all
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.replay.weights import require_weights
from s2m3.testbed.what_if import changed_scenario


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    known = ", ".join(scenarios.names())
    parser.add_argument(
        "scenario", nargs="*", metavar="SCENARIO", help=f"a YAML file, or one of the library ({known}); all when none"
    )
    add_site_broker(parser, "default the scenario's")
    add_json(parser, "print one JSON document; a list when several are replayed")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the timeline; several: FILE-SCENARIO")
    parser.add_argument("--short", action="store_true", help="the same faults in less than half the time")
    text = "the whole library and the campaigns; prints the goals and what was measured"
    parser.add_argument("--goals", action="store_true", help=text)
    add_what_if(parser, "let this device die under the load", "let one more device like this one join under the load")
    parser.add_argument("--logs", metavar="DIR", type=Path, help="keep there what the processes print")


def run(arguments: argparse.Namespace) -> int:
    """Replay; 0 when every scenario's expectations hold, and with ``--goals`` every goal."""
    if arguments.plot:
        check_plot(arguments.plot)
    names = list(arguments.scenario or scenarios.names())
    campaigns = [str(path) for path in scenarios.goals()] if arguments.goals else []
    names += [name for name in campaigns if name not in names]
    printed = console(to_stderr=arguments.json, quiet=arguments.json)
    played: dict[str, Played] = {}
    broker = site_broker(arguments)
    connection = broker if isinstance(broker, Connection) else None
    loaded = {name: load_scenario(name, connection.url if connection else arguments.broker) for name in names}
    for name, scenario in loaded.items():
        require_weights(scenario)
        if arguments.without or arguments.one_more:
            loaded[name] = changed_scenario(scenario, arguments.without, arguments.one_more)
    for name, scenario, recording in play_all(
        loaded, printed.print, short=arguments.short, logs=arguments.logs, connection=connection
    ):
        found = report(recording, scenario.expect)
        played[name] = Played(scenario, found)
        printed.print(f"  {'; '.join(found.why_not) or 'holds'}", markup=False)
        if arguments.plot and recording.outcomes:
            picture: Path = arguments.plot
            if len(names) > 1:
                picture = picture.with_stem(f"{picture.stem}-{Path(name).stem}")
            draw_to(picture, scenario, recording, found)
            printed.print(f"  drawn: {picture}", markup=False)
    reports = [each.report for each in played.values()]
    detected = detections(list(played.values()))
    goals = judge(list(played.values()), {Path(name).stem: played[name] for name in campaigns}) if campaigns else []
    if arguments.json:
        documents = [asdict(each) for each in reports]
        judged = {"goals": [asdict(goal) for goal in goals], "detection": [asdict(each) for each in detected]}
        print_json({**judged, "replays": documents} if goals else documents if len(documents) > 1 else documents[0])
    show_replays(printed, reports)
    show_goals(printed, goals, detected)
    return 0 if all(each.ok for each in reports) and all(goal.holds for goal in goals) else 1


def check_plot(file: Path) -> None:
    """Refuse with ``BadFile`` a file that no timeline can be drawn to, before anything is replayed for it."""
    fix = "name a .png, .svg or .pdf in a folder that exists"
    if file.suffix not in {".png", ".svg", ".pdf"}:
        raise BadFile(file=str(file), problem="must end in .png, .svg or .pdf", fix=fix)
    if not file.parent.is_dir():
        raise BadFile(file=str(file), problem="is in a folder that does not exist", fix=fix)
    if importlib.util.find_spec("matplotlib") is None:
        raise BadFile(file="--plot", problem="matplotlib is missing", fix="install the [bench] extra")


def draw_to(file: Path, scenario: Scenario, recording: Recording, found: Report) -> None:
    """Draw the timeline; ``BadFile`` when the file can't be written."""
    from s2m3.testbed.replay.plot import draw  # noqa: PLC0415 - matplotlib, an extra

    try:
        draw(file, scenario, recording, found)
    except OSError as error:
        raise BadFile(file=str(file), problem=str(error), fix="name a file that can be written") from error


def show_replays(printed: Console, reports: Sequence[Report]) -> None:
    """Print each replay's faults, and all replays' counts."""
    for found in reports:
        _show_faults(printed, found)
    counts = ("sent", "answered", "errors", "lost", "wrong", "duplicates", "moves", "p50 ms", "p95 ms")
    made = table("scenario", *counts, "holds", title="replays" if len(reports) > 1 else None, right=counts)
    for found in reports:
        errors = ", ".join(f"{code} {count}" for code, count in found.errors.items()) or "0"
        numbers = (found.sent, found.answered, errors, found.lost, found.wrong, found.duplicates, found.moves)
        times = (_ms(found.latency_s[share]) for share in ("p50", "p95"))
        made.add_row(found.name, *map(str, numbers), *times, yes_or_no(holds=found.ok))
    printed.print(made)
    for found in reports:
        for sentence in found.why_not:
            printed.print(f"{found.name}: {sentence}", markup=False)
    printed.print(NO_CACHE)


def show_goals(printed: Console, goals: Sequence[Goal], detections: Sequence[Detection]) -> None:
    """Print the goals against what was measured, and how long each signal took to show a lost device."""
    if not goals:
        return
    made = table("goal", "wanted", "measured", "samples", "holds", title="goals", right={"samples"})
    for goal in goals:
        made.add_row(goal.name, goal.wanted, goal.measured, str(goal.samples), yes_or_no(holds=goal.holds))
    printed.print(made)
    figures = ("samples", "p50 ms", "p95 ms", "longest ms", "longest, in heartbeat intervals")
    made = table("signal", *figures, title="lost devices, by the signal that showed it first", right=figures)
    for found in detections:
        times = (_ms(found.p50_s), _ms(found.p95_s), _ms(found.longest_s), f"{found.longest_intervals:.2f}")
        made.add_row(found.signal, str(found.samples), *times)
    printed.print(made)


def _show_faults(printed: Console, found: Report) -> None:
    if not found.faults:
        return
    figures = ("at s", "in flight", "detected after s", "replaced after s", "first answer after s", "moves")
    columns = ("at s", "fault", "target", "in flight", "detected after s", "by", *figures[3:])
    made = table(*columns, title=found.name, right=figures)
    for fault in found.faults:
        detected = (_s(fault.detected_after_s), fault.detected_by or "")
        later = (_s(fault.replaced_after_s), _s(fault.first_answer_after_s), str(fault.moves))
        made.add_row(f"{fault.at_s:.2f}", fault.kind, fault.target, str(fault.in_flight), *detected, *later)
    printed.print(made)
    for fault in found.faults:
        printed.print(f"at {fault.at_s:.2f} s, {fault.kind} {fault.target}: {printable(fault.explained)}", markup=False)


def _s(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.0f}"
