"""The reconciler: places modules, lets standbys take over from lost copies, and chooses spares.

Owns the step from facts to the current placement, except planned moves. Publishes nothing. Pure.

Invariants:
- a module stays on its device until the device is gone or refuses it, no task needs it, or a task would not fit;
- if an active copy can't serve and a spare can, the spare takes over at once, without a load;
- spares never change where an active copy is. They are dropped at once where an active copy needs the memory, and
  chosen again only after ``Pace.calm_s`` without a change, when every active copy serves.
"""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.specs import DeviceId
from orchestrator.events import Action, Note
from orchestrator.placement import planner_input
from orchestrator.placement.deployability import no_fit_reason
from orchestrator.planner.explain import Explanation, explain
from orchestrator.planner.placement import Bars, Placement, place_most
from orchestrator.planner.spares import spares
from orchestrator.state import CurrentPlacement, Facts, Moment, State

_REJECTED_SHOWN = 4  # other devices named in an assignment's reason; a thousand of them must still fit a message


def take_over(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Make a spare the active copy where the active copy can't serve and the spare can."""
    placement, devices = state.placement, state.cluster.devices
    heirs = {
        key: ready[0]
        for key, home in placement.where.items()
        if not (home in devices and devices[home].keeps(key))
        and (ready := [d for d in placement.spares.of(key) if d in devices and devices[d].keeps(key)])
    }
    if not heirs:
        return state, []
    why = {key: f"took over from {placement.where[key]}" for key in heirs}
    placement = replace(placement, where={**placement.where, **heirs}, why={**placement.why, **why})
    return adopt(state, placement, moment.now_s), [Note("took_over", {"modules": placement.names(heirs)})]


def place_modules(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Place all modules if any fact has changed; not while most devices have just vanished."""
    facts = planner_input.facts_of(state)
    if facts == state.placement.facts or state.cluster.mass_departure is not None:
        return state, []
    placement, notes = _place(state, facts, moment)
    return adopt(state, placement, moment.now_s), notes


def choose_spares(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Give leftover memory to standbys and replicas, when that is due."""
    due_s = spares_at_s(state)
    if due_s is None or moment.now_s < due_s:
        return state, []
    return replace(state, placement=with_spares(state, state.placement), spares_due_s=None), []


def spares_at_s(state: State) -> float | None:
    """The time to choose spares, if nothing changes before."""
    due = state.pace.spares and state.placement.moves is None and is_calm(state)
    return state.spares_due_s if due else None


def adopt(state: State, placement: CurrentPlacement, now_s: float) -> State:
    """The state with another placement; if copies differ, spares and planned moves wait their full time again."""
    placement = with_spares(state, placement, only_existing=True)
    before, due_s = state.placement, now_s + state.pace.calm_s
    if placement.where != before.where:
        return replace(state, placement=placement, spares_due_s=due_s, reviewed_s=now_s)
    if placement.spares == before.spares and state.spares_due_s is not None:
        due_s = state.spares_due_s  # otherwise a device that comes and goes would delay the spares for ever
    return replace(state, placement=placement, spares_due_s=due_s)


def is_calm(state: State) -> bool:
    """Whether every module's active copy serves."""
    devices = state.cluster.devices
    return all(home in devices and devices[home].serves(key) for key, home in state.placement.where.items())


def with_spares(state: State, placement: CurrentPlacement, *, only_existing: bool = False) -> CurrentPlacement:
    """The placement with its spares: newly chosen ones, or only copies that exist already."""
    facts = placement.facts
    chosen = spares(
        list(planner_input.candidate_specs(state, facts).values()),
        planner_input.measured_tasks(placement),
        placement.where,
        load_s=planner_input.longest_loads_s(state),
        barred=planner_input.spare_constraints(state, facts, placement.where),
        at_hand=planner_input.copies_at_hand(state),
        kept=placement.spares,
        pinned=placement.moves.to if placement.moves else None,
        only=planner_input.existing_copies(state) if only_existing else None,
    )
    return replace(placement, spares=chosen if chosen != placement.spares else placement.spares)


def log_placement_changes(before: CurrentPlacement, after: CurrentPlacement, generation: int) -> list[Action]:
    """The log lines about moved and dropped modules, changed spares and withdrawn tasks."""
    notes: list[Action] = []
    moved = after.names({key: home for key, home in after.where.items() if before.where.get(key) != home})
    dropped = sorted(before.modules[key][0] for key in before.where if key not in after.where)
    if moved or dropped:
        notes.append(Note("placed", {"generation": generation, "moved": moved, "dropped": dropped}))
    if before.spares != after.spares:
        kinds = (("standby", after.spares.standby), ("replicas", after.spares.replicas))
        named = {kind: {after.modules[key][0]: [*homes] for key, homes in copies.items()} for kind, copies in kinds}
        notes.append(Note("spares", named))
    withdrawn = {task: why for task, why in after.refused.items() if before.refused.get(task) != why}
    return [*notes, *(Note("task_withdrawn", {"task": task, "why": why}) for task, why in withdrawn.items())]


def _place(state: State, facts: Facts, moment: Moment) -> tuple[CurrentPlacement, list[Action]]:
    before = state.placement
    candidates = planner_input.candidate_specs(state, facts)
    served = {task.task for task in before.tasks}
    served |= {task for task, route in state.retained_routes.items() if route.available}
    keep = planner_input.copies_to_adopt(state, facts.barred)
    keep |= {key: home for key, home in before.where.items() if home in candidates}

    def attempt(credit: dict[DeviceId, int], bars: Bars) -> tuple[Placement, dict[str, str]]:
        devices = [
            spec.model_copy(update={"memory_bytes": spec.memory_bytes + credit[name]}) if name in credit else spec
            for name, spec in candidates.items()
        ]
        placement, errors = place_most(
            devices,
            planner_input.with_measured_footprints(facts.tasks, facts.footprints),
            keep=keep,
            served=served,
            barred=bars,
            at_hand=planner_input.copies_at_hand(state),
            enough=moment.enough,
        )
        return placement, {name: no_fit_reason(error, facts.tasks, bars) for name, error in errors.items()}

    def placed_with(bars: Bars) -> tuple[Placement, dict[str, str]]:
        credit = planner_input.memory_credit(state, before, facts)
        placement, refused = attempt(credit, bars)
        if any(placement.where.get(key) != home for key, home in before.where.items() if home in credit):
            return attempt({}, bars)  # the credit was given for copies that stay
        return placement, refused

    placement, refused = placed_with(planner_input.placement_constraints(state, facts, keep))
    notes: list[Action] = []
    doubtful = {name for name in facts.doubts if not state.cluster.devices[name].draining}
    if refused and doubtful:
        waived = placed_with(planner_input.placement_constraints(state, facts, keep, only_drained=True))
        if len(waived[1]) < len(refused):
            notes.append(Note("doubts_waived", {"devices": {name: facts.doubts[name] for name in sorted(doubtful)}}))
            placement, refused = waived
    why = {
        key: before.why[key]
        if before.where.get(key) == home and key in before.why
        else _sentence(explain(placement, key))
        for key, home in placement.where.items()
    }
    moves = before.moves if before.moves and before.moves.to.keys() <= placement.where.keys() else None
    return CurrentPlacement(facts, placement.where, why, refused, before.spares, moves), notes


def _sentence(explanation: Explanation) -> str:
    others = [f"{device}: {reason}" for device, reason in explanation.rejected.items()]
    if len(others) > _REJECTED_SHOWN:
        others[_REJECTED_SHOWN:] = [f"and {len(others) - _REJECTED_SHOWN} more"]
    return "; ".join([explanation.why, *others])
