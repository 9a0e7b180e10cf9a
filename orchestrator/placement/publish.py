"""What is said to whom: routes, assignments, and what is taken away from the broker.

Owns the step from the standing placement to messages, and the memory of what was said. Decides nothing.

Invariants:
- a thing is said when it differs from what was said last, or when its device reports that it doesn't obey;
- routes go out before assignments, so that nobody is sent to a copy that is about to go;
- an assignment lists what serves before standbys, and of each what most tasks need first: devices load in that order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from broker.protocol.messages import AssignedModule, Assignment, Route
from broker.protocol.specs import DeviceId, ModuleKey, TaskName
from orchestrator.events import (
    Action,
    ClearAssignment,
    ClearRoute,
    Event,
    PublishAssignment,
    PublishDrain,
    PublishRoute,
    PublishSpec,
    RequestRebirth,
)
from orchestrator.leadership.leader import lead
from orchestrator.membership.cluster import DrainReceived, HeartbeatReceived, apply
from orchestrator.placement.deployability import odd
from orchestrator.placement.routes import no_route, route_of, same_route, second_door
from orchestrator.state import Moment, Role, Standing, State

_MISSED_AFTER_INTERVALS = 3.0  # a device that doesn't report its assignment by then didn't get it
_REPEAT_S = 5.0  # at most that often


def request_rebirth(state: State, seen: Event, now_s: float) -> tuple[State, list[Action]]:
    """Ask a device that beats, and whose birth isn't known, to announce itself; not more often than it may take."""
    if not isinstance(seen, HeartbeatReceived) or seen.device in state.cluster.devices or not state.settled:
        return state, []
    asked_s = {name: at_s for name, at_s in state.asked_s.items() if now_s - at_s < _REPEAT_S}
    if seen.device in asked_s:
        return state, []
    return replace(state, asked_s={**asked_s, seen.device: now_s}), [RequestRebirth(seen.device)]


def everything(state: State) -> tuple[State, list[Action]]:
    """Publish all again: the broker may have lost its memory.

    Each spec goes before its route, here as everywhere: a route without a spec means that the task was undeployed.
    """
    lost = lost_specs(state)
    state = replace(state, delivered=state.delivered | set(lost))
    return state, [
        *lead(state),
        *(PublishSpec(state.tasks[task]) for task in lost),
        *(PublishRoute(route) for task, route in sorted(state.routes.items()) if task in state.delivered),
        *(PublishAssignment(device, said) for device, said in sorted(state.assignments.items())),
    ]


def restore_lost_retained_topics(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Ask what became of the specs and drains that didn't come anew with this link.

    A broker sends specs before routes, and got each spec before our route. So if it kept its memory and has the route
    without the spec, the spec was taken away while we were deaf. A broker that lost its memory gets the spec back, and
    the order to drain a device. The tasks may be those that an earlier term stored.
    """
    actions: list[Action] = []
    if state.drains:
        cluster = state.cluster
        for device in () if state.broker_kept_memory else sorted(state.drains):
            actions.append(PublishDrain(device))
            cluster = apply(cluster, DrainReceived(device, drain=True), moment.now_s)
        state = replace(state, cluster=cluster, drains=frozenset())
    lost = lost_specs(state)
    actions += [PublishSpec(state.tasks[task]) for task in lost]
    for task in (state.tasks.keys() | state.invalid.keys()) - state.delivered - set(lost):
        state = undeployed(state, task)
    return replace(state, delivered=frozenset(state.tasks.keys() | state.invalid.keys())), actions


def lost_specs(state: State) -> list[TaskName]:
    """The tasks of which the broker sent neither the spec nor a route over this link, sorted by name."""
    return sorted(state.tasks.keys() - state.delivered - state.remembered.keys())


def undeployed(state: State, task: TaskName) -> State:
    """Without a task, whether it was valid or not."""
    tasks = {other: spec for other, spec in state.tasks.items() if other != task}
    return replace(state, tasks=tasks, invalid={other: why for other, why in state.invalid.items() if other != task})


def publish_routes(state: State, _moment: Moment) -> tuple[State, list[Action]]:
    """Say the way of each task, where it changed."""
    actions: list[Action] = []
    routes, highest = dict(state.routes), state.group
    for task in sorted(state.tasks.keys() | state.invalid.keys()):
        said = routes.get(task)
        route = _route(state, task, said.second_door if said else ())
        new_door = said is None or (said.front_door, said.second_door) != (route.front_door, route.second_door)
        group = highest + 1 if said is None or new_door else said.group
        route = route.model_copy(update={"group": group})
        if said is None or not same_route(said, route):
            actions.append(PublishRoute(route))
            routes[task], highest = route, max(highest, group)
    return replace(state, routes=routes, group=highest), actions


def publish_assignments(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Tell each device what to hold, if that changed, if this term told it nothing yet, or if it didn't get it."""
    actions: list[Action] = []
    assignments = dict(state.assignments)
    standing = state.standing
    shared = Counter(m.key for task in standing.tasks for m in {m.key: m for m in task.modules.values()}.values())
    for device in sorted({alive.id for alive in state.cluster.alive()} | assignments.keys()):
        held = standing.held_by.get(device, {})
        said = assignments.get(device)
        wanted = {key: (standing.modules[key][1], role) for key, role in held.items()}
        stays = state.draining.stays.get(device) if state.draining else None
        same = said is not None and {m.spec.key: (m.spec, m.role) for m in said.modules} == wanted
        if said is not None and same and said.stays == stays:
            if _missed(state, device, said, moment.now_s):
                actions.append(PublishAssignment(device, said))
            continue
        modules = tuple(
            AssignedModule(module=standing.modules[key][0], spec=spec, role=role, why=_why(standing, key, device, role))
            for key, (spec, role) in sorted(wanted.items(), key=lambda item: (item[1][1], -shared[item[0]]))
        )
        assignments[device] = Assignment(epoch=state.epoch, generation=state.generation, modules=modules, stays=stays)
        actions.append(PublishAssignment(device, assignments[device]))
    told_s = {action.device: moment.now_s for action in actions if isinstance(action, PublishAssignment)}
    return replace(state, assignments=assignments, told_s={**state.told_s, **told_s}), actions


def clear_outdated_topics(state: State, _moment: Moment) -> tuple[State, list[Action]]:
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


def _route(state: State, task: TaskName, second: tuple[DeviceId, ...]) -> Route:
    spec, standing = state.tasks.get(task), state.standing
    if spec is None:
        return no_route(task, state.term, state.invalid[task])
    why = standing.facts.unservable.get(task) or standing.refused.get(task)
    if why is not None:
        return no_route(task, state.term, why)
    try:
        route = route_of(spec, state.term, standing.actives, state.cluster.devices)
        second = second_door(spec, route.front_door, state.cluster.devices, second)
        return route.model_copy(update={"second_door": second}) if second else route
    except (ValueError, ArithmeticError) as error:  # one odd spec or profile must not stop the other tasks
        return no_route(task, state.term, f"its route can't be written: {odd(error)}; mend its spec")


def _why(standing: Standing, key: ModuleKey, device: DeviceId, role: Role) -> str:
    home = standing.where[key]
    if role == "active":
        return standing.why[key] if device == home else f"serves beside {home}, which alone can't keep up with the rate"
    if standing.moves is not None and standing.moves.to.get(key) == device:
        if standing.moves.drains:
            return f"takes over from {home}, which is emptied, once it is loaded"
        return f"takes over from {home} once it is loaded: the round gains {standing.moves.gain_s:.3g} s"
    return f"takes over at once if {home} dies"


def _missed(state: State, device: DeviceId, said: Assignment, now_s: float) -> bool:
    """Whether a device has had the time to obey its assignment, and reports that it doesn't."""
    known, told_s = state.cluster.devices.get(device), state.told_s.get(device, now_s)
    if known is None or not known.alive or known.seq < 0:
        return False
    if known.heard_s - told_s <= _MISSED_AFTER_INTERVALS * state.cluster.heartbeat_interval_s:
        return False
    differs = known.held.keys() != {module.spec.key for module in said.modules}
    return now_s - told_s >= _REPEAT_S and (differs or known.fence < (said.epoch, said.generation))
