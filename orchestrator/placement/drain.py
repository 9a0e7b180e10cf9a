"""Drains: the modules of a device that an operator takes out of service move to other devices.

Owns which modules leave a draining device, where they go, and the reason for those that stay. ``rebalance`` runs a
round of moves; ``reconcile`` lets standbys take over, and gives a draining device nothing new. Pure.

Invariants:
- a draining device serves until another copy is ready: no request fails because of a drain;
- a module moves to a device on probation, or whose heartbeats are late, only where no fit one can take it;
- a module moves only where it fits beside all active copies; otherwise it stays, with the reason, and is tried again
  when the facts change and every ``Pace.review_s``;
- a drain ends a round of planned moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from broker.protocol.specs import DeviceId, ModuleKey
from orchestrator.events import Action, Note
from orchestrator.membership.device import Fitness
from orchestrator.placement import planner_input, planning
from orchestrator.placement.rebalance import begin_moves, finish_moves
from orchestrator.placement.reconcile import take_over
from orchestrator.planner.copies import Bars, original_key
from orchestrator.planner.plans import DrainPlan, DrainProblem
from orchestrator.state import DrainAttempt, Moment, State


def empty_draining_devices(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Take the next steps of all drains, as far as they go now."""
    notes: list[Action] = []
    while True:
        begun, more = _begin(state, moment)
        taken, heirs = take_over(begun, moment)  # of the round's copies, one may be there already
        after, ended = finish_moves(taken, moment)
        notes += [*more, *heirs, *ended]
        if after is state:
            return state, notes
        state = after


def drain_retry_at_s(state: State) -> float | None:
    """The time to try again what couldn't move, if nothing changes before."""
    if state.drain_attempt is None or (state.placement.moves is not None and state.placement.moves.drains):
        return None
    return state.drain_attempt.retry_at_s


def _begin(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Begin the round that empties the draining devices, unless nothing is to move or the same was just tried."""
    state, asked = planning.taken(state, "drain")
    placement, last = state.placement, state.drain_attempt
    devices = state.cluster.devices
    leaving = {
        key: home
        for key, home in placement.where.items()
        if home in devices and devices[home].fitness == Fitness.DRAINING
    }
    if not leaving:
        return (state if last is None else replace(state, drain_attempt=None)), []
    if placement.moves is not None and placement.moves.drains:
        return state, []
    same = last is not None and (last.facts, last.where) == (placement.facts, placement.where)
    if same and last is not None and moment.now_s < last.retry_at_s:
        return state, []
    if asked is None or not planning.is_for(asked, state, "drain", placement.facts):
        return planning.request(state, moment, "drain", placement.facts, lambda: _problem(state, leaving))
    to, why = (asked.plan.to, asked.plan.why) if isinstance(asked.plan, DrainPlan) else ({}, {})
    attempt = DrainAttempt(placement.facts, placement.where, moment.now_s + state.pace.review_s)
    if to:
        moving = begin_moves(state, to, moment, gain_s=0.0, drains=True)
        if moving is not None:
            note = Note("drain_moves", {"modules": placement.names(to)})
            return replace(state, placement=moving, drain_attempt=attempt), [note]
        why = dict.fromkeys(leaving, "no other device can take it beside what serves now")
    parts: dict[DeviceId, list[str]] = {}
    for key, home in leaving.items():
        parts.setdefault(home, []).append(f"{placement.name(key)} stays: {why.get(key, 'it is tried again')}")
    stays = {home: "; ".join(reasons) for home, reasons in sorted(parts.items())}
    notes: list[Action] = [Note("drain_blocked", {"device": device, "why": reason}) for device, reason in stays.items()]
    blocked = replace(state, drain_attempt=replace(attempt, stays=stays))
    return blocked, (notes if last is None or last.stays != stays else [])


def waits_for(state: State, device: DeviceId) -> str | None:
    """The step that the drain of a device waits for now; None if it waits for nothing, or can't go on (``stays``)."""
    moves = state.placement.moves
    loading: dict[DeviceId, list[str]] = {}
    for key, goal in moves.to.items() if moves is not None and moves.drains else ():
        known = state.cluster.devices.get(goal)
        if moves is not None and moves.origin[key] == device and known and not known.ready(original_key(key)):
            loading.setdefault(goal, []).append(state.placement.name(key))
    if loading:
        return ", and ".join(
            f"{goal}{_doubt_of(state, goal)} loads {', '.join(names)}" for goal, names in sorted(loading.items())
        )
    if device in state.placement.where.values():
        return "the planner looks for other places" if state.planning and state.planning.kind == "drain" else None
    known = state.cluster.devices.get(device)
    return "it unloads what it holds" if known is not None and known.modules else None


def _doubt_of(state: State, device: DeviceId) -> str:
    return ", which is on probation," if state.cluster.devices[device].flaps.heartbeats_owed else ""


def _problem(state: State, leaving: Mapping[ModuleKey, DeviceId]) -> DrainProblem:
    placement, facts = state.placement, state.placement.facts
    specs = planner_input.candidate_specs(state, facts)
    tasks = planner_input.measured_tasks(placement)
    return DrainProblem(
        devices=tuple(spec for name, spec in specs.items() if not planner_input.is_draining(state, name)),
        tasks=tuple(tasks),
        at_hand=planner_input.copies_at_hand(state),
        barred=_bars(state, leaving, least=Fitness.FIT),
        leaving=leaving,
        where=placement.where,
        actives=placement.actives,
        further=placement.further,
        waived=_bars(state, leaving, least=Fitness.DOUBTFUL),
    )


def _bars(state: State, leaving: Mapping[ModuleKey, DeviceId], *, least: Fitness) -> Bars:
    """The constraints, in which no module leaves for a device to which calls time out, though it may have a standby."""
    facts = state.placement.facts
    bars = {key: dict(bars) for key, bars in planner_input.placement_constraints(state, facts, least=least).items()}
    for name, why in facts.doubts.items():
        if (device := state.cluster.devices.get(name)) is not None and device.fitness == Fitness.UNRESPONSIVE:
            for key in leaving:
                bars.setdefault(original_key(key), {})[name] = why
    return bars
