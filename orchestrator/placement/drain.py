"""Emptying a device that an operator takes out of service: first the new copies, then the routes, then it unloads.

Owns which modules leave a draining device, where they go, and what to say when nothing else can take them. How a round
of moves runs is in ``moves``; that a standby takes over at once, and that a draining device gets nothing new, in
``reconcile``. Pure.

Invariants:
- a draining device serves until another copy is ready: no request errs for a drain;
- a module moves only where it fits beside all that serves now; else it stays, with the reason, and is tried again when
  the facts change and every ``Pace.review_s``;
- a drain comes before what is merely better: it ends a planned round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.protocol.specs import DeviceId, ModuleKey
from orchestrator.events import Action, Note
from orchestrator.placement.deployability import no_fit_reason
from orchestrator.placement.planner_input import (
    at_hand,
    candidate_specs,
    placement_constraints,
    with_measured_footprints,
)
from orchestrator.placement.rebalance import finish_moves
from orchestrator.placement.reconcile import with_spares
from orchestrator.planner.placement import distinct_modules, place_most
from orchestrator.state import Draining, Moment, Moves, Standing, State


def empty_draining_devices(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Take the next step of every drain, as far as it goes now."""
    notes: list[Action] = []
    while True:
        began, more = _begin(state, moment)
        after, ended = finish_moves(began, moment)
        notes += [*more, *ended]
        if after is state:
            return state, notes
        state = after


def drain_retry_at_s(state: State) -> float | None:
    """When to look again for what couldn't go, if nothing changes before."""
    if state.draining is None or (state.standing.moves is not None and state.standing.moves.drains):
        return None
    return state.draining.again_s


def _begin(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Begin the round that empties the draining devices, if there is anything to be moved and it wasn't just tried."""
    leaving = modules_to_move(state)
    if not leaving:
        return (state if state.draining is None else replace(state, draining=None)), []
    standing, tried = state.standing, state.draining
    if standing.moves is not None and standing.moves.drains:
        return state, []
    same = tried is not None and (tried.facts, tried.where) == (standing.facts, standing.where)
    if same and tried is not None and moment.now_s < tried.again_s:
        return state, []
    again_s = moment.now_s + state.pace.review_s
    to, why = _places(state, leaving, moment)
    if to:
        origin = {key: standing.where[key] for key in to}
        moves = Moves(to, origin, until_s=moment.now_s + state.pace.round_s, gain_s=0.0, drains=True)
        moving = with_spares(state, replace(standing, moves=moves), anew=False)
        if all(device in moving.spares.standby.get(key, ()) for key, device in to.items()):
            names = {standing.modules[key][0]: device for key, device in to.items()}
            state = replace(state, standing=moving, draining=Draining(standing.facts, standing.where, again_s))
            return state, [Note("drain_moves", {"modules": names})]
        why = dict.fromkeys(leaving, "no other device can take it beside what serves now")
    stays = _sentences(standing, leaving, why)
    notes: list[Action] = [Note("drain_blocked", {"device": device, "why": said}) for device, said in stays.items()]
    blocked = Draining(standing.facts, standing.where, again_s, stays)
    return replace(state, draining=blocked), (notes if tried is None or tried.stays != stays else [])


def modules_to_move(state: State) -> dict[ModuleKey, DeviceId]:
    """What draining devices serve."""
    devices = state.cluster.devices
    return {
        key: home
        for key, home in state.standing.where.items()
        if home in devices and devices[home].alive and devices[home].draining
    }


def _places(
    state: State, leaving: Mapping[ModuleKey, DeviceId], moment: Moment
) -> tuple[dict[ModuleKey, DeviceId], dict[ModuleKey, str]]:
    """Where modules could go, and of the others why not; all that serves now keeps its memory meanwhile."""
    standing, facts = state.standing, state.standing.facts
    candidates = candidate_specs(state, facts)
    staying = [spec for name, spec in candidates.items() if not state.cluster.devices[name].draining]
    tasks = with_measured_footprints(standing.tasks, facts.footprints)
    modules = distinct_modules(tasks)
    keep = {key: home for key, home in standing.where.items() if key not in leaving}
    served = [task.task for task in tasks]
    for bars in (placement_constraints(state, facts), placement_constraints(state, facts, only_drained=True)):
        target, errors = place_most(
            staying, tasks, keep=keep, served=served, barred=bars, at_hand=at_hand(state), enough=moment.enough
        )
        if not errors:
            break
    reasons = [no_fit_reason(error, standing.tasks, bars) for error in errors.values()]
    room = {spec.id: spec.memory_bytes for spec in staying}
    for key, homes in standing.actives.items():
        for home in homes:
            if home in room and key in modules:
                room[home] -= modules[key][1].memory_bytes
    to: dict[ModuleKey, DeviceId] = {}
    why: dict[ModuleKey, str] = {}
    for key in leaving:
        goal = target.where.get(key)
        if goal is None:
            why[key] = reasons[0] if reasons else "no other device may take it"
        elif modules[key][1].memory_bytes > room[goal]:
            why[key] = f"{goal} has no room for it beside what it serves until that has moved"
        else:
            to[key] = goal
            room[goal] -= modules[key][1].memory_bytes
    return to, why


def _sentences(
    standing: Standing, leaving: Mapping[ModuleKey, DeviceId], why: Mapping[ModuleKey, str]
) -> dict[DeviceId, str]:
    """For each draining device what stays there, and why."""
    parts: dict[DeviceId, list[str]] = {}
    for key, home in leaving.items():
        parts.setdefault(home, []).append(f"{standing.modules[key][0]} stays: {why.get(key, 'it is tried again')}")
    return {home: "; ".join(said) for home, said in sorted(parts.items())}
