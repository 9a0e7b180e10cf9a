"""``s2m3 replay SCENARIO...``: what a failure would cost, found out before it happens."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from broker.files import bad_field, load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import describe
from s2m3 import scenarios
from s2m3.testbed.replay import reference
from s2m3.testbed.replay.goals import Played, detections, judge
from s2m3.testbed.replay.report import Recording, Report, report
from s2m3.testbed.replay.run import nothing, play
from s2m3.testbed.replay.scenario import MODULE, STANDBY, WITHOUT, Scenario
from s2m3.testbed.replay.show import show, show_goals
from s2m3.testbed.replay.stage import Stage
from s2m3.testbed.site import SiteFailed

PIPED_WIDTH = 140  # columns, where there is no terminal to ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``s2m3 replay``."""
    known = ", ".join(scenarios.names())
    parser.add_argument(
        "scenario", nargs="*", metavar="SCENARIO", help=f"a YAML file, or one of the library ({known}); all when none"
    )
    parser.add_argument(
        "--broker", metavar="BROKER", help="instead of the scenario's: mosquitto, embedded, or mqtt://host:port"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document; a list when several are replayed")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the timeline; several: FILE-SCENARIO")
    parser.add_argument("--short", action="store_true", help="the same faults in less than half the time")
    parser.add_argument(
        "--goals",
        action="store_true",
        help="the whole library and the campaigns; prints the goals and what was measured",
    )
    parser.add_argument("--logs", metavar="DIR", type=Path, help="keep there what the processes print")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Replay; 0 when every scenario's expectations hold."""
    if arguments.plot:
        check_plot(arguments.plot)
    names = list(arguments.scenario or scenarios.names())
    campaigns = [str(path) for path in scenarios.goals()] if arguments.goals else []
    names += [name for name in campaigns if name not in names]
    console = Console(
        stderr=arguments.json,
        quiet=arguments.json and not sys.stderr.isatty(),
        width=None if sys.stdout.isatty() else PIPED_WIDTH,
    )
    reports: list[Report] = []
    played: dict[str, Played] = {}
    loaded = {name: load_scenario(name, arguments.broker) for name in names}
    for name, scenario, recording in replay_all(loaded, console, short=arguments.short, logs=arguments.logs):
        reports.append(report(recording, scenario.expect))
        played[name] = Played(scenario, reports[-1])
        console.print(f"  {'; '.join(reports[-1].why_not) or 'holds'}", markup=False)
        if arguments.plot and recording.outcomes:
            picture = _plot_file(arguments.plot, name, several=len(names) > 1)
            draw_to(picture, scenario, recording, reports[-1])
            console.print(f"  drawn: {picture}", markup=False)
    told = detections(list(played.values()))
    goals = judge(list(played.values()), {Path(name).stem: played[name] for name in campaigns}) if campaigns else []
    documents = [found.document() for found in reports]
    if arguments.json and goals:
        judged = {"goals": [goal.__dict__ for goal in goals], "detection": [each.__dict__ for each in told]}
        print(json.dumps({**judged, "replays": documents}))
    elif arguments.json:
        print(json.dumps(documents if len(documents) > 1 else documents[0]))
    show(console, reports)
    show_goals(console, goals, told)
    return 0 if all(found.ok for found in reports) and all(goal.holds for goal in goals) else 1


def load_scenario(name: str, broker: str | None = None) -> Scenario:
    """Read a scenario by its name in the library or by its path, and see that its tasks can be asked.

    Args:
        name: of the library, or a path.
        broker: instead of the scenario's.

    Raises:
        BadFile: neither, or the file is wrong, or what it does can't be done with this broker.
    """
    if name in scenarios.names():
        path = scenarios.path(name)
    elif Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        path = Path(name)
    else:
        known = ", ".join(scenarios.names())
        raise BadFile(file=name, problem="is neither in the library nor a file", fix=f"name a file, or one of: {known}")
    scenario = load_spec(path, Scenario)
    reference.requests_for(scenario.tasks)
    _check_names(path, scenario)
    if broker is None:
        return scenario
    try:
        return Scenario.model_validate(scenario.model_dump() | {"broker": broker})
    except ValidationError as error:
        field, problem = describe(error.errors()[0])
        fix = "leave this scenario out, or take another broker"
        raise BadFile(file=str(path), field=field, problem=f"with --broker {broker}: {problem}", fix=fix) from error


def _check_names(path: Path, scenario: Scenario) -> None:
    """See that every module and node that a fault names is one of the scenario's tasks'."""
    specs = reference.specs_of(scenario.tasks, scenario.redundancy)
    modules = {name for spec in specs for name in spec.modules}
    nodes = {name for spec in specs for name in spec.nodes}
    for position, fault in enumerate(scenario.faults):
        way, _, module = fault.target.partition(":")
        if f"{way}:" in {MODULE, STANDBY, WITHOUT} and module not in modules:
            problem, fix = f"{module} is no module of its tasks", f"use one of: {', '.join(sorted(modules))}"
            raise bad_field(path, ("faults", position, fault.kind), problem=problem, fix=fix)
        if fault.when and fault.when.node and fault.when.node not in nodes:
            problem, fix = f"{fault.when.node} is no node of its tasks", f"use one of: {', '.join(sorted(nodes))}"
            raise bad_field(path, ("faults", position, "when", "node"), problem=problem, fix=fix)


def replay_all(
    loaded: Mapping[str, Scenario], console: Console, *, short: bool, logs: Path | None
) -> Iterator[tuple[str, Scenario, Recording]]:
    """Play these scenarios one after the other; short ones share the processes of a site where they fit.

    A scenario whose site doesn't come up is recorded with that, and the next one gets a new site.
    """
    with ExitStack() as stack:
        stage: Stage | None = None
        for name, written in loaded.items():
            scenario = written.shortened() if short else written
            try:
                if stage is None or not short or not stage.fits(scenario):
                    stack.close()
                    console.print(f"starting a site ({scenario.broker}, {len(scenario.fleet)} agents) ...")
                    stage = stack.enter_context(Stage(scenario, _logs_of(logs, name)))
                console.print(f"replaying: {scenario.name} ...")
                recording = play(scenario, stage)
            except SiteFailed as error:
                stage = None
                recording = nothing(scenario, str(error))
            yield name, scenario, recording


def check_plot(file: Path) -> None:
    """See that a timeline can be drawn there, before anything is replayed for it.

    Raises:
        BadFile: matplotlib is missing, or the file can't be a picture.
    """
    fix = "name a .png, .svg or .pdf in a folder that is there"
    if file.suffix not in {".png", ".svg", ".pdf"}:
        raise BadFile(file=str(file), problem="is no name of a picture", fix=fix)
    if not file.parent.is_dir():
        raise BadFile(file=str(file), problem="is in no folder that is there", fix=fix)
    if importlib.util.find_spec("matplotlib") is None:
        raise BadFile(file="--plot", problem="matplotlib is missing", fix="install the [bench] extra")


def draw_to(file: Path, scenario: Scenario, recording: Recording, found: Report) -> None:
    """Draw the timeline.

    Raises:
        BadFile: the file can't be written.
    """
    from s2m3.testbed.replay.plot import draw  # noqa: PLC0415 - an extra: only who draws needs it

    try:
        draw(file, scenario, recording, found)
    except OSError as error:
        raise BadFile(file=str(file), problem=str(error), fix="name a file that can be written") from error


def _plot_file(file: Path, name: str, *, several: bool) -> Path:
    return file.with_name(f"{file.stem}-{Path(name).stem}{file.suffix}") if several else file


def _logs_of(logs: Path | None, name: str) -> Path | None:
    if logs is None:
        return None
    directory = logs / Path(name).stem
    directory.mkdir(parents=True, exist_ok=True)
    return directory
