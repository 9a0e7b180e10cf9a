"""The planner's one function: from a problem to its plan. Pure.

Owns the share of the work that each part of a plan may take. Knows nothing of live devices, of processes or of clocks;
the caller's ``enough`` may end a search early, with what it has found until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from broker.cost_model import memory_bytes
from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceId, ModuleKey, TaskName
from orchestrator.planner.budget import Budget, never
from orchestrator.planner.copies import Bars, with_further_copies
from orchestrator.planner.device_rows import sometimes_of
from orchestrator.planner.explain import brief_reason, reason
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.moves import MoveCosts, free_bytes
from orchestrator.planner.placement import place_beside, place_most
from orchestrator.planner.plans import (
    DrainPlan,
    DrainProblem,
    MovesPlan,
    MovesProblem,
    PlacementPlan,
    PlacementProblem,
    Plan,
    Problem,
    SparesPlan,
    SparesProblem,
)
from orchestrator.planner.preferred import preferred_copies
from orchestrator.planner.problem import Placement
from orchestrator.planner.refusals import no_fit_reason
from orchestrator.planner.spares import spares

# Units of the budget (``budget``), a hundred to a millisecond.
_WORK = 60_000  # on a placement: what must be done, refusals and reasons included
_WORK_ON_BETTER = 3_000  # of it on something better, for which requests wait; a review follows
_WORK_ON_REASONS = 15_000  # of it on the comparison with other devices
_WORK_ON_MOVES = 50_000
_WORK_ON_PREFERRED = 30_000
_UNITS_OF_A_REASON = 40
_DEVICES_A_UNIT = 20


def solve(problem: Problem, enough: Callable[[], bool] = never) -> Plan:
    """The plan that answers a problem. Equal problems have equal plans, unless ``enough`` ends a search earlier."""
    match problem:
        case PlacementProblem():
            return _placement(problem, Budget(_WORK, enough))
        case MovesProblem():
            return _moves(problem, Budget(_WORK_ON_MOVES, enough))
        case DrainProblem():
            return _drain(problem, Budget(_WORK, enough))
        case SparesProblem():
            return _spares(problem, Budget(_WORK_ON_PREFERRED, enough))


def _placement(problem: PlacementProblem, budget: Budget) -> PlacementPlan:
    def attempt(credit: Mapping[DeviceId, int], bars: Bars) -> tuple[Placement, dict[TaskName, NoDeviceFits]]:
        devices = [
            spec.model_copy(update={"memory_bytes": spec.memory_bytes + credit[spec.id]}) if spec.id in credit else spec
            for spec in problem.devices
        ]
        part = budget.part(budget.left // 2)  # the rest is for other attempts, and for reasons
        found, refused = place_most(
            devices,
            served,
            keep=problem.keep,
            barred=bars,
            at_hand=problem.at_hand,
            budget=part,
            search=_WORK_ON_BETTER,
        )
        if not upcoming:
            return found, refused
        placed = [task for task in served if task.task not in refused]
        whole, also_refused = place_beside(
            devices,
            found,
            placed,
            upcoming,
            barred=bars,
            at_hand=problem.at_hand,
            budget=part,
            search=_WORK_ON_BETTER,
        )
        return whole, {**refused, **also_refused}

    served = [task for task in problem.tasks if task.task not in problem.upcoming]
    upcoming = [task for task in problem.tasks if task.task in problem.upcoming]

    def placed_with(bars: Bars) -> tuple[Placement, dict[TaskName, str]]:
        placement, errors = attempt(problem.credit, bars)
        if any(placement.where.get(key) != home for key, home in problem.where.items() if home in problem.credit):
            placement, errors = attempt({}, bars)  # the credit was given for copies that stay
        return placement, {name: no_fit_reason(error, problem.absent) for name, error in errors.items()}

    (placement, refused), waived = placed_with(problem.barred), False
    if refused and problem.waived is not None:
        again = placed_with(problem.waived)
        if len(again[1]) < len(refused):
            (placement, refused), waived = again, True
    new = [key for key, home in placement.where.items() if key not in problem.explained or problem.where[key] != home]
    why = _reasons(placement, new, budget.part(_WORK_ON_REASONS))
    return PlacementPlan(placement.where, placement.further, why, refused, waived)


def _reasons(placement: Placement, keys: Sequence[ModuleKey], budget: Budget) -> dict[ModuleKey, str]:
    """The reasons why modules are where they are: compared with other devices while the budget lasts."""
    reasons: dict[ModuleKey, str] = {}
    for key in keys:
        reasons[key] = brief_reason(placement, key) if budget.over else reason(placement, key)
        budget.spend(_UNITS_OF_A_REASON + len(placement.problem.fleet) // _DEVICES_A_UNIT)
    return reasons


def _moves(problem: MovesProblem, budget: Budget) -> MovesPlan:
    target, refused = place_most(
        problem.devices, problem.tasks, barred=problem.barred, at_hand=problem.at_hand, budget=budget
    )
    costs = MoveCosts(problem.devices, with_further_copies(problem.tasks, problem.further), problem.where)
    to = (
        {}
        if refused or target.further != problem.further
        else costs.worthwhile(target.where, problem.actives, problem.doubtful)
    )
    return MovesPlan(to, costs.gain_s(to)[0]) if to else MovesPlan()


def _drain(problem: DrainProblem, budget: Budget) -> DrainPlan:
    """All active copies keep their memory until the moved ones are ready."""
    keep = {key: home for key, home in problem.where.items() if key not in problem.leaving}
    for bars in (problem.barred, problem.waived):
        target, errors = place_most(
            problem.devices,
            problem.tasks,
            keep=keep,
            barred=bars,
            at_hand=problem.at_hand,
            budget=budget.part(budget.left // 2),
            search=_WORK_ON_BETTER,
        )
        if not errors:
            break
    reasons = [no_fit_reason(error, {}) for error in errors.values()]
    tasks, specs = with_further_copies(problem.tasks, problem.further), {spec.id: spec for spec in problem.devices}
    modules, free = distinct_modules(tasks), free_bytes(tasks, problem.actives, problem.devices)
    to: dict[ModuleKey, DeviceId] = {}
    why: dict[ModuleKey, str] = {}
    for key in problem.leaving:
        goal = target.where.get(key) if target.further == problem.further else None
        if goal is None:
            why[key] = reasons[0] if reasons else "no other device may take it"
        elif memory_bytes(modules[key][1], specs[goal]) > free[goal]:
            why[key] = f"{goal} has no room for it beside what it serves until that has moved"
        else:
            to[key] = goal
            free[goal] -= memory_bytes(modules[key][1], specs[goal])
    return DrainPlan(to, why)


def _spares(problem: SparesProblem, budget: Budget) -> SparesPlan:
    sometimes = sometimes_of(problem.devices)
    replicas = [(key, device) for key, there in problem.kept.replicas.items() for device in there]
    preferred = preferred_copies(
        problem.devices,
        problem.tasks,
        problem.where,
        further=problem.further,
        barred=problem.barred,
        at_hand=problem.at_hand,
        kept={key: device for key, device in reversed(replicas) if device in sometimes},
        budget=budget,
    )
    return SparesPlan(
        spares(
            problem.devices,
            with_further_copies(problem.tasks, problem.further),
            problem.where,
            load_s=problem.load_s,
            barred=problem.barred,
            at_hand=problem.at_hand,
            kept=problem.kept,
            preferred=preferred,
        )
    )
