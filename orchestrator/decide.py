"""What the orchestrator does next: events in, actions out.

Owns the reconciler: ``RULES``, the only code that places, moves and withdraws. It compares what is deployed with what
devices report. Knows nothing of topics, bytes, threads or clocks: ``now_s`` comes in, in seconds of any steady clock.

Invariants:
- idempotent: the same event again gives no actions;
- what was said is compared with what devices report; an assignment that got lost is said again;
- the generation grows by one with each change of the placement; then all routes go out anew, before the assignments;
- nothing is placed while our link is down, nor until ``settle_s`` after it came up: retained specs, births and first
  heartbeats arrive in that time, so that a restart adopts what devices hold instead of moving it;
- what is placed stays until its device goes, refuses it, or no task needs it any more, or else a task would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from pydantic import ValidationError

from broker.codec import MAX_MESSAGE_BYTES
from broker.errors import NoDeviceFits
from broker.messages import AssignedModule, Assignment, Route
from broker.specs import DeviceId, ModuleKey, TaskName, TaskSpec, describe
from broker.transport import LinkDown, LinkUp
from orchestrator import cluster as devices
from orchestrator.cluster import Cluster, ClusterEvent, HeartbeatSeen
from orchestrator.events import (
    Action,
    ClearAssignment,
    ClearRoute,
    Event,
    Note,
    OrchestratorSeen,
    PublishAssignment,
    PublishRoute,
    PublishSpec,
    RequestSeen,
    RouteSeen,
    TaskDeployed,
    TaskEvent,
    TaskInvalid,
    TaskUndeployed,
)
from orchestrator.lead import heed, lead, obeys_another
from orchestrator.lobby import answer
from orchestrator.placement import Explanation, distinct_modules, place_most
from orchestrator.routes import Term, no_route, route_of, same_way, too_large
from orchestrator.state import Facts, Standing, State

_V = TypeVar("_V")
_REJECTED_SHOWN = 4  # other devices named in an assignment's reason; a thousand of them must still fit a message
_SESSIONS_KEPT = 16  # of our own links: more than the broker can have words of under way
_MISSED_AFTER_INTERVALS = 3.0  # a device that doesn't report its assignment by then didn't get it
_REPEAT_S = 5.0  # at most that often


def next_deadline_s(state: State) -> float | None:
    """When a ``Tick`` is due if nothing happens before."""
    due = (state.settles_at_s, devices.next_deadline_s(state.cluster))
    return min((at_s for at_s in due if at_s is not None), default=None)


def decide(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """Take in one event; if enough is known, reconcile.

    Args:
        state: what was known.
        event: what happened.
        now_s: the steady clock.

    Returns:
        What is known now, and what to do, in this order.
    """
    if isinstance(event, RequestSeen):
        return state, answer(state, event, now_s)
    if isinstance(event, OrchestratorSeen):
        return heed(state, event.message)
    if isinstance(event, HeartbeatSeen) and (resign := obeys_another(state, event.device, event.message)):
        return state, resign
    before, state = state, _absorb(state, event, now_s)
    actions: list[Action] = _tell_of_devices(before.cluster, state.cluster)
    if isinstance(event, LinkUp):
        actions += _announce(state)
    if state.settled:
        for rule in RULES:
            state, more = rule(state, now_s)
            actions += more
    told_s = {action.device: now_s for action in actions if isinstance(action, PublishAssignment)}
    return replace(state, told_s={**state.told_s, **told_s}) if told_s else state, actions


# --- what we know ---


def _absorb(state: State, event: ClusterEvent | TaskEvent, now_s: float) -> State:
    match event:
        case LinkUp():
            sessions = (*state.sessions, event.session)[-_SESSIONS_KEPT:]
            state = replace(state, link=event, settles_at_s=now_s + state.settle_s, sessions=sessions)
            state = replace(state, delivered=frozenset(), outlived=False, remembered={})
        case LinkDown():
            state = replace(state, link=None, settles_at_s=None)
        case TaskDeployed(spec):
            if (odd := _unroutable(spec)) is not None:
                return _absorb(state, TaskInvalid(spec.task, odd), now_s)
            tasks, invalid = {**state.tasks, spec.task: spec}, _less(state.invalid, spec.task)
            state = replace(state, tasks=tasks, invalid=invalid, delivered=state.delivered | {spec.task})
        case TaskInvalid(task, why):
            invalid = {**state.invalid, task: why}
            delivered = state.delivered | {task}
            state = replace(state, tasks=_less(state.tasks, task), invalid=invalid, delivered=delivered)
        case TaskUndeployed(task):
            state = _undeployed(state, task)
        case RouteSeen(task):
            state = replace(state, remembered={**state.remembered, task: event})
    if isinstance(event, ClusterEvent):
        state = replace(state, cluster=devices.apply(state.cluster, event, now_s))
    if state.settles_at_s is not None and now_s >= state.settles_at_s:
        state = replace(state, settles_at_s=None)
    return state


def _unroutable(spec: TaskSpec) -> str | None:
    """Why no route could ever be written for a task: then no device must be told of its modules either."""
    try:
        route_of(spec, Term(0, 0), {}, {})
    except (ValueError, ArithmeticError) as error:
        return f"its route can't be written: {_odd(error)}; mend its spec"
    return None


def _undeployed(state: State, task: TaskName) -> State:
    return replace(state, tasks=_less(state.tasks, task), invalid=_less(state.invalid, task))


def _less(mapping: Mapping[TaskName, _V], name: TaskName) -> Mapping[TaskName, _V]:
    return {other: value for other, value in mapping.items() if other != name}


def _tell_of_devices(before: Cluster, after: Cluster) -> list[Action]:
    notes: list[Action] = []
    for name, device in after.devices.items():
        known = before.devices.get(name)
        if known is device:
            continue
        was = (known.status, known.health, known.beating) if known else None
        if was != (device.status, device.health, device.beating):
            fields = {"device": name, "status": device.status, "health": device.health, "alive": device.alive}
            notes.append(Note("device_changed", fields))
        for key, error in device.failed.items():
            if known is None or key not in known.failed:
                notes.append(Note("module_failed", {"device": name, "module": key, "error": error}))
    return notes


def _announce(state: State) -> list[Action]:
    """Say all again: the broker may have lost its memory."""
    return [
        *lead(state),
        *(PublishRoute(route) for _, route in sorted(state.routes.items())),
        *(PublishAssignment(device, said) for device, said in sorted(state.assignments.items())),
    ]


# --- the reconciler's rules ---


def _make_up_for_silence(state: State, _now_s: float) -> tuple[State, list[Action]]:
    """Ask what became of the specs that didn't come anew with this link.

    A broker sends specs before routes, and got each spec before our route. So if it kept its memory and has the route
    without the spec, the spec was taken away while we were deaf. A broker that lost its memory gets the spec back.
    """
    actions: list[Action] = []
    for task in sorted((state.tasks.keys() | state.invalid.keys()) - state.delivered):
        if task in state.invalid or (state.outlived and task in state.remembered):
            state = _undeployed(state, task)
        else:
            actions.append(PublishSpec(state.tasks[task]))
    return replace(state, delivered=frozenset(state.tasks.keys() | state.invalid.keys())), actions


def _place_modules(state: State, _now_s: float) -> tuple[State, list[Action]]:
    """Place what must be placed, if any fact changed."""
    facts = _facts(state)
    if facts == state.standing.facts:
        return state, []
    standing = _place(state, facts)
    generation = state.generation + (standing.holdings != state.standing.holdings)
    notes = _tell_of_placement(state.standing, standing, generation)
    return replace(state, standing=standing, generation=generation), notes


def _publish_routes(state: State, _now_s: float) -> tuple[State, list[Action]]:
    """Say the way of each task, where it changed."""
    actions: list[Action] = []
    routes, highest = dict(state.routes), state.group
    for task in sorted(state.tasks.keys() | state.invalid.keys()):
        route, said = _route(state, task), routes.get(task)
        new_door = said is None or said.front_door != route.front_door
        group = highest + 1 if said is None or new_door else said.group
        route = route.model_copy(update={"group": group})
        if said is None or not same_way(said, route):
            actions.append(PublishRoute(route))
            routes[task], highest = route, max(highest, group)
    return replace(state, routes=routes, group=highest), actions


def _publish_assignments(state: State, now_s: float) -> tuple[State, list[Action]]:
    """Tell each device what to hold, if that changed, if this term told it nothing yet, or if it didn't get it."""
    actions: list[Action] = []
    assignments = dict(state.assignments)
    for device in sorted({alive.id for alive in state.cluster.alive()} | assignments.keys()):
        wanted = state.standing.held_by(device)
        said = assignments.get(device)
        if said is not None and {module.spec.key: module.spec for module in said.modules} == wanted:
            if _missed(state, device, said, now_s):
                actions.append(PublishAssignment(device, said))
            continue
        modules = tuple(
            AssignedModule(module=state.standing.modules[key][0], spec=spec, why=_why(state.standing.explain[key]))
            for key, spec in wanted.items()
        )
        assignments[device] = Assignment(epoch=state.epoch, generation=state.generation, modules=modules)
        actions.append(PublishAssignment(device, assignments[device]))
    return replace(state, assignments=assignments), actions


def _clear_what_is_gone(state: State, _now_s: float) -> tuple[State, list[Action]]:
    """Take away the routes, ours and those of earlier terms, without a task, and assignments of forgotten devices."""
    without = sorted((state.routes.keys() | state.remembered.keys()) - state.tasks.keys() - state.invalid.keys())
    forgotten = sorted(state.assignments.keys() - state.cluster.devices.keys())
    state = replace(
        state,
        routes={task: route for task, route in state.routes.items() if task not in without},
        remembered={},
        assignments={device: said for device, said in state.assignments.items() if device not in forgotten},
        told_s={device: at_s for device, at_s in state.told_s.items() if device not in forgotten},
    )
    return state, [*map(ClearRoute, without), *map(ClearAssignment, forgotten)]


Rule = Callable[[State, float], tuple[State, list[Action]]]
RULES: Sequence[Rule] = (
    _make_up_for_silence,
    _place_modules,
    _publish_routes,
    _publish_assignments,
    _clear_what_is_gone,
)


def _missed(state: State, device: DeviceId, said: Assignment, now_s: float) -> bool:
    """Whether a device has had the time to obey its assignment, and reports that it doesn't."""
    known, told_s = state.cluster.devices.get(device), state.told_s.get(device, now_s)
    if known is None or not known.alive or known.seq < 0:
        return False
    if known.heard_s - told_s <= _MISSED_AFTER_INTERVALS * state.cluster.heartbeat_interval_s:
        return False
    absent = any(module.spec.key not in known.held for module in said.modules)
    return now_s - told_s >= _REPEAT_S and (absent or known.fence < (said.epoch, said.generation))


def _facts(state: State) -> Facts:
    alive = state.cluster.alive()
    barred: dict[ModuleKey, dict[DeviceId, str]] = {}
    for device in alive:
        for key, error in device.barred.items():
            barred.setdefault(key, {})[device.id] = f"it failed there: {error}"
    return Facts(
        candidates=tuple((device.id, device.profile) for device in alive if device.may_hold),
        tasks=tuple(task for _, task in sorted(state.tasks.items()) if _unservable(state, task) is None),
        barred=barred,
    )


def _place(state: State, facts: Facts) -> Standing:
    candidates = [state.cluster.devices[name].spec for name, _ in facts.candidates]
    standing = state.standing
    served = {task.task for task in standing.facts.tasks if task.task not in standing.refused}
    served |= {task for task, route in state.remembered.items() if route.available}
    placement, refusals = place_most(
        candidates, facts.tasks, keep={**_adopted(state), **standing.where}, served=served, barred=facts.barred
    )
    placed = [task for task in facts.tasks if task.task not in refusals]
    refused = {name: _refusal(error, state.tasks[name], facts) for name, error in refusals.items()}
    return Standing(facts, placement.where, distinct_modules(placed), placement.explain, refused)


def _adopted(state: State) -> dict[ModuleKey, DeviceId]:
    """Modules that live devices hold already; of several devices, one that is ready, then the first by id."""
    held = [
        (module.state != "ready", device.id, key)
        for device in state.cluster.alive()
        for key, module in device.held.items()
        if module.state in {"ready", "loading"}
    ]
    return {key: device for _, device, key in sorted(held, reverse=True)}


def _refusal(error: NoDeviceFits, task: TaskSpec, facts: Facts) -> str:
    barred = facts.barred.get(task.modules[error.module].key, {})
    failures = ", ".join(f"{device}: {why}" for device, why in sorted(barred.items()))
    if not failures:
        return str(error)
    if not error.short_bytes:
        return f"no device can run {error.module}: {failures}; mend the cause; they are tried again after a while"
    return f"{error} ({failures})"


def _route(state: State, task: TaskName) -> Route:
    spec = state.tasks.get(task)
    if spec is None:
        return no_route(task, state.term, state.invalid[task])
    why = _unservable(state, spec) or state.standing.refused.get(task)
    if why is not None:
        return no_route(task, state.term, why)
    try:
        return route_of(spec, state.term, state.standing.where, state.cluster.devices)
    except (ValueError, ArithmeticError) as error:  # one odd spec or profile must not stop the other tasks
        return no_route(task, state.term, f"its route can't be written: {_odd(error)}; mend its spec")


def _unservable(state: State, task: TaskSpec) -> str | None:
    """Why this task can't be served wherever its modules are placed."""
    return _contradiction(state, task) or _too_large(state, task)


def _contradiction(state: State, task: TaskSpec) -> str | None:
    """Two tasks describe one module differently: it can be held only one way, and who was there first is served."""
    for other in state.tasks.values():
        if other.task == task.task:
            return None
        known = {module.key: module for module in other.modules.values()}
        for name, module in task.modules.items():
            first = known.get(module.key, module)
            for field_name in ("family", "memory_bytes"):
                ours, theirs = getattr(module, field_name), getattr(first, field_name)
                if ours != theirs:
                    return (
                        f"{name} has {field_name} {ours} here and {theirs} in the task {other.task}, deployed first, "
                        "for the same weights: mend one of the two files"
                    )
    return None


def _too_large(state: State, task: TaskSpec) -> str | None:
    broker_bytes = state.link.max_packet_bytes if state.link else None
    try:
        return too_large(task, min(MAX_MESSAGE_BYTES, broker_bytes or MAX_MESSAGE_BYTES))
    except (ValueError, ArithmeticError) as error:
        return f"its sizes can't be reckoned with: {_odd(error)}; mend its spec"


def _odd(error: Exception) -> str:
    return ": ".join(describe(error.errors()[0])) if isinstance(error, ValidationError) else str(error)


def _why(explanation: Explanation) -> str:
    others = [f"{device}: {reason}" for device, reason in explanation.rejected.items()]
    if len(others) > _REJECTED_SHOWN:
        others[_REJECTED_SHOWN:] = [f"and {len(others) - _REJECTED_SHOWN} more"]
    return "; ".join([explanation.why, *others])


def _tell_of_placement(before: Standing, after: Standing, generation: int) -> list[Action]:
    notes: list[Action] = []
    moved = {after.modules[key][0]: home for key, home in after.where.items() if before.where.get(key) != home}
    dropped = sorted(before.modules[key][0] for key in before.where if key not in after.where)
    if moved or dropped:
        notes.append(Note("placed", {"generation": generation, "moved": moved, "dropped": dropped}))
    for task, why in after.refused.items():
        if before.refused.get(task) != why:
            notes.append(Note("task_withdrawn", {"task": task, "why": why}))
    return notes
