"""Copies on devices that are on only sometimes, beside the copies that planning counts: they make tasks faster.

Owns which modules get one. Each module keeps its home, or has a copy on such a device: the search of the planner finds
the best choice for all of them together. Knows nothing of liveness, nor of the other spares.

Invariants:
- where all devices are alike, no module gets one;
- copies of which one is the only copy of its module keep their memory;
- a copy stays, unless others in its place gain ``GAIN_SHARE`` of the seconds of the tasks that use it.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.protocol.specs import DeviceSpec, TaskSpec
from orchestrator.planner.budget import Budget
from orchestrator.planner.copies import AtHand, Bars, FurtherCopies, Homes, original_key, with_further_copies
from orchestrator.planner.fleet import Fleet
from orchestrator.planner.greedy import PartialPlacement
from orchestrator.planner.large_neighbourhood_search import LargeNeighbourhoodSearch
from orchestrator.planner.local_search import LocalSearch
from orchestrator.planner.moves import GAIN_SHARE, MoveCosts
from orchestrator.planner.problem import Problem

WORK = 30_000
"""The work of the search at most, in units of about 10 microseconds."""


def preferred_copies(
    devices: Sequence[DeviceSpec],
    tasks: Sequence[TaskSpec],
    where: Homes,
    *,
    further: FurtherCopies,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    kept: Homes | None = None,
    budget: Budget | None = None,
) -> Homes:
    """Choose the modules that get a copy on a device that is on only sometimes, and the device of each.

    Args:
        devices: those that may hold modules.
        tasks: the tasks that are placed, with the modules' own keys; their weights are requests per second.
        where: the copy of each module that planning counts.
        further: for each task the modules of which it uses a further copy.
        barred: devices that must not get a module.
        at_hand: devices that have a module's weights; preferred unless another is better by ``AT_HAND_SHARE``.
        kept: these copies so far.
        budget: ends the search.
    """
    fleet = Fleet(devices)
    if not fleet.sometimes.any():
        return {}
    homes: dict[str, set[str]] = {}
    for key, home in where.items():
        homes.setdefault(original_key(key), set()).add(home)
    always = [spec.id for spec in fleet.specs if not fleet.sometimes[fleet.rows[spec.id]]]
    bars = {
        key: dict.fromkeys(set(always) - there, "it has a copy elsewhere") | {**(barred or {}).get(key, {})}
        for key, there in homes.items()
    }
    problem = Problem(fleet, tasks, homes=where, barred=bars, at_hand=at_hand, sole=False)
    draft = PartialPlacement(problem, problem.homes)
    if problem.further != further or draft.missing:
        return kept or {}
    for module, row in enumerate(draft.where):
        key = problem.keys[module]
        to = fleet.rows.get((kept or {}).get(key, ""))
        if not fleet.sometimes[row]:
            draft.kept.discard(module)
            if to is not None and to in draft.able(module):
                draft.put(module, to)
    before = [*draft.where]
    search = LocalSearch(draft, budget or Budget(WORK))
    search.run()
    LargeNeighbourhoodSearch(search).run()
    now, found = _ids(problem, before), _ids(problem, draft.where)
    costs = MoveCosts(devices, with_further_copies(tasks, further), now)
    given_up = [key for key, home in now.items() if home != where[key] and found[key] != home]
    if given_up and costs.gain_s(found)[0] < GAIN_SHARE * costs.cost_s({}, of=given_up):
        found = now
    return {key: home for key, home in found.items() if home != where[key]}


def _ids(problem: Problem, rows: Sequence[int]) -> dict[str, str]:
    return {key: problem.fleet.specs[row].id for key, row in zip(problem.keys, rows, strict=True)}
