"""A replay's report for people: one table of counts, one of the faults."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from s2m3.testbed.replay.goals import Detection, Goal
from s2m3.testbed.replay.report import Report


def show(console: Console, reports: Sequence[Report]) -> None:
    """Print each replay's faults, and all replays' counts."""
    for found in reports:
        _show_faults(console, found)
    table = Table(title="replays" if len(reports) > 1 else None, title_justify="left")
    for name in ("scenario", "sent", "answered", "errors", "lost", "wrong", "duplicates", "moves", "p50 ms", "p95 ms"):
        table.add_column(name, justify="left" if name == "scenario" else "right", overflow="fold")
    table.add_column("holds")
    for found in reports:
        errors = ", ".join(f"{code} {count}" for code, count in found.errors.items()) or "0"
        counts = (found.sent, found.answered, errors, found.lost, found.wrong, found.duplicates, found.moves)
        table.add_row(
            found.name,
            *(str(count) for count in counts),
            _ms(found.latency_s["p50"]),
            _ms(found.latency_s["p95"]),
            "yes" if found.ok else "[bold]NO[/bold]",
        )
    console.print(table)
    for found in reports:
        for sentence in found.why_not:
            console.print(f"{found.name}: {sentence}", markup=False)


def show_goals(console: Console, goals: Sequence[Goal], detections: Sequence[Detection]) -> None:
    """Print the goals against what was measured, and how long each signal took to tell of a lost device."""
    if not goals:
        return
    table = Table(title="goals", title_justify="left")
    for name in ("goal", "wanted", "measured", "samples", "holds"):
        table.add_column(name, justify="right" if name == "samples" else "left")
    for goal in goals:
        table.add_row(
            goal.name, goal.wanted, goal.measured, str(goal.samples), "yes" if goal.holds else "[bold]NO[/bold]"
        )
    console.print(table)

    table = Table(title="lost devices detected, by the signal that told", title_justify="left")
    for name in ("signal", "samples", "p50 ms", "p95 ms", "longest ms", "longest, in heartbeat intervals"):
        table.add_column(name, justify="left" if name == "signal" else "right")
    for found in detections:
        figures = (_ms(found.p50_s), _ms(found.p95_s), _ms(found.longest_s), f"{found.longest_intervals:.2f}")
        table.add_row(found.signal, str(found.samples), *figures)
    console.print(table)


def _show_faults(console: Console, found: Report) -> None:
    table = Table(title=found.name, title_justify="left")
    for name in (
        "at s",
        "fault",
        "target",
        "in flight",
        "detected after s",
        "by",
        "replaced after s",
        "first answer after s",
    ):
        table.add_column(name, justify="left" if name in {"fault", "target", "by"} else "right")
    table.add_column("moves", justify="right")
    for fault in found.faults:
        table.add_row(
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
        console.print(table)


def _s(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.0f}"
