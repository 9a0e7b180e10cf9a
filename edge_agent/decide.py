"""What an agent does about an event: ``decide(state, event, now_s) -> actions``. Pure; changes the state in place.

Owns the order of the rules and the fence. Every event has exactly one rule; a message that stays on this device never
becomes bytes. Deterministic: same state, event and time, same actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from broker.protocol.messages import AssignedModule, Assignment, NodeDone, NodeFailed, NodeInputs, Route
from broker.protocol.specs import TaskName
from broker.protocol.topics import front_door_filter, second_door_filter
from edge_agent.actions import Action, JoinGroup, LeaveGroup, Load, Send, SendHeartbeat, Unload
from edge_agent.events import (
    Assigned,
    DataLinkChanged,
    Event,
    LeaderSeen,
    LinkRestored,
    ModuleFailed,
    ModuleReady,
    NotReceived,
    Ran,
    Received,
    Requested,
    RouteCleared,
    Routed,
    Tick,
)
from edge_agent.requests import backup_coordinator, coordinate, execute
from edge_agent.state import CONFIRM_S, LEAVE_S, AgentState


def decide(state: AgentState, event: Event, now_s: float) -> list[Action]:
    """Apply one event and say what to do about it."""
    actions: list[Action] = []
    waiting: deque[Event] = deque([event])
    while waiting:
        for action in _rule(state, waiting.popleft(), now_s):
            if isinstance(action, Send) and action.receiver == state.device:
                waiting.append(Received(state.device, action.message, action.values))
            else:
                actions.append(action)
    return actions


def _rule(state: AgentState, event: Event, now_s: float) -> Iterable[Action]:  # noqa: C901, PLR0911, PLR0912 - one table
    match event:
        case LeaderSeen(epoch, online):
            return _obey(state, epoch, now_s if online else None)
        case LinkRestored():
            state.unconfirmed, state.confirm_by_s = set(state.routes), None
            return ()
        case DataLinkChanged(up):
            return coordinate.on_link(state, now_s, up=up)
        case Assigned(assignment):
            return _assigned(state, assignment, now_s)
        case Routed(route):
            return _routed(state, route, now_s)
        case RouteCleared(task):
            return _cleared(state, task, now_s)
        case ModuleReady(key, compute_s):
            return _ready(state, key, compute_s, now_s)
        case ModuleFailed(key):
            return _failed(state, key, now_s)
        case Requested():
            return _requested(state, event, now_s)
        case Received():
            return _received(state, event, now_s)
        case NotReceived(coordinator, failed, deadline_s):
            return (Send(coordinator, failed, {}, deadline_s),)
        case Ran():
            return execute.on_ran(state, event, now_s)
        case Tick():
            return _tick(state, now_s)


def _requested(state: AgentState, event: Requested, now_s: float) -> Iterable[Action]:
    """A front door coordinates a request, a second door holds it."""
    route = state.routes.get(event.task)
    if route and state.device in route.second_door and state.device not in route.front_door:
        return backup_coordinator.on_request(state, event, route, now_s)
    return coordinate.on_request(state, event, now_s)


def _received(state: AgentState, event: Received, now_s: float) -> Iterable[Action]:
    yield from coordinate.on_life(state, event.sender, now_s)
    match event.message:
        case NodeInputs():
            yield from execute.on_inputs(state, event, event.message, now_s)
        case NodeDone():
            backup_coordinator.on_done(state, event.sender, event.message)
            coordinate.on_done(state, event.sender, event.message, now_s)
        case NodeFailed():
            yield from coordinate.on_failed(state, event.message, now_s)


def _tick(state: AgentState, now_s: float) -> Iterable[Action]:
    execute.on_tick(state, now_s)
    yield from _leave(state, now_s)
    yield from _forget_unconfirmed(state, now_s)
    yield from backup_coordinator.on_tick(state, now_s)
    yield from coordinate.on_tick(state, now_s)


def _obey(state: AgentState, epoch: int, seen_s: float | None) -> Iterable[Action]:
    """A new leader wants to know at once what is held here; one that is online says all its routes."""
    if seen_s is not None and state.unconfirmed and state.confirm_by_s is None:
        state.confirm_by_s = seen_s + CONFIRM_S
    if epoch > state.epoch:
        state.epoch = epoch
        yield SendHeartbeat()


def _assigned(state: AgentState, assignment: Assignment, now_s: float) -> Iterable[Action]:
    """Hold what is assigned and nothing else; let go first, so that there is room."""
    fence = (assignment.epoch, assignment.generation)
    if fence < state.fence or assignment.epoch < state.epoch:
        state.dropped["stale_assignment"] += 1
        return
    newer = fence > state.fence
    state.fence, state.epoch = fence, assignment.epoch
    wanted = {assigned.spec.key: assigned for assigned in assignment.modules}
    for key in [key for key in state.assigned if key not in wanted]:
        del state.assigned[key]
        state.ready.discard(key)
        state.failed.discard(key)
        state.measured_s.pop(key, None)
        yield Unload(key)
        yield from execute.on_module_gone(state, key, now_s)
    for key, assigned in wanted.items():
        known = key in state.assigned and not (newer and key in state.failed)
        state.assigned[key] = assigned
        if not known:
            state.failed.discard(key)
            yield from _load(state, assigned)
    yield SendHeartbeat()


def _load(state: AgentState, assigned: AssignedModule) -> Iterable[Action]:
    state.loading[assigned.spec.key] = state.fence
    yield Load(assigned)


def _ready(state: AgentState, key: str, compute_s: float | None, now_s: float) -> Iterable[Action]:
    state.loading.pop(key, None)
    if key in state.assigned:
        state.ready.add(key)
        state.failed.discard(key)  # an older load of it, when it had been dropped and assigned again meanwhile
        if compute_s is not None:
            state.measured_s.setdefault(key, compute_s)
        yield SendHeartbeat()
        yield from execute.on_module_ready(state, key, now_s)


def _failed(state: AgentState, key: str, now_s: float) -> Iterable[Action]:
    """What can't be loaded is not here; the orchestrator reads why in the heartbeat and tries another device."""
    state.ready.discard(key)
    since = state.loading.pop(key, state.fence)
    if key in state.assigned and since < state.fence:  # assigned anew before its failure was known
        yield from _load(state, state.assigned[key])
    elif key in state.assigned:
        state.failed.add(key)
    yield SendHeartbeat()
    yield from execute.on_module_gone(state, key, now_s)


def _routed(state: AgentState, route: Route, now_s: float) -> Iterable[Action]:
    """Follow the newest route: join the task's new share group before leaving the old one."""
    known = state.routes.get(route.task)
    too_old = known is not None and (route.epoch, route.generation) < (known.epoch, known.generation)
    state.unconfirmed -= {route.task} if known == route else set()
    if too_old or route.epoch < state.epoch:
        state.dropped["stale_route"] += 1
        return
    state.routes[route.task] = route
    state.unconfirmed.discard(route.task)
    first = second = None
    if state.device in route.front_door:
        first = front_door_filter(state.prefix, route.task, route.epoch, route.group)
    elif state.device in route.second_door:
        second = second_door_filter(state.prefix, route.task, route.epoch, route.group)
    # Who isn't a door any more leaves later: who is may not have joined yet, and a request must reach somebody.
    leave_s = now_s if first or second or not route.front_door else now_s + LEAVE_S
    yield from _change_group(state, state.groups, route.task, first, leave_s)
    yield from _change_group(state, state.second_groups, route.task, second, leave_s)
    yield from _leave(state, now_s)
    yield from backup_coordinator.on_route(state, route, now_s)
    yield from coordinate.on_route(state, route, now_s)


def _change_group(
    state: AgentState, groups: dict[TaskName, str], task: TaskName, new: str | None, leave_s: float
) -> Iterable[Action]:
    """Join the new group now and leave the old one at ``leave_s``; None is none."""
    old = groups.pop(task, None)
    if new:
        groups[task] = new
        state.leaving.pop(new, None)
    if new and new != old:
        yield JoinGroup(new)
    if old and new != old:
        state.leaving[old] = leave_s


def _leave(state: AgentState, now_s: float) -> Iterable[Action]:
    """Leave the groups whose time has come."""
    for group in [group for group, at_s in state.leaving.items() if now_s >= at_s]:
        del state.leaving[group]
        yield LeaveGroup(group)


def _forget_unconfirmed(state: AgentState, now_s: float) -> Iterable[Action]:
    """Tasks that were undeployed while the link was down."""
    if state.confirm_by_s is None or now_s < state.confirm_by_s:
        return
    gone, state.unconfirmed, state.confirm_by_s = sorted(state.unconfirmed), set(), None
    for task in gone:
        yield from _cleared(state, task, now_s)


def _cleared(state: AgentState, task: str, now_s: float) -> Iterable[Action]:
    state.routes.pop(task, None)
    state.stretch.pop(task, None)
    state.unconfirmed.discard(task)
    yield from _change_group(state, state.groups, task, None, now_s)
    yield from _change_group(state, state.second_groups, task, None, now_s)
    yield from _leave(state, now_s)
    yield from backup_coordinator.on_cleared(state, task, now_s)
    yield from coordinate.on_cleared(state, task)
