"""Solves instances with all three solvers and counts how far each is from the optimum.

Owns what "optimal" and "gap" mean: a plan is optimal when its objective is within ``EQUAL`` of the proven optimum; the
gap is how much it is above that optimum, as a share of it. Where the optimum isn't proven, neither is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from broker.protocol.specs import FleetSpec, TaskSpec
from orchestrator.planner.modules import distinct_modules
from s2m3.bench.placement.solve import SOLVERS, Solver, solve, with_sources

EQUAL = 1e-9


@dataclass(frozen=True)
class Outcome:
    """One solver on one instance.

    ``gap``: a share of the optimum; None without a plan, or without a proven optimum. ``solve_s``: processor time, so
    that other programs on the machine don't count; the solvers use one thread.
    """

    objective_s: float | None
    solve_s: float
    optimal: bool | None
    gap: float | None


@dataclass(frozen=True)
class Result:
    """All solvers on one instance."""

    instance: str
    tasks: int
    modules: int
    devices: int
    solvers: Mapping[Solver, Outcome]


def compare(
    instances: Iterable[tuple[str, FleetSpec, Sequence[TaskSpec]]],
    *,
    time_limit_s: float,
    progress: Callable[[str], None],
) -> list[Result]:
    """Solve each instance (its name, fleet and tasks) with every solver, the exact one within the time limit.

    ``progress`` gets each instance's name before the instance is solved.
    """
    results = []
    solve("exact", (), ())  # loads the solver's library outside of all measurements
    for name, fleet, tasks in instances:
        progress(name)
        wanted = with_sources(tasks, fleet)
        solved, times_s = {}, {}
        for solver in SOLVERS:
            start_s = time.process_time()
            solved[solver] = solve(solver, fleet.devices, wanted, time_limit_s=time_limit_s)
            times_s[solver] = time.process_time() - start_s
        proven = solved["exact"].optimal and solved["exact"].placement
        least_s = proven.objective_s if proven else None
        outcomes = {}
        for solver, solution in solved.items():
            cost_s = solution.placement.objective_s if solution.placement else None
            gap = cost_s / least_s - 1 if cost_s is not None and least_s is not None else None
            optimal = None if least_s is None else gap is not None and gap <= EQUAL
            outcomes[solver] = Outcome(cost_s, times_s[solver], optimal, gap)
        results.append(Result(name, len(tasks), len(distinct_modules(tasks)), len(fleet.devices), outcomes))
    return results


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a solver, on all instances: ``no_plan`` counts those of which it says that nothing fits."""
    made = []
    for solver in SOLVERS:
        outcomes = [result.solvers[solver] for result in results]
        gaps = [max(0.0, outcome.gap) for outcome in outcomes if outcome.gap is not None] or [0.0]
        times = [outcome.solve_s for outcome in outcomes] or [0.0]
        made.append(
            {
                "solver": solver,
                "instances": len(outcomes),
                "optimal": sum(bool(outcome.optimal) for outcome in outcomes),
                "no_plan": sum(outcome.objective_s is None for outcome in outcomes),
                "mean_gap": mean(gaps),
                "worst_gap": max(gaps),
                "median_solve_s": median(times),
                "worst_solve_s": max(times),
            }
        )
    return made


def document(results: Sequence[Result]) -> dict[str, Any]:
    """The document that ``bench placement --json`` prints."""
    return {"summary": summarise(results), "instances": [asdict(result) for result in results]}
