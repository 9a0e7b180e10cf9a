"""A replay as a picture: requests by outcome and latency, where which module was, and the faults.

Owns the drawing only; what is drawn comes from the recording. Needs matplotlib (extra ``bench``), without a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from broker.protocol.sizes import show_count
from s2m3.testbed.replay.recording import Outcome, Recording, Report
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.replay.timeline import Band, bands

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SILENT_INTERVALS = 3.25  # without a heartbeat: what a device holds is no longer known
LOOKS = {  # of an ending: colour and mark
    "right": ("tab:blue", "o"),
    "error": ("tab:orange", "s"),
    "wrong": ("tab:red", "D"),
    "lost": ("black", "x"),
}
MODULE_COLOURS = "tab10"
ROW = 0.8  # of a device's lane, shared by its modules
CLOSE = 0.08  # of the width: faults nearer to each other would cover each other's names
ROOM = 4.0  # above the slowest request
FAULT_COLOUR = "tab:red"


def draw(file: Path, scenario: Scenario, recording: Recording, found: Report) -> None:
    """Draw the timeline into a file; its suffix says the format.

    Raises:
        OSError: the file can't be written.
        ValueError: there is no such format.
    """
    lanes = 0.5 * len(scenario.fleet)
    figure = Figure(figsize=(12, 4.5 + lanes), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 0.6 + lanes])
    _draw_requests(above, recording.outcomes, recording.began_s)
    shown = [
        band
        for band in bands(recording.sightings, SILENT_INTERVALS * scenario.heartbeat_interval_s, recording.ended_s)
        if band.to_s > recording.began_s
    ]
    _draw_modules(below, shown, [device.id for device in scenario.fleet], recording.began_s)
    for axes in (above, below):
        for fault in found.faults:
            axes.axvline(fault.at_s, color=FAULT_COLOUR, linewidth=1, linestyle="--", zorder=1)
    last_s = max((outcome.ended_s for outcome in recording.outcomes), default=recording.ended_s)
    _name_faults(above, found, CLOSE * (last_s - recording.began_s))
    below.set_xlim(-0.02 * (last_s - recording.began_s), (last_s - recording.began_s) * 1.02)
    errors = sum(found.errors.values())
    sent, failed = show_count(found.sent, "request"), show_count(errors, "error")
    counts = f"{sent}: {found.answered} answered, {failed}, {found.lost} lost, {found.wrong} wrong"
    figure.suptitle(f"{scenario.name}\n{counts}", fontsize=11)
    figure.savefig(file, dpi=110)


def _draw_requests(axes: Axes, outcomes: Sequence[Outcome], began_s: float) -> None:
    for ending, (colour, mark) in LOOKS.items():
        of_it = [outcome for outcome in outcomes if outcome.ending == ending]
        axes.scatter(
            [outcome.sent_s - began_s for outcome in of_it],
            [1000 * outcome.latency_s for outcome in of_it],
            c=colour,
            marker=mark,
            s=22,
            label=f"{ending} ({len(of_it)})",
            zorder=3,
        )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * ROOM)  # for the legend and the faults' names
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("milliseconds to its end")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="upper right", fontsize=8, ncols=len(LOOKS))


def _name_faults(axes: Axes, found: Report, close_s: float) -> None:
    """Write each fault beside its line; those that would cover each other below each other."""
    top = axes.get_xaxis_transform()
    last_s, depth = -close_s, 0
    for fault in found.faults:
        depth = depth + 1 if fault.at_s - last_s < close_s else 0
        last_s = fault.at_s
        axes.text(
            fault.at_s,
            0.88 - 0.06 * (depth % 6),
            f" {fault.kind} {fault.target}",
            transform=top,
            color=FAULT_COLOUR,
            fontsize=8,
            verticalalignment="top",
        )


def _draw_modules(axes: Axes, shown: Sequence[Band], devices: Sequence[str], began_s: float) -> None:
    modules = sorted({band.module for band in shown})
    colours: Any = mpl.colormaps[MODULE_COLOURS]
    height = ROW / max(1, len(modules))
    for band in shown:
        row = modules.index(band.module)
        standby = band.role == "standby"
        axes.broken_barh(
            [(band.from_s - began_s, band.to_s - band.from_s)],
            (devices.index(band.device) + row * height, height * 0.9),
            facecolors=colours(row),
            alpha=0.35 if standby else 1.0,
            hatch="////" if standby else None,
            zorder=2,
        )
    axes.set_yticks([position + ROW / 2 for position in range(len(devices))], devices)
    axes.set_ylim(len(devices) - (1 - ROW) / 2, -(1 - ROW) / 2)
    axes.set_xlabel("seconds since the first request")
    keys: list[Patch | Line2D] = [Patch(facecolor=colours(row), label=name) for row, name in enumerate(modules)]
    if any(band.role == "standby" for band in shown):
        keys.append(Patch(facecolor="grey", alpha=0.35, hatch="////", label="standby"))
    axes.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.35), fontsize=8, ncols=max(1, len(keys)))
