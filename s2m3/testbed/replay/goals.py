"""The project's goals for failures against what replays measured. Pure.

Owns the goals: each with its limit, the samples that count for it, and whether it holds. A goal without a sample does
not hold: nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from broker.protocol.errors import ErrorCode
from s2m3.testbed.percentiles import percentile
from s2m3.testbed.replay.recording import FaultReport, Report
from s2m3.testbed.replay.scenario import ORCHESTRATOR, Scenario
from s2m3.testbed.replay.timeline import Signal

WILL_S = 0.150
STANDBY_S = 0.400
LOADING_S = 0.300  # beyond detection and loading
HUNG_INTERVALS = 3.5
TAIL = 95  # percent


@dataclass(frozen=True)
class Played:
    """One replay: what was asked for, and what came out."""

    scenario: Scenario
    report: Report


@dataclass(frozen=True)
class Goal:
    """One goal and what was measured."""

    name: str
    wanted: str
    measured: str
    samples: int
    holds: bool


@dataclass(frozen=True)
class Detection:
    """How long one signal took to tell that a device was lost."""

    signal: Signal
    samples: int
    p50_s: float | None
    p95_s: float | None
    longest_s: float | None
    longest_intervals: float  # of the heartbeat


def detections(played: Sequence[Played]) -> list[Detection]:
    """The times that each signal took, over all devices that any replay lost."""
    found: list[Detection] = []
    for signal in get_args(Signal):
        told = [
            (fault.detected_after_s, fault.detected_after_s / each.scenario.heartbeat_interval_s)
            for each in played
            for fault in each.report.faults
            if fault.detected_by == signal and fault.target != ORCHESTRATOR and fault.detected_after_s is not None
        ]
        seconds = [after_s for after_s, _ in told]
        intervals = max((count for _, count in told), default=0.0)
        p50_s, p95_s, longest_s = (percentile(seconds, share) for share in (50, TAIL, 100))
        found.append(Detection(signal, len(told), p50_s, p95_s, longest_s, intervals))
    return found


def judge(played: Sequence[Played], campaigns: Mapping[str, Played]) -> list[Goal]:
    """Every goal.

    Args:
        played: all replays, the campaigns among them.
        campaigns: those that repeat one fault, by the name of their file.
    """
    faults = [fault for each in played for fault in each.report.faults]
    kills = [fault for fault in faults if fault.kind == "kill"]
    deaths = [fault for fault in kills if fault.target != ORCHESTRATOR]
    covered = [fault for fault in kills if fault.stood_by is True]
    hindered = [fault for each in played if _is_hindered(each.report) for fault in each.report.faults]
    loaded = [fault for fault in kills if fault.stood_by is False and fault.load_s and fault not in hindered]
    restarts = [fault for fault in faults if fault.kind == "restart"]
    return [
        _none("requests lost, in every scenario", [each.report.lost for each in played]),
        _none("answers that differ from the unsplit model's", [each.report.wrong for each in played]),
        _tail("a device's death detected by its will", WILL_S, [fault.detected_after_s for fault in deaths]),
        _tail(
            "first answer after a death, with a standby", STANDBY_S, [fault.first_answer_after_s for fault in covered]
        ),
        _without_standby(loaded),
        _hung(campaigns),
        _none("moves after an orchestrator's or the broker's restart", [fault.moves for fault in restarts]),
    ]


def _is_hindered(found: Report) -> bool:
    """Whether a device refused a module, or a task had no room on any device until one came back."""
    return bool(found.refusals or found.errors.get(ErrorCode.NO_ROUTE))


def _none(name: str, counts: Sequence[int]) -> Goal:
    return Goal(name, "0", str(sum(counts)), len(counts), bool(counts) and not any(counts))


def _tail(name: str, limit_s: float, seconds: Sequence[float | None], wanted: str = "") -> Goal:
    """A 95th percentile below a limit; what never happened counts as endless."""
    counted = [math.inf if value is None else value for value in seconds]
    found = percentile(counted, TAIL)
    text = "not measured" if found is None else f"p{TAIL} {1000 * found:.0f} ms"
    return Goal(
        name, wanted or f"p{TAIL} < {1000 * limit_s:.0f} ms", text, len(counted), found is not None and found < limit_s
    )


def _without_standby(loaded: Sequence[FaultReport]) -> Goal:
    """The rest of the time, when detection and loading are taken off, over the deaths that made a module load.

    Replays in which a device refused it first, or none had room for it, don't count: there is more to wait for than one
    loading.
    """
    wanted = f"p{TAIL} < detection + load + {1000 * LOADING_S:.0f} ms"
    rests = [
        None
        if fault.first_answer_after_s is None or fault.detected_after_s is None
        else fault.first_answer_after_s - fault.detected_after_s - (fault.load_s or 0.0)
        for fault in loaded
    ]
    goal = _tail("first answer after a death, without a standby", LOADING_S, rests, wanted)
    return replace(goal, measured=f"detection + load + {goal.measured}" if rests else goal.measured)


def _hung(campaigns: Mapping[str, Played]) -> Goal:
    played = [campaigns[campaign] for campaign in ("hung", "hung-idle") if campaign in campaigns]
    found = [
        math.inf if fault.detected_after_s is None else fault.detected_after_s / each.scenario.heartbeat_interval_s
        for each in played
        for fault in each.report.faults
        if fault.kind == "pause"
    ]
    text = f"longest {max(found):.2f} intervals" if found else "not measured"
    holds = bool(found) and max(found) <= HUNG_INTERVALS
    wanted = f"all within {HUNG_INTERVALS:g} heartbeat intervals"
    return Goal("a hung device detected", wanted, text, len(found), holds)
