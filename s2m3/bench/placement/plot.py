"""Draws what ``compare`` found: how far from the optimum, and how long it took. Owns only the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broker.protocol.errors import S2M3Error
from s2m3.bench.placement.compare import EQUAL, Result
from s2m3.bench.placement.solve import SOLVERS

COLOURS = {"greedy": "#d1495b", "refined": "#00798c", "exact": "#30343f"}
LEAST_GAP = 1e-5  # smaller ones, and none at all, are drawn at the left edge


def plot(results: Sequence[Result], file: Path) -> None:
    """Write the picture; the ending of the name decides the format.

    Raises:
        S2M3Error: matplotlib isn't installed, or the file can't be written.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise S2M3Error("the plot needs matplotlib, which isn't installed: pip install 's2m3[bench]'") from error
    with mpl.rc_context({"svg.hashsalt": "s2m3", "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        quality, effort = figure.subplots(1, 2)
        shares = [(position + 1) / len(results) for position in range(len(results))]
        for solver in SOLVERS:
            outcomes = [result.solvers[solver] for result in results]
            gaps = sorted(
                max(LEAST_GAP, outcome.gap if outcome.gap > EQUAL else 0.0)
                for outcome in outcomes
                if outcome.gap is not None
            )
            optimal = sum(bool(outcome.optimal) for outcome in outcomes)
            label = f"{solver}: {optimal} of {len(results)} optimal"
            quality.step([*gaps, 10], [*shares[: len(gaps)], len(gaps) / len(results)], "-", where="post", label=label)
            quality.lines[-1].set_color(COLOURS[solver])
            times = sorted(outcome.solve_s for outcome in outcomes)
            effort.plot(times, shares, color=COLOURS[solver], label=solver)
        quality.set(xscale="log", xlabel="above the optimum by at most (share)", ylabel="share of the instances")
        quality.set(ylim=(0, 1.03), xlim=(LEAST_GAP, 10), title="how good the plans are")
        effort.set(
            xscale="log", xlabel="solved within (s of one processor)", ylim=(0, 1.03), title="how long they take"
        )
        for axes in (quality, effort):
            axes.grid(alpha=0.3)
            axes.legend(loc="lower right")
        try:
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            raise S2M3Error(f"{file} can't be written: {error}") from error
