"""``s2m3 soak``: faults at random for half an hour; nothing may be lost, and no process may grow.

Owns which faults come when (drawn with a seed, so that a run can be repeated), how many errors are too many, and the
sampling of processes. Whether they stayed flat is decided in ``flatness``. Faults that end a process come in the first
part of the time only: so every process has one life that is long enough to see it grow, and shorter ones aren't judged.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from broker.protocol.errors import BadFile, ErrorCode, TransportError
from s2m3.bench.flatness import Sample, Verdict, judge
from s2m3.cli.replay import PIPED_WIDTH, check_plot, draw_to
from s2m3.testbed.replay.report import Report, report
from s2m3.testbed.replay.run import play
from s2m3.testbed.replay.scenario import KINDS, Scenario
from s2m3.testbed.replay.show import show
from s2m3.testbed.replay.stage import Stage

DEATHS_UNTIL = 0.4  # of the time
LIFE_SHARE = 1 / 3  # of the time: a life that is judged lasts at least as long
GAP_S = (4.0, 12.0)  # between the end of a fault and the next one
RECOVERY_S = 12.0  # for a killed device's agent to be up again, with torch
SAMPLE_S = 2.0
FLEET: tuple[dict[str, Any], ...] = (
    {"id": "gw-a", "memory": "64MiB"},
    {"id": "gw-b", "memory": "180MiB", "speed": 0.8},
    {"id": "gw-c", "memory": "180MiB", "speed": 0.8},
)
SHED = frozenset({ErrorCode.NO_ROUTE, ErrorCode.OVERLOADED})  # the site says at once that it can't serve now
SHED_SHARE = 0.01  # of the requests that may end so; none may end in another error
DEADLY = ("kill", "restart broker", "restart orchestrator")
BENIGN = ("pause", "partition", "drop", "slow", "hostile", "drain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``s2m3 soak``."""
    parser.add_argument("--minutes", type=_minutes, default=30.0, metavar="M", help="of load, 1 to 1440; default 30")
    parser.add_argument("--seed", type=int, help="of faults and load; a new one, which is printed, when not given")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the timeline")
    parser.add_argument("--logs", metavar="DIR", type=Path, help="keep there what the processes print, and the samples")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Soak; 0 when nothing was lost or wrong, hardly anything erred and every process stayed flat."""
    if importlib.util.find_spec("psutil") is None:
        raise BadFile(file="s2m3 soak", problem="psutil is missing", fix="install the [bench] extra")
    if arguments.plot:
        check_plot(arguments.plot)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    console = Console(stderr=arguments.json, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    scenario = draw_scenario(arguments.minutes * 60, seed)
    console.print(f"seed {seed}: {len(scenario.faults)} faults in {arguments.minutes:g} minutes")
    if arguments.logs:
        arguments.logs.mkdir(parents=True, exist_ok=True)
    with Stage(scenario, arguments.logs) as stage, Sampler(lambda: _pids(stage), lambda: _held(stage)) as sampler:
        recording = play(scenario, stage)
        processes = set(_pids(stage))
    found = report(recording, scenario.expect)
    errors = judge_errors(found)
    found = with_errors(found, errors)
    if arguments.logs:
        write_samples(arguments.logs / "samples.csv", sampler.lives())
    least_s = LIFE_SHARE * scenario.load.duration_s
    verdicts = [verdict for name, life in sampler.lives() if (verdict := judge(name, life, least_s))]
    unjudged = sorted(processes - {verdict.process.split()[0] for verdict in verdicts})
    ok = found.ok and not unjudged and all(verdict.flat for verdict in verdicts)
    if arguments.plot:
        draw_to(arguments.plot, scenario, recording, found)
    if arguments.json:
        print(json.dumps({**found.document(), "processes": [verdict.__dict__ for verdict in verdicts], "ok": ok}))
    show(console, [found])
    _show_errors(console, errors)
    _show(console, verdicts)
    if unjudged:
        console.print(f"no life of {', '.join(unjudged)} was long enough to judge: soak for longer")
    return 0 if ok else 1


def draw_scenario(duration_s: float, seed: int) -> Scenario:
    """Faults one after the other, each over before the next begins."""
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    faults: list[dict[str, Any]] = []
    at_s = GAP_S[1]
    while at_s < duration_s - 2 * RECOVERY_S:
        kinds = [*BENIGN, *(DEADLY if at_s < DEATHS_UNTIL * duration_s else ())]
        drawn, lasts_s = _fault(chance.choice([kind for kind in kinds if _known(kind)]), at_s, chance)
        faults += drawn
        at_s += lasts_s + chance.uniform(*GAP_S)
    return Scenario.model_validate(
        {
            "name": f"{duration_s / 60:g} minutes of faults at random",
            "seed": seed,
            "fleet": FLEET,
            "tasks": ["pocket/classify", "pocket/zero-shot", "pocket/vqa"],
            "load": {"rate_per_s": 5, "duration_s": duration_s, "deadline_s": 15},
            "faults": faults,
        }
    )


def _known(kind: str) -> bool:
    return kind.split(maxsplit=1)[0] in {*KINDS, "drop"}


def _fault(kind: str, at_s: float, chance: random.Random) -> tuple[list[dict[str, Any]], float]:
    """One fault and, where it needs one, its end; and how long it lasts."""
    device = chance.choice(FLEET)["id"]
    for_s = round(chance.uniform(1, 8), 2)
    gentleness = chance.choice(({}, {"gently": True})) if kind == "restart broker" else {}
    parts: dict[str, list[dict[str, Any]]] = {
        "kill": [{"kill": device}, {"start": device}],
        "drain": [{"drain": device}, {"undrain": device}],
        "hostile": [{"hostile": device, "messages": 300}],
        "slow": [{"slow": device, "factor": 5, "for_s": for_s}],
        "drop": [{"partition": device, "for_s": for_s, "disconnect": True}],
        "partition": [{"partition": device, "for_s": for_s}],
        "pause": [{"pause": device, "for_s": for_s}],
        "restart broker": [{"restart": "broker", "for_s": min(3.0, for_s)} | gentleness],
        "restart orchestrator": [{"restart": "orchestrator", "for_s": min(3.0, for_s)}],
    }
    times = (at_s, at_s + for_s)
    drawn = [{"at_s": when_s, **part} for when_s, part in zip(times, parts[kind], strict=False)]
    return drawn, for_s + (RECOVERY_S if kind in DEADLY else 0.0)


@dataclass(frozen=True)
class ErrorVerdict:
    """How many requests ended in some errors, and how many may."""

    errors: str
    count: int
    most: int
    allowed: str

    @property
    def holds(self) -> bool:
        """Whether they are few enough."""
        return self.count <= self.most


def judge_errors(found: Report) -> list[ErrorVerdict]:
    """Those that tell a sensor at once to come again, and all others: a deadline missed, a module that failed."""
    shed = sum(count for code, count in found.errors.items() if code in SHED)
    most = int(SHED_SHARE * found.sent)
    return [
        ErrorVerdict(" or ".join(sorted(SHED)), shed, most, f"{100 * SHED_SHARE:g} % of {found.sent}"),
        ErrorVerdict("any other error", sum(found.errors.values()) - shed, 0, "0"),
    ]


def with_errors(found: Report, verdicts: Sequence[ErrorVerdict]) -> Report:
    """The report, judged by its errors too."""
    broken = [f"{each.errors}: {each.count}, expected at most {each.allowed}" for each in verdicts if not each.holds]
    return replace(found, ok=found.ok and not broken, why_not=[*found.why_not, *broken])


class Sampler:
    """Looks at processes now and then; a context manager.

    Args:
        pids: the processes to look at now, by name.
        held: what those that hold modules say that these occupy now, in bytes, by name.
        every_s: how often.
    """

    def __init__(
        self,
        pids: Callable[[], dict[str, int]],
        held: Callable[[], dict[str, int]] = dict,
        every_s: float = SAMPLE_S,
    ) -> None:
        self._pids = pids
        self._held = held
        self._every_s = every_s
        self._samples: dict[tuple[str, int], list[Sample]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()

    def lives(self) -> list[tuple[str, list[Sample]]]:
        """Each process's name and samples, one after the other."""
        return [(f"{name} ({pid})", life) for (name, pid), life in sorted(self._samples.items())]

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            held = self._held()
            for name, pid in self._pids().items():
                if (sample := look_at(pid, held.get(name, 0))) is not None:
                    self._samples.setdefault((name, pid), []).append(sample)


def write_samples(file: Path, lives: Sequence[tuple[str, Sequence[Sample]]]) -> None:
    """Write every sample as a line, for who wants to see where something grew."""
    with file.open("w", newline="", encoding="utf-8") as target:
        rows = csv.writer(target)
        rows.writerow(["process", *Sample.__dataclass_fields__])
        rows.writerows([name, *astuple(sample)] for name, life in lives for sample in life)


def look_at(pid: int, held_bytes: int = 0) -> Sample | None:
    """What a process uses now; None when it is gone."""
    import psutil  # noqa: PLC0415 - an extra, and this module is imported by every command

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            memory = process.memory_info().rss
            return Sample(time.monotonic(), memory, process.num_threads(), process.num_fds(), held_bytes)
    except psutil.Error:
        return None


def _pids(stage: Stage) -> dict[str, int]:
    site, found = stage.site, dict[str, int]()
    for name in site.running:
        with contextlib.suppress(KeyError):  # killed meanwhile
            found[name] = site.pid(name)
    with contextlib.suppress(TransportError):  # it is being restarted
        if (broker := site.broker_pid) is not None:
            found["broker"] = broker
    return found


def _held(stage: Stage) -> dict[str, int]:
    return {name: beat.memory_used_bytes for name, beat in dict(stage.observer.heartbeats).items()}


def _show_errors(console: Console, verdicts: Sequence[ErrorVerdict]) -> None:
    table = Table(title="errors", title_justify="left")
    for name in ("error", "requests", "at most", "holds"):
        table.add_column(name, justify="left" if name == "error" else "right")
    for each in verdicts:
        table.add_row(each.errors, str(each.count), each.allowed, "yes" if each.holds else "[bold]NO[/bold]")
    console.print(table)


def _show(console: Console, verdicts: list[Verdict]) -> None:
    table = Table(title="processes that lived long enough to say", title_justify="left")
    for name in ("process", "seconds", "MB", "growth MB", "with the same modules MB", "threads", "files", "flat"):
        table.add_column(name, justify="left" if name == "process" else "right")
    for verdict in verdicts:
        table.add_row(
            verdict.process,
            f"{verdict.seconds:.0f}",
            f"{verdict.memory_bytes / 1e6:.1f}",
            f"{verdict.resident_growth_bytes / 1e6:+.2f}",
            f"{verdict.growth_bytes / 1e6:+.2f}",
            f"{verdict.threads[0]:g} > {verdict.threads[1]:g}",
            f"{verdict.files[0]:g} > {verdict.files[1]:g}",
            "yes" if verdict.flat else "[bold]NO[/bold]",
        )
    console.print(table)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 1 <= minutes <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text!r} is no length: use 1 to 1440 minutes")
    return minutes
