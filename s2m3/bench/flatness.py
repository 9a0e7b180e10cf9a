"""A test of growth: a slope test on samples of a process's memory, threads and open files. Pure.

Owns the criterion. The first quarter of a process's samples is left out, for caches and allocators fill up then.
Resident memory is flat if its slope over the time sampled means less than 3 % of its median, or less than 4 MiB. The
slope is that of Theil (1950) and Sen (1968): the median of the slopes between pairs of samples, which a few outliers
don't move. Modules come and go, each with the working memory of its passes. So only samples are paired in which the
process reports modules of the same size. Threads and open files are flat if the median of the last third is not above
that of the first third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP_SHARE = 0.25  # of a process's samples
FLAT_SHARE = 0.03
FLAT_BYTES = 4 * 2**20
LEAST_SAMPLES = 20  # fewer show nothing
MOST_SAMPLES = 500  # pairs of these are compared
SAME_BYTES = 4 * 2**20  # modules whose sizes differ by less are the same, measured again


@dataclass(frozen=True)
class Sample:
    """A process's memory, threads and files at one moment."""

    at_s: float
    memory_bytes: int  # resident
    threads: int
    files: int  # open file descriptors
    held_bytes: int = 0  # an agent's modules, as it reports them


@dataclass(frozen=True)
class Verdict:
    """Whether one process stayed flat, and the numbers behind it."""

    process: str
    seconds: float  # sampled, without the warm-up
    memory_bytes: int  # resident, median
    resident_growth_bytes: float  # slope times seconds
    growth_bytes: float  # the same, between samples with the same modules
    threads: tuple[float, float]  # median of the first and of the last third
    files: tuple[float, float]
    flat: bool


def judge(process: str, samples: Sequence[Sample], least_s: float = 0.0) -> Verdict | None:
    """The verdict on a process; None if it lived for less than ``least_s``, or has too few samples."""
    kept = list(samples[round(len(samples) * WARM_UP_SHARE) :])
    if len(kept) < LEAST_SAMPLES or samples[-1].at_s - samples[0].at_s < least_s:
        return None
    kept = kept[:: -(-len(kept) // MOST_SAMPLES)]
    seconds = kept[-1].at_s - kept[0].at_s
    median = float(np.median([sample.memory_bytes for sample in kept]))
    at_s = [sample.at_s for sample in kept]
    resident = [float(sample.memory_bytes) for sample in kept]
    resident_growth = slope(at_s, resident) * seconds
    growth = slope(at_s, resident, [float(sample.held_bytes) for sample in kept]) * seconds
    threads, files = (_thirds([getattr(sample, name) for sample in kept]) for name in ("threads", "files"))
    flat = growth < max(FLAT_BYTES, FLAT_SHARE * median) and threads[1] <= threads[0] and files[1] <= files[0]
    return Verdict(process, seconds, round(median), resident_growth, growth, threads, files, flat)


def slope(x: Sequence[float], y: Sequence[float], like: Sequence[float] | None = None) -> float:
    """The median of the slopes between all pairs of points, or all pairs of alike points.

    x rises strictly. Points are alike if their ``like`` differs by less than ``SAME_BYTES``; at least two must be.
    """
    at, value = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    first, second = np.triu_indices(len(at), k=1)
    if like is not None:
        alike = np.asarray(like, dtype=float)
        same = np.abs(alike[first] - alike[second]) < SAME_BYTES
        first, second = first[same], second[same]
    return float(np.median((value[second] - value[first]) / (at[second] - at[first])))


def _thirds(values: Sequence[int]) -> tuple[float, float]:
    """The medians of the first and of the last third."""
    third = len(values) // 3
    return float(np.median(values[:third])), float(np.median(values[-third:]))
