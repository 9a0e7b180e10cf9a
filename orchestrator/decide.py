"""What the orchestrator does next: events in, actions out.

Owns the order of the rules, and what an event means. Knows nothing of topics, bytes, threads or clocks: ``now_s`` comes
in, in seconds of any steady clock.

Invariants:
- idempotent: the same event again gives no actions;
- what was said is compared with what devices report; an assignment that got lost is said again;
- the generation grows by one with each change of what serves where; then all routes go out anew, before the
  assignments. A standby that comes or goes changes no route and no generation: requests under way don't notice;
- after a new link of an old term nothing is said before the leader's topic could tell of a newer one;
- nothing is placed while our link is down, nor until ``settle_s`` after it came up: retained specs, births and first
  heartbeats arrive in that time, so that a restart adopts what devices hold instead of moving it. Who comes up with the
  broker, as on a box that was started anew, waits longer for the devices that served;
- what was done about goodbyes that turn out to be the broker's end is undone (``cluster``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from broker.protocol.specs import TaskName, TaskSpec
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from orchestrator.events import (
    Action,
    ClearAssignment,
    Event,
    LeaderStateReceived,
    Note,
    PublishAssignment,
    RequestReceived,
    Resign,
    RetainedRouteReceived,
    TaskDeployed,
    TaskEvent,
    TaskRejected,
    TaskUndeployed,
)
from orchestrator.leadership.leader import heed, lead, obeys_another
from orchestrator.leadership.standby import READ_RETAINED_S
from orchestrator.membership import cluster as devices
from orchestrator.membership.cluster import Cluster, DrainReceived, HeartbeatReceived, MembershipEvent
from orchestrator.placement.deployability import why_unroutable
from orchestrator.placement.drain import drain_retry_at_s, empty_draining_devices
from orchestrator.placement.planner_input import grown
from orchestrator.placement.publish import (
    clear_outdated_topics,
    everything,
    lost_specs,
    publish_assignments,
    publish_routes,
    request_rebirth,
    restore_lost_retained_topics,
    undeployed,
)
from orchestrator.placement.rebalance import give_up_at_s, review, review_at_s
from orchestrator.placement.reconcile import choose_spares, log_placement_changes, place_modules, spares_at_s, take_over
from orchestrator.planner.placement import never
from orchestrator.state import Before, Moment, State
from orchestrator.unrouted_requests import answer

_V = TypeVar("_V")
_SESSIONS_KEPT = 16  # of our own links: more than the broker can have words of under way

Rule = Callable[[State, Moment], tuple[State, list[Action]]]
PLANNING: Sequence[Rule] = (
    restore_lost_retained_topics,
    take_over,
    place_modules,
    take_over,  # again: of the copies that were found, one may serve sooner
    review,
    empty_draining_devices,
    choose_spares,
)
"""The reconciler: what should be held where."""
SAYING: Sequence[Rule] = (publish_routes, publish_assignments, clear_outdated_topics)


def next_deadline_s(state: State) -> float | None:
    """When a ``Tick`` is due if nothing happens before."""
    due = [state.settles_at_s, state.republish_at_s, devices.next_deadline_s(state.cluster)]
    if state.settled:
        due += [spares_at_s(state), review_at_s(state), give_up_at_s(state), drain_retry_at_s(state)]
    return min((at_s for at_s in due if at_s is not None), default=None)


def decide(state: State, event: Event, now_s: float, enough: Callable[[], bool] = never) -> tuple[State, list[Action]]:
    """Take in one event; if enough is known, reconcile.

    Args:
        state: what was known.
        event: what happened.
        now_s: the steady clock.
        enough: whether the time for planning is over; it only ends the search for something better earlier.

    Returns:
        What is known now, and what to do, in this order.
    """
    if isinstance(event, RequestReceived):
        return state, answer(state, event, now_s)
    if isinstance(event, LeaderStateReceived):
        return _heed(state, event, now_s)
    if isinstance(event, HeartbeatReceived) and (resign := obeys_another(state, event.device, event.message)):
        return state, resign
    before, state = state, _absorb(state, event, now_s)
    state = _mindful(before, state, now_s)
    actions: list[Action] = _tell_of_devices(before.cluster, state.cluster)
    state, said = _say_again(state, event, now_s)
    actions += said
    state, asked = request_rebirth(state, event, now_s)
    actions += asked
    if not state.settled:
        return state, actions
    moment = Moment(now_s, enough)
    for rule in PLANNING:
        state, more = rule(state, moment)
        actions += more
    if state.standing.serving != before.standing.serving:
        state = replace(state, generation=state.generation + 1)
    actions += log_placement_changes(before.standing, state.standing, state.generation)
    for rule in SAYING:
        state, more = rule(state, moment)
        actions += more
    actions.sort(key=lambda action: isinstance(action, PublishAssignment | ClearAssignment))  # after all routes
    return state, actions


def _heed(state: State, seen: LeaderStateReceived, now_s: float) -> tuple[State, list[Action]]:
    """What the leader's topic says; an older leader that came back may have overwritten all that we said."""
    state, actions = heed(state, seen.message)
    if state.link is not None and seen.message.online and seen.message.session == state.link.session:
        state = replace(state, cluster=devices.echoed(state.cluster, now_s))
    if state.link is None or any(isinstance(action, Resign) for action in actions):
        return state, actions
    outdated = seen.message.epoch < state.epoch and seen.message.online
    if (state.republish_at_s is None and not outdated) or lost_specs(state):
        return state, actions  # specs may still come: what is lost shows when the time is over
    return everything(replace(state, republish_at_s=None))


def _say_again(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """After a new link say all again, but for a while nothing in a term that may be over meanwhile."""
    if isinstance(event, LinkUp):
        if len(state.sessions) == 1:
            return state, lead(state)  # nobody can have led after this term before it began
        return replace(state, republish_at_s=now_s + min(READ_RETAINED_S, state.settle_s)), []
    if state.republish_at_s is None or now_s < state.republish_at_s:
        return state, []
    return everything(replace(state, republish_at_s=None))


# --- what we know ---


def _mindful(before: State, after: State, now_s: float) -> State:
    """With what stood before a device's goodbye, or the first of several."""
    if after.cluster.devices is before.cluster.devices:
        return after
    if after.before is not None and after.before.at_s > devices.doubtful_since_s(after.cluster, now_s):
        return after
    known = before.cluster.devices
    if not any(d.ended_s == now_s and name in known and known[name].alive for name, d in after.cluster.devices.items()):
        return after
    return replace(after, before=Before(now_s, before.standing, before.routes, before.assignments))


def _undone(state: State, now_s: float) -> State:
    """With what stood before the goodbyes of the last moment; under a new generation, for all may have been heard."""
    before = state.before
    state = replace(state, before=None)
    if before is None or before.at_s <= devices.doubtful_since_s(state.cluster, now_s):
        return state
    if (before.standing, before.routes, before.assignments) == (state.standing, state.routes, state.assignments):
        return state
    generation = state.generation + 1
    stamp = {"generation": generation}
    routes = {task: route.model_copy(update=stamp) for task, route in before.routes.items()}
    assignments = {device: said.model_copy(update=stamp) for device, said in before.assignments.items()}
    return replace(
        state, standing=before.standing, generation=generation, routes=routes, assignments=assignments, draining=None
    )


def _settled(state: State, now_s: float) -> State:
    """Whether retained messages and first heartbeats had the time to arrive.

    Who served and isn't there may be dead, or may not have come back to a broker that has just started, too: nothing
    says which, so they have the time for that.
    """
    if state.settles_at_s is None or now_s < state.cluster.up_s + state.settle_s:
        return state
    patient_s = state.linked_s + RECONNECT_S
    served = {device for route in state.remembered.values() for homes in route.serving.values() for device in homes}
    waits = now_s < patient_s and not served <= {device.id for device in state.cluster.alive()}
    return replace(state, settles_at_s=patient_s if waits else None)


def _absorb(state: State, event: MembershipEvent | TaskEvent, now_s: float) -> State:  # noqa: C901 - one table
    match event:
        case LinkUp():
            sessions = (*state.sessions, event.session)[-_SESSIONS_KEPT:]
            state = replace(state, link=event, settles_at_s=now_s + state.settle_s, sessions=sessions)
            drains = state.drains | state.cluster.drained
            state = replace(state, delivered=frozenset(), drains=drains, broker_kept_memory=False, remembered={})
            state = replace(state, reviewed_s=now_s)  # what devices measure just after an outage is of its backlog
        case LinkDown():
            state = _undone(replace(state, link=None, settles_at_s=None, republish_at_s=None), now_s)
        case TaskDeployed(spec):
            if (why := why_unroutable(spec)) is not None:
                return _absorb(state, TaskRejected(spec.task, why), now_s)
            tasks, invalid = {**state.tasks, spec.task: spec}, _less(state.invalid, spec.task)
            state = _pardon(state, spec)
            state = replace(state, tasks=tasks, invalid=invalid, delivered=state.delivered | {spec.task})
        case TaskRejected(task, why):
            invalid = {**state.invalid, task: why}
            delivered = state.delivered | {task}
            state = replace(state, tasks=_less(state.tasks, task), invalid=invalid, delivered=delivered)
        case TaskUndeployed(task):
            state = undeployed(state, task)
        case DrainReceived(device):
            state = replace(state, drains=state.drains - {device})
        case RetainedRouteReceived(task):
            state = replace(state, remembered={**state.remembered, task: event})
    if isinstance(event, MembershipEvent):
        state = replace(state, cluster=devices.apply(state.cluster, event, now_s))
    if isinstance(event, HeartbeatReceived):
        state = replace(state, footprints=grown(state, event.device))
    return _settled(state, now_s)


def _pardon(state: State, spec: TaskSpec) -> State:
    """A module whose spec was mended, or whose task was taken away meanwhile, needn't wait for the end of its pause."""
    known = {module.key: module for task in state.tasks.values() for module in task.modules.values()}
    mended = {module.key for module in spec.modules.values() if known.get(module.key) != module}
    return replace(state, cluster=devices.pardon(state.cluster, mended)) if mended else state


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
