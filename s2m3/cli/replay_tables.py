"""The tables of ``s2m3 replay`` and ``s2m3 soak``: counts, faults, goals, detections."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from s2m3.cli.output import table, yes_or_no
from s2m3.testbed.replay.goals import Detection, Goal
from s2m3.testbed.replay.report import Report


def show_replays(printed: Console, reports: Sequence[Report]) -> None:
    """Print each replay's faults, and all replays' counts."""
    for found in reports:
        _show_faults(printed, found)
    counts = ("sent", "answered", "errors", "lost", "wrong", "duplicates", "moves", "p50 ms", "p95 ms")
    made = table("scenario", *counts, "holds", title="replays" if len(reports) > 1 else None, right=counts)
    for found in reports:
        errors = ", ".join(f"{code} {count}" for code, count in found.errors.items()) or "0"
        made.add_row(
            found.name,
            *(str(each) for each in (found.sent, found.answered, errors, found.lost, found.wrong)),
            *(str(each) for each in (found.duplicates, found.moves)),
            _ms(found.latency_s["p50"]),
            _ms(found.latency_s["p95"]),
            yes_or_no(holds=found.ok),
        )
    printed.print(made)
    for found in reports:
        for sentence in found.why_not:
            printed.print(f"{found.name}: {sentence}", markup=False)


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
    right = ("at s", "in flight", "detected after s", "replaced after s", "first answer after s", "moves")
    made = table(
        *("at s", "fault", "target", "in flight", "detected after s", "by"),
        *("replaced after s", "first answer after s", "moves"),
        title=found.name,
        right=right,
    )
    for fault in found.faults:
        made.add_row(
            f"{fault.at_s:.2f}",
            fault.kind,
            fault.target,
            str(fault.in_flight),
            _s(fault.detected_after_s),
            fault.detected_by or "",
            _s(fault.replaced_after_s),
            _s(fault.first_answer_after_s),
            str(fault.moves),
        )
    if found.faults:
        printed.print(made)


def _s(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.0f}"
