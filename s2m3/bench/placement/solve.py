"""Runs one of the three solvers, and tells how good its answer is.

Owns the meaning of ``optimal``: true with a proof, false when the proof wasn't finished in time, None for the
heuristics, which prove nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceSpec, TaskSpec
from orchestrator.planner.exact import Undecided, exact
from orchestrator.planner.placement import Placement, place, refined

Solver = Literal["greedy", "refined", "exact"]
SOLVERS: tuple[Solver, ...] = ("greedy", "refined", "exact")
TIME_LIMIT_S = 60.0


@dataclass(frozen=True)
class Solution:
    """A solver's answer: a placement, or why it found none.

    ``bound_s``: no placement has a smaller objective, in seconds; known to the exact solver only. ``solve_s``: what it
    took, files and output not counted.
    """

    solver: Solver
    solve_s: float
    placement: Placement | None = None
    optimal: bool | None = None
    bound_s: float | None = None
    refusal: NoDeviceFits | Undecided | None = None


def solve(
    solver: Solver, devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], *, time_limit_s: float = TIME_LIMIT_S
) -> Solution:
    """Place every module of every task.

    Args:
        solver: which of the three.
        devices: those that may hold modules.
        tasks: what to serve; names are distinct, and each source is a device.
        time_limit_s: for refined and exact; greedy needs none.

    Raises:
        S2M3Error: the exact solver isn't installed.
    """
    start_s = time.perf_counter()

    def passed_s() -> float:
        return time.perf_counter() - start_s

    try:
        if solver == "greedy":
            return Solution(solver, placement=place(devices, tasks), solve_s=passed_s())
        if solver == "refined":
            found = refined(devices, tasks, enough=lambda: passed_s() > time_limit_s)
            return Solution(solver, placement=found, solve_s=passed_s())
        best = exact(devices, tasks, time_limit_s=time_limit_s)
    except NoDeviceFits as refusal:
        return Solution(solver, refusal=refusal, solve_s=passed_s())
    except Undecided as refusal:
        return Solution(solver, refusal=refusal, bound_s=refusal.bound_s, solve_s=passed_s())
    solve_s = passed_s()
    placement = replace(place(devices, tasks, keep=best.where), kept=frozenset())  # it was chosen, not kept
    return Solution(solver, placement=placement, optimal=best.proven, bound_s=best.bound_s, solve_s=solve_s)
