"""The orchestrator's decisions: events in, actions out. Sans-I/O and deterministic.

Owns the order of the rules, and what an event means. Doesn't know topics, bytes, threads or clocks: ``now_s`` is the
time of any steady clock, and equal arguments give equal results. It searches for nothing: it asks for a plan
(``RequestPlan``), which arrives as an event (``PlanFound``).

Invariants:
- idempotent: the same event a second time gives no actions;
- the generation grows by one when the active copies change, and not for a standby. Routes are sent before assignments;
  they are compared after them, because no route may be older than the assignment of a device that it leads to;
- nothing is placed while the link is down, nor until ``settle_s`` after it came up: in that time retained specs, births
  and first heartbeats arrive, so that a restart adopts the modules of devices instead of moving them;
- reactions to goodbyes that were the broker's end are rolled back (see ``failure_detector``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import islice

from broker.leader_watch import READ_RETAINED_S
from broker.protocol.messages import OrchestratorState
from broker.protocol.specs import DeviceId, TaskName, TaskSpec
from broker.protocol.topics import DEVICE_ASSIGNMENT
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from orchestrator import events, forgetting, quarantining
from orchestrator.events import Action, DrainReceived, Event, HeartbeatReceived, MembershipEvent
from orchestrator.leadership.leader import announce_leadership, on_leader_state, tell_devices_ahead
from orchestrator.leadership.orders import NOTHING_DELIVERED
from orchestrator.membership import checks, deadly_loads, failure_detector, quarantine
from orchestrator.membership.device import with_assigned
from orchestrator.membership.failure_detector import Cluster
from orchestrator.membership.frozen import with_fields
from orchestrator.placement import births, first_loads, planning, publish, reconcile, restore, revisions
from orchestrator.placement.deployability import why_too_many, why_unroutable
from orchestrator.placement.drain import drain_retry_at_s, empty_draining_devices
from orchestrator.placement.planner_input import updated_footprints
from orchestrator.placement.rebalance import next_step_at_s, plan_moves
from orchestrator.state import Moment, Snapshot, State
from orchestrator.unrouted_requests import answer_unrouted

MAX_REFUSED = 1_000  # tasks whose specs were refused, the latest
MAX_RETAINED = 4_000  # routes of tasks that aren't known, in the broker's memory
MAX_SERVING = 100_000  # modules and devices that retained routes name
_FAILURES_LOGGED = 8  # of one heartbeat
_SESSIONS_KEPT = 16  # of our own links: the broker has messages of fewer under way

Rule = Callable[[State, Moment], tuple[State, list[Action]]]
PLACING: Sequence[Rule] = (
    restore.keep_orders,
    first_loads.outvote,
    reconcile.take_over,
    reconcile.place_modules,
    reconcile.take_over,  # again: of the copies that were found, one may serve sooner
    reconcile.switch_revisions,
    plan_moves,
    empty_draining_devices,
    reconcile.choose_spares,
    planning.drop_lost,
)
"""The reconciler: which device should have which module."""
PUBLISHING: Sequence[Rule] = (publish.publish_assignments, publish.publish_routes, publish.clear_outdated_topics)

_NOT_FOR_RULES = {"cluster", "checks", "snapshot", "rebirth_requested_s", "told_term_s", "went_beyond_s"}
_NOT_FOR_RULES |= {"quarantine", "quarantine_told", "quarantine_said", "forgotten", "under_way"}
_FOR_RULES = {field.name for field in fields(State)} - _NOT_FOR_RULES


def next_deadline_s(state: State) -> float | None:
    """The time at which a ``Tick`` is due if nothing happens before."""
    due = [state.settles_at_s, state.republish_at_s, failure_detector.next_deadline_s(state.cluster)]
    due += [checks.next_deadline_s(state.checks), quarantine.next_deadline_s(state.quarantine)]
    due.append(deadly_loads.next_deadline_s(state.load_deaths))
    if state.settled:
        due.append(state.due_s)
    return min((at_s for at_s in due if at_s is not None), default=None)


def decide(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """The state after one event, and what to do, in this order; reconciles if enough is known."""
    return restore.note_routes(*_decide(state, event, now_s))


def _decide(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    aside = _decide_aside(state, event, now_s)
    if aside is not None:
        return aside
    before, recorded = state, list[Action]()
    if isinstance(event, HeartbeatReceived):
        state, event, recorded = first_loads.on_heartbeat(state, event)
    state = planning.on_event(_on_event(state, event, now_s), event)
    state = _snapshot_before_departures(before, state, now_s)
    state, actions = quarantining.follow(before, state, event, now_s)  # before any route: agents then know of the death
    actions += recorded
    actions += _log_device_changes(before.cluster, state.cluster)
    for react in (
        _republish_after_link_up,
        quarantining.tell,
        _announce_to_hear_again,
        tell_devices_ahead,
        publish.request_rebirth,
        partial(forgetting.forget, before),
        _check_suspects,
    ):
        state, more = react(state, event, now_s)
        actions += more
    if state.settled and (moment := _moment(before, state, now_s)) is not None:
        state, more = _apply_rules(state, moment)
        actions += more
    for repeat in (restore.restore_assignment, publish.repeat_missed_assignment):
        state, more = repeat(state, event, now_s)
        actions += more
    # Assignments come after all routes, also after those that were just published again.
    actions.sort(key=_is_assignment)
    return state, actions


def _decide_aside(state: State, event: Event, now_s: float) -> tuple[State, list[Action]] | None:
    """As ``decide``, for the events that concern neither devices nor what is deployed; None for the others."""
    actions: list[Action] | None = None
    match event:
        case events.RequestReceived():
            state, actions = quarantining.note_request(state, event, now_s), answer_unrouted(state, event, now_s)
        case events.QuarantineHeard():
            state, actions = quarantining.adopt(state, event, now_s)
        case OrchestratorState():
            after, actions = _on_leader_message(state, event, now_s)
            state = after if _is_same(state, after) else replace(after, due_s=-math.inf)
        case events.RevisionReceived():
            state, actions = restore.note_recorded(state, event), []
        case events.RevisionsListed() | events.RequestUnanswerable():
            actions = []  # the reports and the standby's copy follow them
        case events.RouteHeard():
            state, actions = restore.restore_route(state, event)
        case events.LeaderTopicLost(why):
            actions = [events.Note("leader_topic_lost", {"why": why}), *announce_leadership(state)]
    return None if actions is None else (state, actions)


def _moment(before: State, state: State, now_s: float) -> Moment | None:
    """The changes that the rules must look at; None if nothing has changed, and no rule is due."""
    if not before.settled or (state.due_s is not None and now_s >= state.due_s):
        return Moment(now_s)
    known, devices = before.cluster.devices, state.cluster.devices
    changed = frozenset(name for name in devices.differences(known) if publish.concerns(state, known.get(name), name))
    return Moment(now_s, before, changed) if changed or not _is_same(before, state) else None


def _is_same(before: State, state: State) -> bool:
    """Whether two states are equal for the rules, but for their devices."""
    then, now = before.cluster, state.cluster
    return (
        then.mass_departure is now.mass_departure
        and then.drained is now.drained
        and all(getattr(before, name) is getattr(state, name) for name in _FOR_RULES)
    )


def _apply_rules(state: State, moment: Moment) -> tuple[State, list[Action]]:
    before, actions = state.placement, list[Action]()
    for rule in PLACING:
        state, more = rule(state, moment)
        actions += more
    if state.placement is not before:
        if state.placement.serving != before.serving:
            state = replace(state, generation=state.generation + 1)
        actions += reconcile.log_placement_changes(before, state.placement, state.generation)
    for rule in PUBLISHING:
        state, more = rule(state, moment)
        actions += more
    if state.planning is not None:
        due = [state.planning.until_s, state.placement.moves.until_s if state.placement.moves else None]
    else:
        due = [reconcile.spares_at_s(state), next_step_at_s(state), drain_retry_at_s(state)]
    due.append(births.next_step_at_s(state, moment.now_s))
    return replace(state, due_s=min((at_s for at_s in due if at_s is not None), default=None)), actions


def _on_leader_message(state: State, seen: OrchestratorState, now_s: float) -> tuple[State, list[Action]]:
    """React to the leader's topic. An older leader that came back may have overwritten all retained topics."""
    state, actions = on_leader_state(state, seen)
    if state.link is not None and seen.online and seen.session == state.link.session:
        state = replace(state, cluster=failure_detector.on_own_heartbeat(state.cluster, now_s))
        if state.reads_again and seen.change == state.broker_change:  # no heartbeat, which may overtake
            cluster = replace(state.cluster, up_s=now_s)
            state = replace(state, cluster=cluster, reads_again=False, settles_at_s=now_s + state.settle_s)
    if state.link is None or any(isinstance(action, events.Resign) for action in actions):
        return state, actions
    outdated = seen.epoch < state.epoch and seen.online
    if state.republish_at_s is None and not outdated:
        return state, actions
    notes: list[Action] = [action for action in actions if isinstance(action, events.Note)]
    state, again = restore.republish_all(replace(state, republish_at_s=None))
    return state, [*notes, *again]


def _announce_to_hear_again(state: State, event: Event, _: float) -> tuple[State, list[Action]]:
    """Announce our term: this message comes back after all that the broker retains, which is read again."""
    return state, announce_leadership(state) if isinstance(event, events.MessagesRefused) and state.reads_again else []


def _republish_after_link_up(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """Announce our term and publish all again, after the leader's topic could be read: it has the broker's number.

    Where nobody led before, it has no number, and others must hear of this term at once.
    """
    if isinstance(event, LinkUp):
        if state.is_first and len(state.sessions) == 1:
            return state, announce_leadership(state)
        return replace(state, republish_at_s=now_s + min(READ_RETAINED_S, state.settle_s)), []
    if state.republish_at_s is None or now_s < state.republish_at_s:
        return state, []
    return restore.republish_all(replace(state, republish_at_s=None))


def _check_suspects(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """Check the devices that one coordinator suspects."""
    known, actions = checks.begin(state.cluster, state.checks, event, now_s)
    if known is not state.checks:
        state = replace(state, checks=known)
    fields = [{"device": each.device, "within_s": each.within_s} for each in actions]
    return state, [*actions, *(events.Note("device_checked", each) for each in fields)]


# --- events ---


def _on_event(state: State, event: Event, now_s: float) -> State:
    match event:
        case LinkUp():
            state = replace(
                state,
                link=event,
                settles_at_s=now_s + state.settle_s,
                sessions=(*state.sessions, event.session)[-_SESSIONS_KEPT:],
                reads_again=False,
                reconciled=False,
                broker_change=0,
                delivered=NOTHING_DELIVERED,
                retained_routes={},
                under_way={},
                serving_entries=0,
                reviewed_s=now_s,  # what devices measure just after an outage is of its backlog
            )
        case events.MessagesRefused() if state.link is not None:
            state = _hear_again(state, now_s)
        case events.Overslept() if state.settles_at_s is not None:
            state = _with_time_to_hear(state, now_s)
        case LinkDown():
            state = replace(state, link=None, settles_at_s=None, republish_at_s=None, planning=None)
            state = _roll_back(state, now_s)
        case events.TaskDeployed() | events.TaskRejected() | events.TaskUndeployed() | DrainReceived():
            state = _on_order(state, event)
        case events.RetainedRouteReceived():
            state = _with_retained_route(state, event)
    cluster, known = checks.conclude(state.cluster, state.checks, event, now_s)
    if cluster is not state.cluster or known is not state.checks:
        state = replace(state, cluster=cluster, checks=known)
    if isinstance(event, MembershipEvent):
        state = with_fields(state, cluster=failure_detector.on_event(state.cluster, event, now_s))
    if isinstance(event, HeartbeatReceived):
        state = _with_reports_on_assigned(state, event.device)
    return _settle(state, now_s)


def _hear_again(state: State, now_s: float) -> State:
    """The state that hears again, over the same link, what the broker retains: all orders that were given.

    It takes as long as our next announcement, which comes after it. While the first messages of a link still arrive,
    nothing can be announced; it takes ``settle_s`` then, as after a new link.
    """
    again = state.reconciled or state.reads_again
    is_same_link = state.link is not None and state.orders.session == state.link.session
    heard = max(state.broker_change, state.orders.confirmed if is_same_link else 0)
    return replace(
        state,
        cluster=replace(state.cluster, up_s=now_s),
        settles_at_s=math.inf if again else now_s + state.settle_s,
        reads_again=again,
        reconciled=False,
        broker_change=state.orders.change if again else heard,
        delivered=NOTHING_DELIVERED if again else state.delivered.read_again(),
        retained_routes={},
    )


def _with_time_to_hear(state: State, now_s: float) -> State:
    """The state, in which what the broker retains has its full time again: it waited while this process stood still."""
    is_announced = state.republish_at_s is None
    return replace(
        state,
        cluster=replace(state.cluster, up_s=now_s),
        settles_at_s=math.inf if state.reads_again else now_s + state.settle_s,
        republish_at_s=None if is_announced else now_s + min(READ_RETAINED_S, state.settle_s),
    )


def _with_reports_on_assigned(state: State, name: DeviceId) -> State:
    """The state with what a device reports of the modules that it was assigned, as far as it counts elsewhere."""
    footprints = updated_footprints(state, name)
    state = state if footprints is state.footprints else replace(state, footprints=footprints)
    known, assigned = state.cluster.devices.get(name), state.assignments.get(name)
    if known is None or not known.backoffs or assigned is None:
        return state
    cluster = state.cluster.with_devices(with_assigned(known, {each.spec.key for each in assigned.modules}))
    return state if cluster is state.cluster else replace(state, cluster=cluster)


def _on_order(state: State, order: events.Order) -> State:
    """The state after an operator's order."""
    match order:
        case events.TaskDeployed(spec):
            why = why_too_many(state, spec) or why_unroutable(spec)
            state = _with_task(state, spec) if why is None else _with_invalid_task(state, spec.task, why)
        case events.TaskRejected(task, why):
            state = _with_invalid_task(state, task, why)
        case events.TaskUndeployed(task):
            state = restore.without_task(state, task)
    return state if state.reconciled else restore.note_order(state, order)


def _with_task(state: State, spec: TaskSpec) -> State:
    known = {module.key: module for task in state.tasks.values() for module in task.modules.values()}
    if changed := {module.key for module in spec.modules.values() if known.get(module.key) != module}:
        state = replace(state, cluster=failure_detector.clear_backoffs(state.cluster, changed))
    invalid = {task: why for task, why in state.invalid.items() if task != spec.task}
    if state.settles_at_s is not None and spec.task not in state.tasks:
        state = replace(state, undated=state.undated | {spec.task})
    return revisions.with_deployed(replace(state, invalid=invalid), spec)


def _with_invalid_task(state: State, task: TaskName, why: str) -> State:
    """The state with a spec that can't be served; a spec of the task that was deployed before stays in force."""
    kept = dict(islice(state.invalid.items(), max(0, len(state.invalid) - MAX_REFUSED + 1), None))
    return replace(state, invalid={**kept, task: why})


def _with_retained_route(state: State, event: events.RetainedRouteReceived) -> State:
    """The state with a route that the broker retains; of too many routes, or too long ones, it keeps a part."""
    known = state.retained_routes.get(event.task)
    if known is None and len(state.retained_routes) >= MAX_RETAINED and event.task not in state.tasks:
        return state
    others = state.serving_entries - (known.entries if known else 0)
    if others + event.entries > MAX_SERVING:
        event = replace(event, serving={})
    routes = {**state.retained_routes, event.task: event}
    return replace(state, retained_routes=routes, serving_entries=others + event.entries)


def _settle(state: State, now_s: float) -> State:
    """The state with settling ended if retained messages and first heartbeats had the time to arrive.

    A device that served and isn't there may be dead, or may not have returned to a broker that has just started.
    Nothing tells the two apart, so it gets the time to return.
    """
    if state.settles_at_s is None or state.reads_again or now_s < state.cluster.up_s + state.settle_s:
        return state
    patient_s = state.linked_s + RECONNECT_S
    devices = state.cluster.devices
    served = {
        device for route in state.retained_routes.values() for homes in route.serving.values() for device in homes
    }
    waits = now_s < patient_s and not all(name in devices and devices[name].alive for name in served)
    return replace(state, settles_at_s=patient_s) if waits else _with_tasks_by_age(replace(state, settles_at_s=None))


def _with_tasks_by_age(state: State) -> State:
    """The state with its tasks in order; of those whose age isn't known, the served ones count as older."""

    def age(task: TaskName) -> int:
        route = state.retained_routes.get(task)
        return 0 if task not in state.undated else 1 if route is not None and route.available else 2

    return replace(state, tasks={task: state.tasks[task] for task in sorted(state.tasks, key=age)}, undated=frozenset())


def _snapshot_before_departures(before: State, after: State, now_s: float) -> State:
    """The state with a snapshot of what was placed and published before a goodbye, or before the first of several."""
    if after.snapshot and after.snapshot.at_s > failure_detector.wills_doubtful_since_s(after.cluster, now_s):
        return after
    known, devices = before.cluster.devices, after.cluster.devices
    if after.cluster.living == len(devices):
        return after  # all are here
    left = [name for name in devices.differences(known) if name in known and known[name].alive]
    if not any(name in devices and devices[name].ended_s == now_s for name in left):
        return after
    return replace(after, snapshot=Snapshot(now_s, before.placement, before.routes, before.assignments))


def _roll_back(state: State, now_s: float) -> State:
    """The state before the goodbyes of the last moment; under a new generation, for all may have been received."""
    snapshot = state.snapshot
    state = replace(state, snapshot=None)
    if snapshot is None or snapshot.at_s <= failure_detector.wills_doubtful_since_s(state.cluster, now_s):
        return state
    if snapshot == Snapshot(snapshot.at_s, state.placement, state.routes, state.assignments):
        return state
    stamp = {"generation": state.generation + 1}
    return replace(
        state,
        placement=snapshot.placement,
        generation=state.generation + 1,
        routes={task: route.model_copy(update=stamp) for task, route in snapshot.routes.items()},
        assignments={name: last.model_copy(update=stamp) for name, last in snapshot.assignments.items()},
        drain_attempt=None,
    )


def _is_assignment(action: Action) -> bool:
    is_end = isinstance(action, events.Clear) and action.topic is DEVICE_ASSIGNMENT
    return is_end or isinstance(action, events.PublishAssignment)


def _log_device_changes(before: Cluster, after: Cluster) -> list[Action]:
    notes: list[Action] = []
    for name in after.devices.differences(before.devices):
        known, device = before.devices.get(name), after.devices.get(name)
        if device is None:
            continue
        was = (known.status, known.health, known.confirmed) if known else None
        if was != (device.status, device.health, device.confirmed):
            fields = {"device": name, "status": device.status, "health": device.health, "alive": device.alive}
            if not device.always_on:
                fields["availability"] = device.availability
            notes.append(events.Note("device_changed", fields))
        told_s = known.heartbeat_interval_s if known else None
        if device.heartbeat_interval_s not in (None, told_s, after.heartbeat_interval_s):
            own_s, expected_s = device.heartbeat_interval_s, after.heartbeat_interval_s
            fields = {"device": name, "own_s": own_s, "expected_s": expected_s, "counts": "own_s"}
            notes.append(events.Note("heartbeat_interval_differs", fields))
        known_failed = known.failed if known else {}
        failed = [item for item in device.failed.items() if item[0] not in known_failed]
        for key, error in failed[:_FAILURES_LOGGED]:
            notes.append(events.Note("module_failed", {"device": name, "module": key, "error": error}))
        if more := failed[_FAILURES_LOGGED:]:
            notes.append(events.Note("more_modules_failed", {"device": name, "modules": len(more)}))
    return notes
