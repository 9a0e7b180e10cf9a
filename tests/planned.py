"""``decide`` with a planner that answers at once, for tests of what follows from a plan.

Owns nothing else: what happens between a problem and its plan has tests of its own.
"""

from __future__ import annotations

from orchestrator.decide import decide
from orchestrator.events import Action, EndPlanning, Event, PlanFound, RequestPlan
from orchestrator.planner.solve import solve
from orchestrator.state import State


def decide_and_plan(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """The state after an event and the plans that it called for, and all actions but those for the planner."""
    state, actions = decide(state, event, now_s)
    done: list[Action] = []
    while actions:
        done += [action for action in actions if not isinstance(action, RequestPlan | EndPlanning)]
        asked = [action for action in actions if isinstance(action, RequestPlan)]
        actions = []
        for request in asked:
            state, more = decide(state, PlanFound(request.ticket, solve(request.problem)), now_s)
            actions += more
    return state, done
