"""What should be held where: the rules that place, take over from the dead, and choose spares.

Owns the step from facts to the standing placement, except planned moves. Says nothing to anybody. Pure.

Invariants:
- what is placed stays until its device goes, refuses it, or no task needs it any more, or else a task would not fit;
- an active copy that can't serve gives way to a spare that can, at once and without a load;
- spares never change where an active copy is; they are dropped at once where an active copy needs the memory, and
  chosen anew only after ``Pace.calm_s`` without a change, when every active copy serves.
"""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.specs import DeviceId, ModuleKey
from orchestrator.events import Action, Note
from orchestrator.placement.deployability import no_fit_reason
from orchestrator.placement.planner_input import (
    adopted,
    at_hand,
    candidate_specs,
    existing,
    facts_of,
    load_s,
    memory_credit,
    placement_constraints,
    spare_constraints,
    with_measured_footprints,
)
from orchestrator.planner.explain import Explanation, explain
from orchestrator.planner.placement import Bars, Placement, distinct_modules, place_most
from orchestrator.planner.spares import Spares, spares
from orchestrator.state import Facts, Moment, Standing, State

_REJECTED_SHOWN = 4  # other devices named in an assignment's reason; a thousand of them must still fit a message


def take_over(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Where an active copy can't serve and a spare can, make that one the active."""
    standing = state.standing
    heirs = {
        key: ready[0]
        for key, home in standing.where.items()
        if not _may_stay(state, home, key)
        and (ready := [d for d in standing.spares.of(key) if _may_stay(state, d, key)])
    }
    if not heirs:
        return state, []
    why = {key: f"took over from {standing.where[key]}" for key in heirs}
    standing = replace(standing, where={**standing.where, **heirs}, why={**standing.why, **why})
    named = {standing.modules[key][0]: device for key, device in heirs.items()}
    standing = with_spares(state, standing, anew=False)
    return with_placement(state, standing, moment.now_s), [Note("took_over", {"modules": named})]


def place_modules(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Place what must be placed, if any fact changed; not while most devices have just vanished."""
    facts = facts_of(state)
    if facts == state.standing.facts or state.cluster.hold is not None:
        return state, []
    standing, notes = _placed(state, facts, moment)
    return with_placement(state, with_spares(state, standing, anew=False), moment.now_s), notes


def choose_spares(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Give leftover memory to standbys and replicas."""
    due_s = spares_at_s(state)
    if due_s is None or moment.now_s < due_s:
        return state, []
    return replace(state, standing=with_spares(state, state.standing, anew=True), spares_due_s=None), []


def spares_at_s(state: State) -> float | None:
    """When spares are to be chosen, if nothing changes before."""
    return state.spares_due_s if state.pace.spares and state.standing.moves is None and calm(state) else None


def with_placement(state: State, standing: Standing, now_s: float) -> State:
    """With another standing placement; where it holds something else, what is merely better waits its time anew."""
    before, due_s = state.standing, now_s + state.pace.calm_s
    if standing.where != before.where:
        return replace(state, standing=standing, spares_due_s=due_s, reviewed_s=now_s)
    if standing.spares == before.spares and state.spares_due_s is not None:
        due_s = state.spares_due_s  # or a device that comes and goes would keep everybody waiting
    return replace(state, standing=standing, spares_due_s=due_s)


def calm(state: State) -> bool:
    """Whether every module's active copy serves."""
    return all(_serves(state, home, key) for key, home in state.standing.where.items())


def with_spares(state: State, standing: Standing, *, anew: bool) -> Standing:
    """The standing placement with the spares that go with it: new ones too, or only of copies that are there."""
    facts = standing.facts
    chosen = spares(
        list(candidate_specs(state, facts).values()),
        with_measured_footprints(standing.tasks, facts.footprints),
        standing.where,
        load_s=load_s(state),
        barred=spare_constraints(state, facts, standing.where),
        at_hand=at_hand(state),
        kept=standing.spares,
        pinned=standing.moves.to if standing.moves else None,
        only=None if anew else existing(state),
    )
    return replace(standing, spares=chosen if chosen != standing.spares else standing.spares)


def log_placement_changes(before: Standing, after: Standing, generation: int) -> list[Action]:
    """What changed, for the log."""
    notes: list[Action] = []
    moved = {after.modules[key][0]: home for key, home in after.where.items() if before.where.get(key) != home}
    dropped = sorted(before.modules[key][0] for key in before.where if key not in after.where)
    if moved or dropped:
        notes.append(Note("placed", {"generation": generation, "moved": moved, "dropped": dropped}))
    if before.spares != after.spares:
        notes.append(Note("spares", _named(after, after.spares)))
    withdrawn = {task: why for task, why in after.refused.items() if before.refused.get(task) != why}
    return [*notes, *(Note("task_withdrawn", {"task": task, "why": why}) for task, why in withdrawn.items())]


def _named(standing: Standing, chosen: Spares) -> dict[str, dict[str, list[DeviceId]]]:
    return {
        kind: {standing.modules[key][0]: list(devices) for key, devices in copies.items()}
        for kind, copies in (("standby", chosen.standby), ("replicas", chosen.replicas))
    }


def _serves(state: State, device: DeviceId, key: ModuleKey) -> bool:
    known = state.cluster.devices.get(device)
    return known is not None and known.alive and known.ready(key) and key not in known.barred


def _may_stay(state: State, device: DeviceId, key: ModuleKey) -> bool:
    """Whether it serves, and no other need take its place."""
    known = state.cluster.devices.get(device)
    return known is not None and _serves(state, device, key) and known.may_hold and not known.hung


def _placed(state: State, facts: Facts, moment: Moment) -> tuple[Standing, list[Action]]:
    before = state.standing
    candidates = candidate_specs(state, facts)
    served = {task.task for task in before.tasks}
    served |= {task for task, route in state.remembered.items() if route.available}
    keep = adopted(state, facts.barred)
    keep |= {key: home for key, home in before.where.items() if home in candidates}

    def attempt(credit: dict[DeviceId, int], bars: Bars) -> tuple[Placement, dict[str, str]]:
        devices = [
            spec.model_copy(update={"memory_bytes": spec.memory_bytes + credit[name]}) if name in credit else spec
            for name, spec in candidates.items()
        ]
        placement, errors = place_most(
            devices,
            with_measured_footprints(facts.tasks, facts.footprints),
            keep=keep,
            served=served,
            barred=bars,
            at_hand=at_hand(state),
            enough=moment.enough,
        )
        return placement, {name: no_fit_reason(error, facts.tasks, bars) for name, error in errors.items()}

    def placed_with(bars: Bars) -> tuple[Placement, dict[str, str]]:
        credit = memory_credit(state, before, facts)
        placement, refused = attempt(credit, bars)
        if any(placement.where.get(key) != home for key, home in before.where.items() if home in credit):
            return attempt({}, bars)  # it was given for copies that stay
        return placement, refused

    placement, refused = placed_with(placement_constraints(state, facts, keep))
    notes: list[Action] = []
    doubtful = {name for name in facts.doubts if not state.cluster.devices[name].draining}
    if refused and doubtful:
        waived = placed_with(placement_constraints(state, facts, keep, only_drained=True))
        if len(waived[1]) < len(refused):
            notes.append(Note("doubts_waived", {"devices": {name: facts.doubts[name] for name in sorted(doubtful)}}))
            placement, refused = waived
    placed = [task for task in facts.tasks if task.task not in refused]
    why = {
        key: before.why[key]
        if before.where.get(key) == home and key in before.why
        else _sentence(explain(placement, key))
        for key, home in placement.where.items()
    }
    moves = before.moves if before.moves and before.moves.to.keys() <= placement.where.keys() else None
    standing = Standing(facts, placement.where, distinct_modules(placed), why, refused, before.spares, moves)
    return standing, notes


def _sentence(explanation: Explanation) -> str:
    others = [f"{device}: {reason}" for device, reason in explanation.rejected.items()]
    if len(others) > _REJECTED_SHOWN:
        others[_REJECTED_SHOWN:] = [f"and {len(others) - _REJECTED_SHOWN} more"]
    return "; ".join([explanation.why, *others])
