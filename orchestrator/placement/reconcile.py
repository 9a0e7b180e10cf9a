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

from broker.protocol.specs import DeviceId, ModuleKey
from orchestrator.events import Action, Note
from orchestrator.membership.device import Fitness
from orchestrator.placement import births, planner_input, planning, revisions
from orchestrator.placement.deployability import is_upcoming
from orchestrator.planner.copies import copy_number, original_key
from orchestrator.planner.plans import PlacementPlan, PlacementProblem, SparesPlan, SparesProblem
from orchestrator.planner.spares import NO_SPARES, spares
from orchestrator.state import CurrentPlacement, Facts, Moment, Planning, State

TOOK_OVER = "took over from"  # begins the reason of a copy that was ready and replaced one that can't serve


def take_over(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Make a spare the active copy where the active copy can't serve and the spare can."""
    placement, devices = state.placement, state.cluster.devices
    heirs = {
        key: heir
        for key, home in placement.where.items()
        if not (home in devices and devices[home].keeps(original_key(key)))
        and (heir := _heir(state, key, home)) is not None
    }
    if not heirs:
        return state, []
    why = {
        key: f"{TOOK_OVER} {home}{_why_left(state, home, key)}" for key, home in placement.where.items() if key in heirs
    }
    placement = replace(placement, where={**placement.where, **heirs}, why={**placement.why, **why})
    return adopt(state, placement, moment.now_s), [Note("took_over", {"modules": placement.names(heirs)})]


def _heir(state: State, copy: ModuleKey, home: DeviceId) -> DeviceId | None:
    """The device whose spare takes over: one that is always on, if any.

    A spare on another one serves anyway. It stays a spare while a device that is always on loads the active copy.
    """
    devices, key = state.cluster.devices, original_key(copy)
    ready = [name for name in state.placement.spares.of(copy) if name in devices and devices[name].keeps(key)]
    always = [name for name in ready if devices[name].always_on]
    known = devices.get(home)
    is_loading = known is not None and known.always_on and known.fitness > Fitness.UNRESPONSIVE
    if known is not None and is_loading and key not in known.barred:
        ready = always
    return next(iter(always or ready), None)


def place_modules(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Have all modules placed if any fact has changed; not while most devices have just vanished."""
    is_mass_departure = state.cluster.mass_departure is not None
    change = births.change_of(state, moment)
    if change == "nothing" or (births.waits(state, change, moment.now_s) and not is_mass_departure):
        return (state if change == "nothing" else _with_outstanding(state, "births")), []
    state, asked = planning.taken(state, "placement")
    facts = planner_input.facts_of(state)
    if is_mass_departure:
        return _with_outstanding(state, "more"), []
    if facts == state.placement.facts:
        return _with_outstanding(state, "nothing"), []
    notes: list[Action] = []
    if asked is not None and isinstance(asked.plan, PlacementPlan):
        state, notes = _use_plan(state, facts, asked, asked.plan, moment)
        facts = planner_input.facts_of(state)  # a module with an active copy is not refused too often
    state = _with_outstanding(state, births.outstanding(state.placement.facts, facts))
    if state.outstanding == "nothing" or births.waits(state, state.outstanding, moment.now_s):
        return state, notes
    if not facts.tasks:
        return _adopt_without_tasks(_begin_waiting(state, moment), facts, moment), notes
    number = state.problems
    state, more = planning.request(state, moment, "placement", facts, lambda: _placement_problem(state, facts))
    return (state if state.problems == number else _begin_waiting(state, moment)), [*notes, *more]


def switch_revisions(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Let new revisions of tasks take over that are ready, and have the modules placed that are needed now."""
    after, notes = revisions.take_over(state) if state.served else (state, [])
    if after is state:
        return state, []
    after, actions = place_modules(after, moment)
    return after, [*notes, *actions]


def choose_spares(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Give leftover memory to standbys and replicas, when that is due."""
    state, asked = planning.taken(state, "spares")
    due_s, placement = spares_at_s(state), state.placement
    if due_s is None or moment.now_s < due_s:
        return state, []
    if asked is not None and isinstance(asked.plan, SparesPlan) and _still_fit(state, asked, asked.plan):
        chosen = asked.plan.spares
        if chosen != placement.spares:
            placement = replace(placement, spares=chosen)
        return replace(state, placement=placement, spares_due_s=None), []
    return planning.request(state, moment, "spares", placement.facts, lambda: _spares_problem(state))


def spares_at_s(state: State) -> float | None:
    """The time to choose spares, if nothing changes before."""
    due = state.pace.spares and state.placement.where and state.placement.moves is None and is_calm(state)
    due = due and state.cluster.mass_departure is None  # a plan may use devices that have just been forgotten
    return state.spares_due_s if due else None


def adopt(state: State, placement: CurrentPlacement, now_s: float) -> State:
    """The state with another placement; if copies differ, spares and planned moves wait their full time again."""
    placement = with_spares(state, placement)
    before, due_s = state.placement, now_s + state.pace.calm_s
    count = len(placement.facts.candidates)
    if count > len(before.facts.candidates) and count >= 2 * state.reviewed_devices:
        state = replace(state, doubled_s=now_s)
    if placement.where != before.where:
        return reviewed(replace(state, placement=placement, spares_due_s=due_s), now_s)
    if placement.spares == before.spares and state.spares_due_s is not None:
        due_s = state.spares_due_s  # otherwise a device that comes and goes would delay the spares for ever
    return replace(state, placement=placement, spares_due_s=due_s)


def is_calm(state: State) -> bool:
    """Whether every module's active copy serves."""
    devices = state.cluster.devices
    where = state.placement.where
    return all(home in devices and devices[home].serves(original_key(key)) for key, home in where.items())


def reviewed(state: State, now_s: float) -> State:
    """The state in which the next search for a better placement waits its full time, from now on."""
    return replace(state, reviewed_s=now_s, reviewed_devices=len(state.placement.facts.candidates))


def with_spares(state: State, placement: CurrentPlacement) -> CurrentPlacement:
    """The placement with its spares: of the copies that exist already, and those that moves need."""
    facts = placement.facts
    if not placement.where:
        return replace(placement, spares=NO_SPARES)
    drains = (placement.moves.to,) if placement.moves and placement.moves.drains else ()  # also to a doubtful device
    existing = planner_input.existing_copies(state)
    chosen = spares(
        list(planner_input.candidate_specs(state, facts).values()),
        planner_input.measured_copies(placement),
        placement.where,
        load_s=planner_input.longest_loads_s(state),
        barred=planner_input.spare_constraints(state, facts, placement.where, *drains),
        at_hand=planner_input.copies_at_hand(state, set[DeviceId]().union(*existing.values())),
        kept=placement.spares,
        pinned=placement.moves.to if placement.moves else None,
        only=existing,
    )
    return replace(placement, spares=chosen if chosen != placement.spares else placement.spares)


def log_placement_changes(before: CurrentPlacement, after: CurrentPlacement, generation: int) -> list[Action]:
    """The log lines about moved and dropped modules, changed spares and withdrawn tasks."""
    notes: list[Action] = []
    moved = after.names({key: home for key, home in after.where.items() if before.where.get(key) != home})
    dropped = sorted(before.name(key) for key in before.where if key not in after.where)
    if moved or dropped:
        notes.append(Note("placed", {"generation": generation, "moved": moved, "dropped": dropped}))
    if before.spares != after.spares:
        kinds = (("standby", after.spares.standby), ("replicas", after.spares.replicas))
        named = {kind: {after.name(key): [*homes] for key, homes in copies.items()} for kind, copies in kinds}
        notes.append(Note("spares", named))
    withdrawn = {task: why for task, why in after.refused.items() if before.refused.get(task) != why}
    return [*notes, *(Note("task_withdrawn", {"task": task, "why": why}) for task, why in withdrawn.items())]


def _with_outstanding(state: State, change: births.Change) -> State:
    return state if state.outstanding == change else replace(state, outstanding=change)


def _begin_waiting(state: State, moment: Moment) -> State:
    """The state in which, after a plan for births, the next ones wait for each other."""
    return replace(state, births_from_s=moment.now_s + births.SHARE_S) if state.outstanding == "births" else state


def _adopt_without_tasks(state: State, facts: Facts, moment: Moment) -> State:
    """The state with the facts of a site that has nothing to place: no plan is needed for that."""
    return _with_outstanding(adopt(state, CurrentPlacement(facts), moment.now_s), "nothing")


def _placement_problem(state: State, facts: Facts) -> PlacementProblem:
    before = state.placement
    candidates = planner_input.candidate_specs(state, facts)
    keep = planner_input.copies_to_adopt(state, facts.barred)
    keep |= {key: home for key, home in before.where.items() if home in candidates}
    order = {key: (planner_input.is_draining(state, home), copy_number(key)) for key, home in keep.items()}
    keep = {key: keep[key] for key in sorted(keep, key=order.__getitem__)}  # draining ones are taken last
    doubtful = any(not planner_input.is_draining(state, name) for name in facts.doubts)
    return PlacementProblem(
        devices=tuple(candidates.values()),
        tasks=tuple(planner_input.with_measured_footprints(facts.tasks, facts.footprints)),
        at_hand=planner_input.copies_at_hand(state),
        barred=planner_input.placement_constraints(state, facts, keep),
        keep=keep,
        where=before.where,
        explained=frozenset(before.where.keys() & before.why.keys()),
        absent={device.id: why for device in state.cluster.devices.values() if (why := device.absence) is not None},
        credit=planner_input.memory_credit(state, before, facts),
        waived=planner_input.placement_constraints(state, facts, keep, least=Fitness.UNRESPONSIVE)
        if doubtful
        else None,
        upcoming=frozenset(task.task for task in facts.tasks if is_upcoming(task.task)),
    )


def _use_plan(
    state: State, facts: Facts, asked: Planning, plan: PlacementPlan, moment: Moment
) -> tuple[State, list[Action]]:
    """The state with a plan that still stands in force; else the state as it is."""
    where = planning.standing_homes(state, facts, asked, plan)
    if where is None:
        return state, [Note("plan_outdated", {"number": asked.number})]
    before = state.placement
    stays = {key for key, home in where.items() if before.where.get(key) == home and key in before.why}
    why = {key: before.why[key] if key in stays else plan.why.get(key, "stays where it is") for key in where}
    for key, origin in before.where.items():
        if key in where and where[key] != origin:
            why[key] = f"moved from {origin}{_why_left(state, origin, key)}: {why[key]}"
    same = plan.further == before.further
    moves = before.moves if same and before.moves and before.moves.to.keys() <= where.keys() else None
    notes: list[Action] = []
    if plan.waived:
        doubts = {
            name: why for name, why in sorted(asked.facts.doubts.items()) if not planner_input.is_draining(state, name)
        }
        notes.append(Note("doubts_waived", {"devices": doubts}))
    placement = CurrentPlacement(asked.facts, where, why, plan.refused, before.spares, moves, plan.further)
    return adopt(state, placement, moment.now_s), notes


def _why_left(state: State, home: DeviceId, key: ModuleKey) -> str:
    """The clause that says why a copy had to leave its device; empty if it might have stayed."""
    device, module = state.cluster.devices.get(home), original_key(key)
    if device is None or not device.alive:
        return ", which is gone" if device is None or device.always_on else ", which is away"
    if device.draining:
        return ", which is drained"
    if module in device.barred:
        return f", which can't load it ({device.barred[module]})"
    if device.unresponsive:
        return ", which doesn't answer"
    if not device.ready(module):
        return ", which doesn't hold it"
    return "" if device.always_on else ", which is on only sometimes"


def _spares_problem(state: State) -> SparesProblem:
    placement = state.placement
    facts = placement.facts
    return SparesProblem(
        devices=tuple(planner_input.candidate_specs(state, facts).values()),
        tasks=tuple(planner_input.measured_tasks(placement)),
        at_hand=planner_input.copies_at_hand(state),
        barred=planner_input.spare_constraints(state, facts, placement.where),
        where=placement.where,
        further=placement.further,
        load_s=planner_input.longest_loads_s(state),
        kept=placement.spares,
    )


def _still_fit(state: State, asked: Planning, plan: SparesPlan) -> bool:
    """Whether chosen spares fit beside the active copies, which are where they were."""
    placement = state.placement
    copies = {key: (home, *plan.spares.of(key)) for key, home in placement.where.items()}
    return planning.is_for(asked, state, "spares", placement.facts) and planner_input.fits(
        state, placement.facts, copies
    )
