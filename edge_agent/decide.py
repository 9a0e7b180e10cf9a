"""The agent's decisions: ``decide(state, event, now_s) -> actions``. Sans-I/O, deterministic.

Owns the table of rules: one for each event. A rule changes the state in place and returns a list of
actions; it is done when it returns. A message that stays on this device never becomes bytes: it is the next event.

Three events bypass ``decide`` (``events.ConnectionEvent``): the device's echo, a rebirth request and the device's own
retained state. They concern the connections (session, measured link, client id), which only ``service`` knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from broker.protocol.messages import (
    AssignedModule,
    Assignment,
    NodeDone,
    NodeFailed,
    NodeInputs,
    OrchestratorState,
    Permit,
    Quarantine,
    Route,
)
from broker.protocol.reports import EventType
from broker.protocol.specs import TaskName
from broker.protocol.topics import share_group_filter
from edge_agent import events, kept_routes, leaving, term
from edge_agent.events import Action, JoinGroup, LeaveGroup, Load, PublishEvent, Send, SendHeartbeat, Unload
from edge_agent.requests import backup_coordinator, coordinate, execute, quarantine
from edge_agent.state import AgentState

LEAVE_S = 1.0  # a removed front door stays in its share group so long: the new one may not have joined yet


def decide(state: AgentState, event: events.Event, now_s: float) -> list[Action]:
    """Apply one event, and the messages by which it goes on here; return what to do about all of it."""
    actions, waiting = list[Action](), deque([event])
    while waiting:
        actions += step(state, waiting, now_s)
    return actions


def step(state: AgentState, waiting: deque[events.Event], now_s: float) -> list[Action]:
    """Apply the first event that waits, and return what to do about it. Messages that stay here wait, too.

    So others get their messages before this device goes on, also if that fails.
    """
    event = waiting.popleft()
    actions: list[Action] = []
    for action in RULES[type(event)](state, event, now_s):
        if isinstance(action, Send) and action.receiver == state.device:
            waiting.append(events.Received(state.device, action.message, action.values))
        else:
            actions.append(action)
    return actions


def _on_request(state: AgentState, event: events.Requested, now_s: float) -> list[Action]:
    """A front door coordinates a request; a backup coordinator keeps a copy."""
    route = state.routes.get(event.task)
    if route and state.device in route.second_door and state.device not in route.front_door:
        return backup_coordinator.on_request(state, event, route, now_s)
    return coordinate.on_request(state, event, now_s)


def _on_message(state: AgentState, event: events.Received, now_s: float) -> list[Action]:
    actions = coordinate.on_activity(state, event.sender, now_s)
    match event.message:
        case NodeInputs():
            actions += execute.on_inputs(state, event, event.message, now_s)
        case NodeDone():
            actions += backup_coordinator.on_done(state, event.sender, event.message)
            actions += coordinate.on_done(state, event.sender, event.message, now_s)
        case NodeFailed():
            actions += coordinate.on_failed(state, event.sender, event.message, now_s)
    return actions


def _on_quarantine(state: AgentState, message: Quarantine, now_s: float) -> list[Action]:
    """Follow the leader's list: end the requests whose payloads it refuses, wherever they are."""
    if not quarantine.obey(state, message, now_s):
        return []
    return [*execute.on_refused(state, now_s), *coordinate.on_refused(state, now_s)]


def _on_tick(state: AgentState, _: events.Tick, now_s: float) -> list[Action]:
    return [
        *execute.on_tick(state, now_s),
        *term.on_tick(state, now_s),
        *_leave_due_groups(state, now_s),
        *_forget_unconfirmed_tasks(state, now_s),
        *backup_coordinator.on_tick(state, now_s),
        *coordinate.on_tick(state, now_s),
    ]


def _on_control_link_restored(state: AgentState, _: events.ControlLinkRestored, __: float) -> list[Action]:
    state.unconfirmed_tasks, state.confirm_by_s, state.contested = set(state.routes), None, None
    return []


def _on_assignment(state: AgentState, assignment: Assignment, now_s: float) -> list[Action]:
    """Load the assigned modules and unload all others; unload first, to make room."""
    if state.leaving:
        return []
    fence = (assignment.epoch, assignment.generation)
    if term.is_given_up(state, fence, now_s):
        state.fence, state.repeated = (0, 0), None
    if fence < state.fence or not term.obey(state, assignment.epoch):
        state.dropped["stale_assignment"] += 1
        return []
    is_newer = fence > state.fence
    state.fence = fence
    wanted = {assigned.spec.key: assigned for assigned in assignment.modules}
    actions: list[Action] = []
    for key in [key for key in state.assigned if key not in wanted]:
        name = state.assigned.pop(key).module
        state.ready.discard(key)
        state.failed.discard(key)
        state.measured_s.pop(key, None)
        state.batched.pop(key, None)
        actions += [Unload(key, name), *execute.on_module_gone(state, key, now_s)]
    for key, assigned in wanted.items():
        is_known = key in state.assigned and not (is_newer and key in state.failed)
        state.assigned[key] = assigned
        if not is_known:
            state.failed.discard(key)
            state.loading[key] = state.fence
            actions += _load(assigned)
    return [*actions, SendHeartbeat()]


def _load(assigned: AssignedModule) -> list[Action]:
    return [Load(assigned), PublishEvent(EventType.MODULE_LOADING, module=assigned.module)]


def _on_module_ready(state: AgentState, event: events.ModuleReady, now_s: float) -> list[Action]:
    key = event.key
    state.loading.pop(key, None)
    if key not in state.assigned:
        return []
    state.ready.add(key)
    state.failed.discard(key)  # an older load failed when the module had been unassigned and assigned again meanwhile
    if event.batched:
        state.batched[key] = event.batched
    if event.compute_s is not None:
        state.measured_s.setdefault(key, event.compute_s)
    told = PublishEvent(EventType.MODULE_READY, module=state.assigned[key].module)
    return [SendHeartbeat(), told, *execute.on_module_ready(state, key, now_s)]


def _on_module_failed(state: AgentState, event: events.ModuleFailed, now_s: float) -> list[Action]:
    """Report a module that can't be loaded. The orchestrator reads the reason in the heartbeat and tries elsewhere."""
    key = event.key
    actions: list[Action] = []
    state.ready.discard(key)
    since = state.loading.pop(key, state.fence)
    if key in state.assigned and since < state.fence:  # assigned again before its failure was known
        state.loading[key] = state.fence
        actions += _load(state.assigned[key])
    elif key in state.assigned:
        state.failed.add(key)
        actions.append(PublishEvent(EventType.MODULE_FAILED, module=state.assigned[key].module, why=event.why))
    return [*actions, SendHeartbeat(), *execute.on_module_gone(state, key, now_s)]


def _on_route(state: AgentState, route: Route, now_s: float) -> list[Action]:
    """Follow the newest route: join the task's new share group before leaving the old one."""
    known = state.routes.get(route.task)
    is_older = known is not None and (route.epoch, route.generation) < (known.epoch, known.generation)
    state.unconfirmed_tasks -= {route.task} if known == route else set()
    if is_older or not term.obey(state, route.epoch):
        state.dropped["stale_route"] += 1
        return []
    excess = kept_routes.keep(state, route)
    dropped = [action for task in excess for action in _on_task_cleared(state, events.RouteCleared(task), now_s)]
    if route.task in excess:
        return dropped
    state.unconfirmed_tasks.discard(route.task)
    group = None
    if state.device in (*route.front_door, *route.second_door) and not state.leaving:
        backup = state.device not in route.front_door
        group = share_group_filter(state.prefix, route.task, route.epoch, route.group, backup=backup)
    leave_s = now_s if group or not route.front_door else now_s + LEAVE_S
    return [
        *dropped,
        *_change_group(state, route.task, group, leave_s),
        *_leave_due_groups(state, now_s),
        *backup_coordinator.on_route(state, route, now_s),
        *coordinate.on_route(state, route, now_s),
    ]


def _change_group(state: AgentState, task: TaskName, new: str | None, leave_s: float) -> list[Action]:
    """Join a task's new share group, if there is one, now and leave the old one at ``leave_s``."""
    old = state.share_groups.pop(task, None)
    if old and new != old:
        state.leave_at_s[old] = leave_s
    if new is None:
        return []
    state.share_groups[task] = new
    state.leave_at_s.pop(new, None)
    return [JoinGroup(new)] if new != old else []


def _leave_due_groups(state: AgentState, now_s: float) -> list[Action]:
    due = [group for group, at_s in state.leave_at_s.items() if now_s >= at_s]
    for group in due:
        del state.leave_at_s[group]
    return [LeaveGroup(group) for group in due]


def _forget_unconfirmed_tasks(state: AgentState, now_s: float) -> list[Action]:
    """Forget the tasks that were undeployed while the link was down."""
    if state.confirm_by_s is None or now_s < state.confirm_by_s:
        return []
    gone, state.unconfirmed_tasks, state.confirm_by_s = sorted(state.unconfirmed_tasks), set(), None
    return [action for task in gone for action in _on_task_cleared(state, events.RouteCleared(task), now_s)]


def _on_task_cleared(state: AgentState, event: events.RouteCleared, now_s: float) -> list[Action]:
    task = event.task
    kept_routes.forget(state, task)
    state.latency_inflation.pop(task, None)
    state.unconfirmed_tasks.discard(task)
    return [
        *_change_group(state, task, None, now_s),
        *_leave_due_groups(state, now_s),
        *backup_coordinator.on_task_cleared(state, task, now_s),
        *coordinate.on_task_cleared(state, task, now_s),
    ]


RULES: Mapping[type[events.Event], Callable[[AgentState, Any, float], list[Action]]] = {
    OrchestratorState: term.on_leader,
    events.LeaderAnnounced: term.on_leader_announced,
    events.ControlLinkRestored: _on_control_link_restored,
    events.DataLinkChanged: coordinate.on_data_link,
    Assignment: _on_assignment,
    Route: _on_route,
    Quarantine: _on_quarantine,
    Permit: execute.on_permit,
    events.RouteCleared: _on_task_cleared,
    events.ModuleReady: _on_module_ready,
    events.ModuleFailed: _on_module_failed,
    events.ModuleUnloaded: lambda _, event, __: [
        SendHeartbeat(),
        PublishEvent(EventType.MODULE_UNLOADED, module=event.module),
    ],
    events.Requested: _on_request,
    events.Received: _on_message,
    events.NotReceived: lambda _, event, __: [Send(event.coordinator, event.failed, {}, event.deadline_s)],
    events.Ran: execute.on_ran,
    events.PassIsLost: leaving.on_pass_lost,
    events.Restarting: leaving.on_restarting,
    events.Tick: _on_tick,
}
"""Event -> its rule."""
