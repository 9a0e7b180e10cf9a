"""Publishing: routes, assignments, and what the broker should forget.

Owns the step from the current placement to messages, and the memory of what was published. Decides nothing.

Invariants:
- a message is published when it differs from the last one, or when its device reports that it doesn't obey. The
  generation alone makes none. A route is also published again if it would be older than the assignment of a device that
  runs one of its nodes, because that device refuses plans that are older than its assignment;
- an assignment keeps its generation while only standbys are added or removed: no plan names them;
- a task has no route, and a device no assignment, before the first plan for it: until then those of an earlier term
  stand. A new spec of a task changes its route when its plan has come;
- routes are sent before assignments: no request is sent to a copy about to go;
- an assignment lists active copies before standbys, and first what most tasks need: devices load in that order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from broker.protocol.messages import AssignedModule, Assignment, Route
from broker.protocol.specs import DeviceId, ModuleKey, ModuleSpec, TaskName
from broker.protocol.topics import DEVICE_ASSIGNMENT, TASK_ROUTE
from broker.transport.port import SHARED
from orchestrator import events
from orchestrator.events import Action, Event, HeartbeatReceived
from orchestrator.membership.device import Device, is_like
from orchestrator.placement.deployability import describe_error
from orchestrator.placement.first_loads import first_load
from orchestrator.placement.revisions import served_spec
from orchestrator.placement.routes import backup_coordinators, build_route, has_drifted, same_route, unavailable_route
from orchestrator.planner.modules import with_variants
from orchestrator.state import CurrentPlacement, Moment, Role, State

_MISSED_AFTER_INTERVALS = 3.0  # a device that doesn't report its assignment by then didn't get it
_REPEAT_S = 5.0  # at most that often
_MAX_REBIRTHS = 1_000  # requested in that time
_Modules = Mapping[ModuleKey, tuple[ModuleSpec, Role, str | None]]  # with the revision of the task that needs each


def request_rebirth(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """Ask a device that sends heartbeats, and whose birth isn't known, for its birth; not at each heartbeat."""
    if not isinstance(event, HeartbeatReceived) or event.device in state.cluster.devices or not state.settled:
        return state, []
    requested_s = {name: at_s for name, at_s in state.rebirth_requested_s.items() if now_s - at_s < _REPEAT_S}
    if event.device in requested_s or len(requested_s) >= _MAX_REBIRTHS:
        return state, []
    state = replace(state, rebirth_requested_s={**requested_s, event.device: now_s})
    return state, [events.RequestRebirth(event.device)]


def concerns(state: State, known: Device | None, name: DeviceId) -> bool:
    """Whether a changed device differs from how it was known in anything that placement, routes or assignments use."""
    device = state.cluster.devices.get(name)
    if known is None or device is None or not is_like(device, known):
        return True
    return device.measured != known.measured and any(
        has_drifted(state.routes[task], device)
        for task in _tasks_shared_by(state.placement, name)
        if task in state.routes
    )


def publish_routes(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Publish the route of each task where it changed, or where a device has a newer assignment by now."""
    actions: list[Action] = []
    routes: dict[TaskName, Route] = {}
    highest = state.group
    reassigned = _reassigned(state, moment)
    for task in sorted(state.tasks.keys() | state.invalid.keys()):
        last = state.routes.get(task)
        outdated = last is not None and _is_older_than_an_assignment(state, last, reassigned)
        if not outdated and _route_stays(state, moment, task):
            continue
        route = _route(state, task, last)
        if route is None:
            continue
        same_doors = last is not None and (last.front_door, last.second_door) == (route.front_door, route.second_door)
        group = last.group if last is not None and same_doors else highest + 1
        route = route.model_copy(update={"group": group})
        if last is None or outdated or not same_route(last, route):
            actions.append(events.PublishRoute(route))
            routes[task], highest = route, max(highest, group)
    return (replace(state, routes={**state.routes, **routes}, group=highest) if routes else state), actions


def publish_assignments(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Publish each device's modules, if they changed, or if this term published none yet."""
    assignments: dict[DeviceId, Assignment] = {}
    placement = state.placement
    for device in sorted(_maybe_reassigned(state, moment)):
        last, known = state.assignments.get(device), state.cluster.devices.get(device)
        alive = known is not None and known.alive
        if (alive and device not in placement.candidates) or (last is None and not alive):
            continue
        roles = placement.roles.get(device, {})
        strict = known is None or not known.ignores_unknown
        wanted: _Modules = {
            key: (
                with_variants(placement.modules[key][1], ()) if strict else placement.modules[key][1],
                role,
                placement.revisions.get(key),
            )
            for key, role in roles.items()
        }
        stays = state.drain_attempt.stays.get(device) if state.drain_attempt else None
        if last and last.stays == stays and _modules_of(last) == wanted:
            continue
        generation = last.generation if last and _plans_stand(last, wanted) else state.generation
        modules = tuple(
            AssignedModule(
                module=placement.modules[key][0],
                spec=spec,
                role=role,
                why=_why(placement, key, device, role),
                revision=revision,
                first_load=first_load(state, spec),
            )
            for key, (spec, role, revision) in sorted(
                wanted.items(), key=lambda item: (item[1][1], -len(placement.users[item[0]]))
            )
        )
        assignments[device] = Assignment(epoch=state.epoch, generation=generation, modules=modules, stays=stays)
    if not assignments:
        return state, []
    assigned_s = {**state.assigned_s, **dict.fromkeys(assignments, moment.now_s)}
    state = replace(state, assignments={**state.assignments, **assignments}, assigned_s=assigned_s)
    return state, [events.PublishAssignment(device, new) for device, new in assignments.items()]


def _modules_of(assignment: Assignment) -> _Modules:
    return {each.spec.key: (each.spec, each.role, each.revision) for each in assignment.modules}


def _plans_stand(last: Assignment, wanted: _Modules) -> bool:
    """Whether only standbys come or go, so that the device may run what was planned before."""
    known = _modules_of(last)
    changed = {key for key in known.keys() | wanted.keys() if known.get(key) != wanted.get(key)}
    return all((key in known) != (key in wanted) and (known.get(key) or wanted[key])[1] == "standby" for key in changed)


def repeat_missed_assignment(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """Publish a device's assignment again if it had the time to obey, and reports that it doesn't."""
    if not isinstance(event, HeartbeatReceived) or not state.settled:
        return state, []
    last = state.assignments.get(event.device)
    if last is None or not _is_missed(state, event.device, last, now_s):
        return state, []
    state = replace(state, assigned_s={**state.assigned_s, event.device: now_s})
    return state, [events.PublishAssignment(event.device, last)]


def clear_outdated_topics(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Clear the routes, of this term and earlier ones, without a task, and the assignments of forgotten devices."""
    known = state.tasks.keys() | state.invalid.keys()
    without = sorted((state.routes.keys() | state.retained_routes.keys()) - known)
    retained = {task: route for task, route in state.retained_routes.items() if task in known - state.routes.keys()}
    maybe = state.assignments.keys() if moment.before is None else moment.changed & state.assignments.keys()
    forgotten = sorted(device for device in maybe if device not in state.cluster.devices)
    if not without and not forgotten and len(retained) == len(state.retained_routes):
        return state, []
    state = replace(
        state,
        routes={task: route for task, route in state.routes.items() if task not in without},
        retained_routes=retained,
        serving_entries=sum(route.entries for route in retained.values()),
        assignments={device: last for device, last in state.assignments.items() if device not in forgotten},
        assigned_s={device: at_s for device, at_s in state.assigned_s.items() if device not in forgotten},
    )
    return state, [
        *(events.Clear(TASK_ROUTE, task) for task in without),
        *(events.Clear(DEVICE_ASSIGNMENT, device) for device in forgotten),
    ]


def _tasks_shared_by(placement: CurrentPlacement, device: DeviceId) -> set[TaskName]:
    """The tasks that use a module which a device and another one serve: only there the measured seconds matter."""
    shared = [key for key in placement.roles.get(device, ()) if len(placement.actives.get(key, ())) > 1]
    return {task for key in shared for task in placement.users.get(key, ())}


def _route_stays(state: State, moment: Moment, task: TaskName) -> bool:
    """Whether nothing that a task's route depends on has changed."""
    before = moment.before
    if before is None or before.tasks.get(task) is not state.tasks.get(task):
        return False
    if before.served.get(task) is not state.served.get(task) or _waits_for_its_plan(state, before, task):
        return False
    if task not in state.tasks:
        return before.invalid.get(task) == state.invalid[task]
    now, then = state.placement, before.placement
    spec = now.planned.get(task) or state.tasks[task]  # the route is that of the planned revision
    keys = {module.key for module in spec.modules.values()}
    if now is not then and (
        now.planned.get(task) is not then.planned.get(task)
        or now.facts.unservable.get(task) != then.facts.unservable.get(task)
        or now.refused.get(task) != then.refused.get(task)
        or any(now.actives_of(task).get(key) != then.actives_of(task).get(key) for key in keys)
    ):
        return False
    actives = now.actives_of(task)
    holders = {device for key in keys for device in actives.get(key, ())} - now.facts.sometimes
    last = state.routes.get(task)
    if spec.redundancy > 1 or (last is not None and not holders.issuperset(last.front_door)):
        return not moment.changed  # another device may be a better coordinator
    return moment.changed.isdisjoint(device for key in keys for device in actives.get(key, ()))


def _waits_for_its_plan(state: State, before: State, task: TaskName) -> bool:
    """Whether the published route refuses the spec that was deployed before, and plans have come since."""
    last = state.routes.get(task)
    if before.outstanding == state.outstanding or last is None or last.unavailable is None:
        return False
    return task in state.tasks and last.revision != served_spec(state, task).revision


def _reassigned(state: State, moment: Moment) -> set[DeviceId]:
    """The devices whose assignments have changed."""
    before = {} if moment.before is None else moment.before.assignments
    if before is state.assignments:
        return set()
    return {device for device, new in state.assignments.items() if before.get(device) is not new}


def _is_older_than_an_assignment(state: State, route: Route, reassigned: Collection[DeviceId]) -> bool:
    """Whether one of these devices runs a node of a route, and would refuse it as older than its assignment."""
    return bool(reassigned) and any(
        able.device in reassigned and route.generation < state.assignments[able.device].generation
        for node in route.nodes.values()
        for able in node.devices
    )


def _maybe_reassigned(state: State, moment: Moment) -> Collection[DeviceId]:
    """The devices whose assignments may have changed."""
    before, now = moment.before, state.placement
    if before is None:
        return state.cluster.devices.keys() | state.assignments.keys()
    maybe = set(moment.changed)
    if before.drain_attempt is not state.drain_attempt:
        maybe |= state.assignments.keys()
    if (then := before.placement) is not now:
        maybe |= {name for name, _ in now.facts.candidates}.difference(name for name, _ in then.facts.candidates)
        respecified = {
            key
            for key, module in now.modules.items()
            if (then.modules.get(key), then.revisions.get(key)) != (module, now.revisions.get(key))
        }
        for device in now.roles.keys() | then.roles.keys():
            roles = now.roles.get(device, {})
            if roles != then.roles.get(device, {}) or not respecified.isdisjoint(roles):
                maybe.add(device)
    return maybe


def _route(state: State, task: TaskName, last: Route | None) -> Route | None:
    """The route of a task; ``last`` under the present fence, or None, while its plan hasn't come."""
    placement = state.placement
    if task not in state.tasks:
        return unavailable_route(task, state.fence, state.invalid[task])
    why = placement.facts.unservable.get(task) or placement.refused.get(task)
    spec = placement.planned.get(task)
    if why is not None and not _is_of_earlier_spec(state, task, last):
        return unavailable_route(task, state.fence, why, served_spec(state, task).revision)
    if spec is None or why is not None:
        stamp = {"epoch": state.epoch, "generation": state.generation}
        return None if last is None else last.model_copy(update=stamp)
    try:
        last_doors = last.front_door if last else ()
        one_door = state.link is not None and SHARED in state.link.lacks
        route = build_route(
            spec, state.fence, placement.actives_of(task), state.cluster.devices, last_doors, one_door=one_door
        )
        last_backup = last.second_door if last else ()
        backup = backup_coordinators(spec, route.front_door, state.cluster.devices, last_backup)
        return route.model_copy(update={"second_door": backup}) if backup else route
    except (ValueError, ArithmeticError) as error:  # one odd spec or profile must not stop the other tasks
        why = f"its route can't be written: {describe_error(error)}; correct its spec"
        return unavailable_route(task, state.fence, why, spec.revision)


def _is_of_earlier_spec(state: State, task: TaskName, last: Route | None) -> bool:
    """Whether the reason why a task isn't served may be about the spec that was deployed before its present one."""
    is_new = last is not None and last.revision != served_spec(state, task).revision
    return is_new and state.outstanding != "nothing"


def _why(placement: CurrentPlacement, key: ModuleKey, device: DeviceId, role: Role) -> str:
    copy = placement.copies[device][key]
    home = placement.where[copy]
    if role == "active":
        alone = placement.why[copy]
        if device == home:
            return alone
        if device in placement.facts.sometimes:
            return f"serves beside {home} while it is on"
        return f"serves beside {home}, which alone can't keep up with the rate"
    if placement.moves is not None and placement.moves.to.get(copy) == device:
        if placement.moves.drains:
            return f"takes over from {home}, which is drained, once it is loaded"
        return f"takes over from {home} once it is loaded: the round gains {placement.moves.gain_s:.3g} s"
    return f"takes over at once if {home} dies"


def _is_missed(state: State, device: DeviceId, last: Assignment, now_s: float) -> bool:
    """Whether a device had the time to obey its assignment, and reports that it doesn't."""
    known, assigned_s = state.cluster.devices.get(device), state.assigned_s.get(device, now_s)
    if known is None or not known.alive or known.seq < 0:
        return False
    if known.heard_s - assigned_s <= _MISSED_AFTER_INTERVALS * state.cluster.interval_s(known):
        return False
    differs = known.modules.keys() != {module.spec.key for module in last.modules}
    return now_s - assigned_s >= _REPEAT_S and (differs or known.fence != (last.epoch, last.generation))
