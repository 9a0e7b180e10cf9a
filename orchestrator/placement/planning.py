"""Asking for plans: the planner has at most one problem, and its plan is used only if it still stands.

Owns what is under way at the planner, what a newer or more urgent problem does to it, and when it counts as lost.
Doesn't know how a plan is found, nor what a problem contains. Pure.

Invariants:
- a plan is used once, for the problem whose ticket it has, or not at all;
- a placement plan that stands is used even if a newer problem waits, so that steady changes don't keep it off for ever;
  but then it places only what has no device, moves nothing that could stay, and takes no task from its devices;
- what took over since a plan was asked for stays where it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from broker.cost_model import may_run
from broker.protocol.specs import DeviceId, ModuleKey, TaskName
from orchestrator.events import Action, EndPlanning, Event, PlanFound, RequestPlan
from orchestrator.placement import planner_input
from orchestrator.planner.copies import original_key, with_further_copies
from orchestrator.planner.plans import PlacementPlan, Problem
from orchestrator.state import Facts, Moment, PlanKind, Planning, State

PLAN_LOST_S = 150.0  # the planner ends a search much sooner, and says when it fails or hangs
AGAIN_S = 10.0  # after a problem at which it failed was asked


def request(
    state: State, moment: Moment, kind: PlanKind, facts: Facts, problem: Callable[[], Problem]
) -> tuple[State, list[Action]]:
    """Give the planner a problem if it has none.

    The running one comes to an end first if it is outdated, or if modules must be placed; any other problem waits.
    """
    running = state.planning
    if running is not None and running.plan is None and moment.now_s < running.until_s:
        is_outdated = kind == running.kind and not is_for(running, state, kind, facts)
        is_urgent = kind == "placement" != running.kind
        if running.ending or not (is_outdated or is_urgent):
            return state, []
        return replace(state, planning=replace(running, ending=True)), [EndPlanning((state.epoch, running.number))]
    number = state.problems + 1
    asked = Planning(number, kind, facts, state.placement.where, moment.now_s, moment.now_s + PLAN_LOST_S)
    return replace(state, planning=asked, problems=number), [RequestPlan((state.epoch, number), problem())]


def on_event(state: State, event: Event) -> State:
    """The state with the plan that was waited for, if this is it; the rule for its kind takes it."""
    asked = state.planning
    if asked is None or not isinstance(event, PlanFound) or event.ticket != (state.epoch, asked.number):
        return state
    if event.plan is None:
        return replace(state, planning=replace(asked, until_s=asked.asked_s + AGAIN_S))
    return replace(state, planning=replace(asked, plan=event.plan))


def taken(state: State, kind: PlanKind) -> tuple[State, Planning | None]:
    """The plan of this kind that has just arrived, and the state without it."""
    asked = state.planning
    if asked is None or asked.plan is None or asked.kind != kind:
        return state, None
    return replace(state, planning=None), asked


def drop_lost(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Wait no longer for a plan that doesn't come; the rule that needs one asks again."""
    lost = state.planning is not None and moment.now_s >= state.planning.until_s
    return (replace(state, planning=None) if lost else state), []


def is_for(asked: Planning, state: State, kind: PlanKind, facts: Facts) -> bool:
    """Whether nothing that a problem is about has changed since it was asked; a placement adapts to what took over."""
    same_where = kind == "placement" or asked.where == state.placement.where
    return asked.kind == kind and same_where and asked.facts == facts


def standing_homes(
    state: State, facts: Facts, asked: Planning, plan: PlacementPlan
) -> Mapping[ModuleKey, DeviceId] | None:
    """Where a placement plan puts each module, with what took over meanwhile; None if it doesn't stand any more."""
    now = state.placement.where
    over = {key: home for key, home in now.items() if key in plan.where and asked.where.get(key) != home}
    where = {**plan.where, **over}
    alive = {name for name, _ in facts.candidates}
    barred = any(home in facts.barred.get(original_key(key), ()) for key, home in where.items())
    usable = alive.issuperset(where.values()) and not barred and _are_allowed(state, facts, plan, where)
    if not usable or (asked.facts != facts and not _is_harmless(state, facts, asked, plan.refused, where)):
        return None
    return where if planner_input.fits(state, facts, {key: (home,) for key, home in where.items()}) else None


def _are_allowed(state: State, facts: Facts, plan: PlacementPlan, where: Mapping[ModuleKey, DeviceId]) -> bool:
    """Whether every task may run where its modules are, and no device has two copies of a module."""
    if len({(original_key(key), home) for key, home in where.items()}) < len(where):
        return False
    specs = planner_input.candidate_specs(state, facts)
    for task in with_further_copies([task for task in facts.tasks if task.task not in plan.refused], plan.further):
        homes = {where[key] for node in task.nodes if (key := task.module_of(node).key) in where}
        if not all(may_run(task, specs[home]) for home in homes):
            return False
    return True


def _is_harmless(
    state: State,
    facts: Facts,
    asked: Planning,
    refused: Collection[TaskName],
    where: Mapping[ModuleKey, DeviceId],
) -> bool:
    """Whether a plan for older facts only places what has no device, and all its tasks are still as they were."""
    now, specs = state.placement, {task.task: task for task in facts.tasks}
    placed = {task.task for task in asked.facts.tasks} - set(refused)
    lost = [task for task in now.placed if task.task in specs and task.task not in placed]
    if lost or any(specs.get(task.task) != task for task in asked.facts.tasks):
        return False
    alive = {name for name, _ in facts.candidates}
    stay = planner_input.copies_to_adopt(state, facts.barred) | {k: h for k, h in now.where.items() if h in alive}
    for key, home in where.items():
        could_stay = key in stay and stay[key] not in facts.barred.get(original_key(key), ())
        if home != stay.get(key) and (could_stay or home in facts.doubts):
            return False
    return True
