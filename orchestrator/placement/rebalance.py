"""Planned moves: from a placement that works to a better one, without a gap.

Owns when a move is worth making, and its course: the new copy loads while the old one serves; when all copies of the
round are loaded, their gain is computed again from newer measurements; only then do the routes switch. Doesn't know
failures: ``reconcile`` repairs those at once. Pure.

Invariants:
- at most one round at a time, and none within ``Pace.review_s`` of the last one or of any change of the active copies,
  but for one ``Pace.calm_s`` after the devices have doubled: a site that powers up places its modules before its best
  devices are there. A device that comes and goes brings no round forward;
- none soon after our link came up: devices may still come back to a broker that has returned;
- the old copy goes only after the routes name the new one; a cancelled round leaves nothing but useful standbys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.protocol.specs import DeviceId, ModuleKey
from broker.transport.port import RECONNECT_S
from orchestrator.events import Action, Note
from orchestrator.placement import planner_input, planning
from orchestrator.placement.reconcile import adopt, is_calm, reviewed, with_spares
from orchestrator.planner.copies import original_key
from orchestrator.planner.moves import MoveCosts
from orchestrator.planner.plans import MovesPlan, MovesProblem
from orchestrator.state import CurrentPlacement, Moment, Moves, State


def finish_moves(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """End the round under way: make its moves once all is loaded and they still gain, or cancel it."""
    moves = state.placement.moves
    if moves is None:
        return state, []
    why = _obstacle(state, moves, moment)
    if why is None and not all(
        state.cluster.devices[device].ready(original_key(key)) for key, device in moves.to.items()
    ):
        return state, []
    gain_s, needed_s = (0.0, 0.0) if why or moves.drains else _costs(state).gain_s(moves.to)
    if why is None and gain_s < needed_s:
        why = f"it would now gain {gain_s:.3g} s, and must gain {needed_s:.3g} s"
    placement = replace(state.placement, moves=None)
    names = placement.names({key: device for key, device in moves.to.items() if key in placement.where})
    if why is not None:
        note = Note("moves_given_up", {"modules": names, "why": why})
    else:
        because = "it is drained" if moves.drains else f"the round gains {gain_s:.3g} s"
        reasons = {key: f"moved from {moves.origin[key]}: {because}" for key in moves.to}
        placement = replace(placement, where={**placement.where, **moves.to}, why={**placement.why, **reasons})
        note = Note("moves_made", {"modules": names, "gain_s": gain_s})
    return reviewed(adopt(state, placement, moment.now_s), moment.now_s), [note]


def plan_moves(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Search for a better placement with the newest measurements, when that is due; begin its moves if worth it."""
    state, asked = planning.taken(state, "moves")
    placement = state.placement
    if asked is not None and isinstance(asked.plan, MovesPlan) and placement.moves is None:
        to, gain_s = asked.plan.to, asked.plan.gain_s
        if to and planning.is_for(asked, state, "moves", placement.facts):
            begun = begin_moves(state, to, moment, gain_s=gain_s)
            if begun is not None:
                note = Note("moves_planned", {"modules": placement.names(to), "gain_s": gain_s})
                return replace(state, placement=begun), [note]
        return state, []
    due_s = next_step_at_s(state)
    if placement.moves is not None or due_s is None or moment.now_s < due_s:
        return state, []
    number = state.problems
    state, actions = planning.request(state, moment, "moves", placement.facts, lambda: _problem(state))
    if state.problems != number:
        state = replace(
            reviewed(state, moment.now_s), spares_due_s=moment.now_s
        )  # replicas depend on what was measured
    return state, actions


def begin_moves(
    state: State, to: Mapping[ModuleKey, DeviceId], moment: Moment, *, gain_s: float, drains: bool = False
) -> CurrentPlacement | None:
    """The placement with these moves as standbys that load; None if one of them finds no memory as a standby."""
    origin = {key: state.placement.where[key] for key in to}
    moves = Moves(to, origin, moment.now_s + state.pace.round_s, gain_s, drains=drains)
    placement = with_spares(state, replace(state.placement, moves=moves))
    begun = all(device in placement.spares.standby.get(key, ()) for key, device in to.items())
    return placement if begun else None


def next_step_at_s(state: State) -> float | None:
    """The time to cancel the round under way, or to search for a better placement, if nothing changes before."""
    placement = state.placement
    if placement.moves is not None:
        return placement.moves.until_s
    has_choice = placement.where and len(placement.facts.candidates) > 1
    if not has_choice or not is_calm(state):
        return None
    due_s = state.reviewed_s + state.pace.review_s
    if state.doubled_s > state.reviewed_s:
        due_s = min(due_s, state.doubled_s + state.pace.calm_s)
    return max(due_s, state.cluster.up_s + RECONNECT_S + state.pace.calm_s)


def _obstacle(state: State, moves: Moves, moment: Moment) -> str | None:
    """The reason why the round can't go on; None if it can."""
    placement = state.placement
    for key, device in moves.to.items():
        if placement.where.get(key) != moves.origin[key]:
            return f"{placement.name(key)} isn't on {moves.origin[key]} any more"
        known = state.cluster.devices.get(device)
        is_lost = known is None or device not in placement.spares.standby.get(key, ())
        if known is None or is_lost or (not moves.drains and known.unresponsive):  # it would lose it again
            return f"{device} can't take {placement.name(key)} any more"
    if moment.now_s >= moves.until_s:
        return f"the copies weren't ready after {state.pace.round_s:g} s"
    return None


def _costs(state: State) -> MoveCosts:
    """The cost of the current placement and of alternatives, with the newest measurements."""
    placement = state.placement
    devices = planner_input.candidate_specs(state, placement.facts)
    return MoveCosts(devices.values(), planner_input.measured_copies(placement), placement.where)


def _problem(state: State) -> MovesProblem:
    placement = state.placement
    return MovesProblem(
        devices=tuple(planner_input.candidate_specs(state, placement.facts).values()),
        tasks=tuple(planner_input.measured_tasks(placement)),
        at_hand=planner_input.copies_at_hand(state),
        barred=planner_input.placement_constraints(state, placement.facts),
        where=placement.where,
        actives=placement.actives,
        doubtful=frozenset(placement.facts.doubts),
        further=placement.further,
    )
