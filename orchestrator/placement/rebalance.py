"""Planned moves: from a placement that works to a better one, without a gap.

Owns when a move is worth making, and its course: the new copy loads while the old one serves; when all copies of the
round are loaded, their gain is computed again from newer measurements; only then do the routes switch. Doesn't know
failures: ``reconcile`` repairs those at once. Pure.

Invariants:
- at most one round at a time, and none within ``Pace.review_s`` of the last one or of any change of the active copies;
- no move for less than ``GAIN_SHARE`` of its tasks' cost and less than ``GAIN_S``, each move of a round included;
- the old copy goes only after the routes name the new one; a cancelled round leaves nothing but useful standbys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.cost_model import objective_s, source_of
from broker.protocol.specs import DeviceId, ModuleKey
from orchestrator.events import Action, Note
from orchestrator.placement import planner_input
from orchestrator.placement.reconcile import adopt, is_calm, with_spares
from orchestrator.planner.placement import distinct_modules, place_most
from orchestrator.state import CurrentPlacement, Moment, Moves, State

GAIN_SHARE = 0.15  # of the tasks' weighted seconds: measured averages waver by some ten percent under load
GAIN_S = 0.02  # weighted seconds: a wireless network's jitter is as large, and no person sees less


def finish_moves(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """End the round under way: make its moves once all is loaded and they still gain, or cancel it."""
    moves = state.placement.moves
    if moves is None:
        return state, []
    why = _obstacle(state, moves, moment)
    if why is None and not all(state.cluster.devices[device].ready(key) for key, device in moves.to.items()):
        return state, []
    gain_s, needed_s = (0.0, 0.0) if why or moves.drains else _Costs(state).gain_s(moves.to)
    if why is None and gain_s < needed_s:
        why = f"it would now gain {gain_s:.3g} s, and must gain {needed_s:.3g} s"
    placement = replace(state.placement, moves=None)
    names = placement.names({key: device for key, device in moves.to.items() if key in placement.where})
    if why is not None:
        note = Note("moves_given_up", {"modules": names, "why": why})
    else:
        because = "it is emptied" if moves.drains else f"the round gains {gain_s:.3g} s"
        reasons = {key: f"moved from {moves.origin[key]}: {because}" for key in moves.to}
        placement = replace(placement, where={**placement.where, **moves.to}, why={**placement.why, **reasons})
        note = Note("moves_made", {"modules": names, "gain_s": gain_s})
    return replace(adopt(state, placement, moment.now_s), reviewed_s=moment.now_s), [note]


def plan_moves(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Search for a better placement with the newest measurements, when that is due; begin its moves if worth it."""
    due_s = next_step_at_s(state)
    if state.placement.moves is not None or due_s is None or moment.now_s < due_s:
        return state, []
    state = replace(state, reviewed_s=moment.now_s, spares_due_s=moment.now_s)  # replicas depend on measurements, too
    costs = _Costs(state)
    target, refused = place_most(
        list(costs.devices.values()),
        costs.tasks,
        barred=planner_input.placement_constraints(state, state.placement.facts),
        at_hand=planner_input.copies_at_hand(state),
        enough=moment.enough,
    )
    to = {} if refused else costs.worthwhile_moves(target.where)
    gain_s, _ = costs.gain_s(to)
    placement = begin_moves(state, to, moment, gain_s=gain_s) if to else None
    if placement is None:
        return state, []
    note = Note("moves_planned", {"modules": placement.names(to), "gain_s": gain_s})
    return replace(state, placement=placement), [note]


def begin_moves(
    state: State, to: Mapping[ModuleKey, DeviceId], moment: Moment, *, gain_s: float, drains: bool = False
) -> CurrentPlacement | None:
    """The placement with these moves as standbys that load; None if one of them finds no memory as a standby."""
    origin = {key: state.placement.where[key] for key in to}
    moves = Moves(to, origin, moment.now_s + state.pace.round_s, gain_s, drains=drains)
    placement = with_spares(state, replace(state.placement, moves=moves), only_existing=True)
    begun = all(device in placement.spares.standby.get(key, ()) for key, device in to.items())
    return placement if begun else None


def next_step_at_s(state: State) -> float | None:
    """The time to cancel the round under way, or to search for a better placement, if nothing changes before."""
    placement = state.placement
    if placement.moves is not None:
        return placement.moves.until_s
    has_choice = placement.where and len(placement.facts.candidates) > 1
    return state.reviewed_s + state.pace.review_s if has_choice and is_calm(state) else None


def _obstacle(state: State, moves: Moves, moment: Moment) -> str | None:
    """The reason why the round can't go on; None if it can."""
    placement = state.placement
    for key, device in moves.to.items():
        if placement.where.get(key) != moves.origin[key]:
            return f"{placement.modules[key][0]} isn't on {moves.origin[key]} any more"
        is_lost = device not in placement.spares.standby.get(key, ())
        if is_lost or (not moves.drains and state.cluster.devices[device].unresponsive):  # it would lose it again
            return f"{device} can't take {placement.modules[key][0]} any more"
    if moment.now_s >= moves.until_s:
        return f"the copies weren't ready after {state.pace.round_s:g} s"
    return None


class _Costs:
    """The cost of the current placement and of alternatives, with the newest measurements."""

    def __init__(self, state: State) -> None:
        self.placement = state.placement
        self.devices = planner_input.candidate_specs(state, state.placement.facts)
        self.tasks = planner_input.measured_tasks(state.placement)
        self._sources = {task.task: source_of(task, self.devices) for task in self.tasks}

    def cost_s(self, moves: Mapping[ModuleKey, DeviceId], *, of: Mapping[ModuleKey, DeviceId]) -> float:
        """The objective of the tasks that use any module of ``of``, after these moves."""
        where = {key: self.devices[home] for key, home in {**self.placement.where, **moves}.items()}
        users = [task for task in self.tasks if any(task.module_of(node).key in of for node in task.nodes)]
        return objective_s(users, where, self._sources)

    def gain_s(self, moves: Mapping[ModuleKey, DeviceId]) -> tuple[float, float]:
        """The gain of these moves in their tasks' objective, and the gain that they need to be made."""
        now_s = self.cost_s({}, of=moves)
        return now_s - self.cost_s(moves, of=moves), max(GAIN_SHARE * now_s, GAIN_S)

    def worthwhile_moves(self, target: Mapping[ModuleKey, DeviceId]) -> dict[ModuleKey, DeviceId]:
        """The moves towards another placement that fit beside all active copies, and of which each gains enough."""
        modules = distinct_modules(self.tasks)
        free = planner_input.free_bytes(self.placement, self.devices.values())
        moves: dict[ModuleKey, DeviceId] = {}
        for key, (_, module) in modules.items():
            to = target[key]
            doubtful = to in self.placement.facts.doubts  # it may have a standby, which was placed before the doubt
            if to not in self.placement.actives[key] and module.memory_bytes <= free[to] and not doubtful:
                moves[key] = to
                free[to] -= module.memory_bytes
        for key in reversed(list(moves)):
            others = {other: to for other, to in moves.items() if other != key}
            if self.cost_s(others, of=moves) - self.cost_s(moves, of=moves) < GAIN_S:
                moves = others
        gain_s, needed_s = self.gain_s(moves) if moves else (0.0, 1.0)
        return moves if gain_s >= needed_s else {}
