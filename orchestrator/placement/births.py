"""Births: devices that come fast, one after the other, share one look at the facts and one plan.

Owns which change of the facts is nothing but births, and until when such a change waits. A site that powers up has a
hundred births a second, and each look costs as much as there are devices. Pure.

Invariants:
- a change that isn't only births never waits, and no birth waits longer than ``SHARE_S``;
- a birth that waits costs the same, however many devices there are.
"""

from __future__ import annotations

from typing import Literal

from orchestrator.membership.device import Device, Fitness
from orchestrator.placement import planner_input
from orchestrator.state import Facts, Moment, State

SHARE_S = 0.5  # between two plans for births
Change = Literal["nothing", "births", "more"]


def change_of(state: State, moment: Moment) -> Change:
    """The change of the facts, and of what is asked of the planner, since the rules last ran."""
    before = moment.before
    if before is None or not planner_input.rest_stays(before, state):
        return "more"
    then, now = before.cluster.devices, state.cluster.devices
    kinds = {_change_of_one(then.get(name), now.get(name)) for name in moment.changed}
    return "more" if "more" in kinds else "births" if "births" in kinds else "nothing"


def outstanding(placed: Facts, facts: Facts) -> Change:
    """The change from the facts that the placement follows from to the present ones."""
    if facts == placed:
        return "nothing"
    old, new = dict(placed.candidates), dict(facts.candidates)
    same = (
        all(new.get(name) == profile for name, profile in old.items())
        and {name: tasks for name, tasks in facts.limits.items() if name in old} == placed.limits
        and facts.sometimes & old.keys() == placed.sometimes
        and (facts.tasks, facts.unservable, facts.barred) == (placed.tasks, placed.unservable, placed.barred)
        and (facts.footprints, facts.doubts) == (placed.footprints, placed.doubts)
    )
    return "births" if same else "more"


def waits(state: State, change: Change, now_s: float) -> bool:
    """Whether this change waits for further births; only if the placement follows from all else."""
    return change == "births" and state.outstanding != "more" and now_s < state.births_from_s


def next_step_at_s(state: State, now_s: float) -> float | None:
    """The time at which births that wait are looked at."""
    return state.births_from_s if state.outstanding == "births" and now_s < state.births_from_s else None


def _change_of_one(then: Device | None, now: Device | None) -> Change:
    was_alive, is_alive = then is not None and then.alive, now is not None and now.alive
    if not was_alive and not is_alive:
        return "nothing"
    if then is None or now is None or not was_alive or not is_alive:
        is_birth = now is not None and now.fitness == Fitness.FIT and not now.barred
        return "births" if is_birth and not was_alive else "more"
    return "nothing" if planner_input.same_facts(then, now) else "more"
