"""Random faults for a long time: no request may be lost, and no process may grow.

Owns the choice of faults (drawn with a seed, so that a run can be repeated), the allowed share of errors, and the
sampling of processes. ``flatness`` judges the samples. Faults that end a process come only in the first part of the
time, so that every process has one life that is long enough to show growth. Shorter lives are not judged.
"""

from __future__ import annotations

import contextlib
import csv
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from broker.protocol.errors import ErrorCode, TransportError
from s2m3.bench.flatness import Sample, Verdict, judge
from s2m3.testbed.replay.recording import Recording, Report
from s2m3.testbed.replay.report import report
from s2m3.testbed.replay.run import play
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.replay.stage import Stage

DEATHS_UNTIL = 0.4  # of the time
LIFE_SHARE = 1 / 3  # of the time: the shortest life that is judged
GAP_S = (4.0, 12.0)  # between the end of a fault and the next one
RECOVERY_S = 12.0  # until a killed device's agent runs again, with torch
SAMPLE_S = 2.0
FLEET: tuple[dict[str, Any], ...] = (
    {"id": "gw-a", "memory": "64MiB"},
    {"id": "gw-b", "memory": "180MiB", "speed": 0.8},
    {"id": "gw-c", "memory": "180MiB", "speed": 0.8},
)
SHED = frozenset({ErrorCode.NO_ROUTE, ErrorCode.OVERLOADED})  # the site refuses at once
SHED_SHARE = 0.01  # of all requests may end so; none may end in another error
DEADLY = ("kill", "restart broker", "restart orchestrator")
BENIGN = ("pause", "partition", "drop", "slow", "hostile", "drain")


@dataclass(frozen=True)
class Soaked:
    """The results of a soak."""

    recording: Recording
    report: Report  # with the verdict on errors
    errors: Sequence[ErrorVerdict]
    processes: Sequence[Verdict]
    unjudged: Sequence[str]  # processes without a life that was long enough

    @property
    def ok(self) -> bool:
        """Whether no answer was lost or wrong, few requests ended in errors, and every process stayed flat."""
        return self.report.ok and not self.unjudged and all(verdict.flat for verdict in self.processes)


def soak(scenario: Scenario, logs: Path | None) -> Soaked:
    """Plays a scenario of ``draw_scenario`` while the processes are sampled; keeps their logs and the samples in logs.

    Raises:
        SiteFailed: the site didn't start.
    """
    with Stage(scenario, logs) as stage, sampled(stage) as samples:
        recording = play(scenario, stage)
        processes = set(_pids(stage))
    lives = [(f"{name} ({pid})", life) for (name, pid), life in sorted(samples.items())]
    if logs:
        write_samples(logs / "samples.csv", lives)
    found = report(recording, scenario.expect)
    errors = judge_errors(found)
    least_s = LIFE_SHARE * scenario.load.duration_s
    verdicts = [verdict for name, life in lives if (verdict := judge(name, life, least_s))]
    unjudged = sorted(processes - {verdict.process.split()[0] for verdict in verdicts})
    return Soaked(recording, with_errors(found, errors), errors, verdicts, unjudged)


def draw_scenario(duration_s: float, seed: int) -> Scenario:
    """A scenario of random faults, each of which ends before the next begins."""
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    faults: list[dict[str, Any]] = []
    at_s = GAP_S[1]
    while at_s < duration_s - 2 * RECOVERY_S:
        kinds = [*BENIGN, *(DEADLY if at_s < DEATHS_UNTIL * duration_s else ())]
        drawn, lasts_s = _fault(chance.choice(kinds), at_s, chance)
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


def _fault(kind: str, at_s: float, chance: random.Random) -> tuple[list[dict[str, Any]], float]:
    """One fault, with the action that ends it if it needs one; and its length in seconds."""
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
    """The number of requests that ended in some errors, and the number allowed."""

    errors: str
    count: int
    most: int
    allowed: str

    @property
    def holds(self) -> bool:
        """Whether the number is allowed."""
        return self.count <= self.most


def judge_errors(found: Report) -> list[ErrorVerdict]:
    """Verdicts on refusals, after which a sensor can try again, and on all other errors."""
    shed = sum(count for code, count in found.errors.items() if code in SHED)
    most = int(SHED_SHARE * found.sent)
    return [
        ErrorVerdict(" or ".join(sorted(SHED)), shed, most, f"{100 * SHED_SHARE:g} % of {found.sent}"),
        ErrorVerdict("any other error", sum(found.errors.values()) - shed, 0, "0"),
    ]


def with_errors(found: Report, verdicts: Sequence[ErrorVerdict]) -> Report:
    """The report with the verdicts on its errors."""
    broken = [f"{each.errors}: {each.count}, expected at most {each.allowed}" for each in verdicts if not each.holds]
    return replace(found, ok=found.ok and not broken, why_not=[*found.why_not, *broken])


@contextlib.contextmanager
def sampled(stage: Stage) -> Iterator[dict[tuple[str, int], list[Sample]]]:
    """The samples of a stage's processes, by name and process id, taken at an interval while the block runs."""
    lives: dict[tuple[str, int], list[Sample]] = {}
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(SAMPLE_S):
            heartbeats = dict(stage.observer.heartbeats)
            for name, pid in _pids(stage).items():
                held_bytes = heartbeats[name].memory_used_bytes if name in heartbeats else 0
                if (taken := sample(pid, held_bytes)) is not None:
                    lives.setdefault((name, pid), []).append(taken)

    thread = threading.Thread(target=run, name="sampler", daemon=True)
    thread.start()
    try:
        yield lives
    finally:
        stopping.set()
        thread.join()


def write_samples(file: Path, lives: Sequence[tuple[str, Sequence[Sample]]]) -> None:
    """Writes a line for every sample, to show where a process grew."""
    with file.open("w", newline="", encoding="utf-8") as target:
        rows = csv.writer(target)
        rows.writerow(["process", *Sample.__dataclass_fields__])
        rows.writerows([name, *astuple(sample)] for name, life in lives for sample in life)


def sample(pid: int, held_bytes: int) -> Sample | None:
    """A process's memory, threads and files now; None if it has ended."""
    import psutil  # noqa: PLC0415 - an extra

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
        with contextlib.suppress(KeyError):  # it was killed since
            found[name] = site.pid(name)
    with contextlib.suppress(TransportError):  # the broker restarts at this moment
        if (broker := site.broker_pid) is not None:
            found["broker"] = broker
    return found
